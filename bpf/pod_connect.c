/* Send what a pod connects to the agent's listener inside the pod, and remember where it was going.
 *
 * When:    connect(2) of any TCP socket of the node (connect4 and connect6 of the
 *          root cgroup).  The network namespace says whether it is a pod's, so
 *          it does not matter which cgroup the calling process is in.
 * Reads:   pods, listeners (both written by the agent).
 * Writes:  originals[socket cookie].
 *
 * PASS is for what is not to be captured, and each says why; what is a pod's and
 * can not be sent to the agent ends in ECONNREFUSED.
 */
#include "inpod.h"

static __u64 (*netns_of)(struct bpf_sock_addr *ctx) = (void *)122;
static int (*option_of)(struct bpf_sock_addr *ctx, int level, int name, void *value, int bytes) = (void *)57;
static int (*answer_with)(int retval) = (void *)187;
static int (*put_back)(struct bpf_sock *socket) = (void *)86;

static inline int refuse_connect(void) {
    answer_with(-ECONNREFUSED);
    return REFUSE;
}

static inline bool has_agents_mark(struct bpf_sock_addr *ctx) {
    __u32 mark = 0;

    option_of(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
    mark &= MARK_MASK;
    return mark == AGENT_MARK || mark == RETURN_MARK;
}

/* Whether the agent listens: without this question the pod's own program could take the port of an agent that is
 * down. */
static inline bool is_listening(struct listener_key *listener) {
    struct bpf_sock *socket = listeners.lookup(listener);

    if (!socket)
        return false;
    put_back(socket);
    return true;
}

static inline bool file_original(struct bpf_sock_addr *ctx, struct original_destination *original) {
    __u64 cookie = bpf_get_socket_cookie(ctx);

    return originals.update(&cookie, original) == 0; /* not 0: the map is full */
}

int pod_connect4(struct bpf_sock_addr *ctx) {
    struct original_destination original = {};
    struct listener_key listener = {};
    struct pod *pod;
    __u64 netns;

    if (!IS_TCP(ctx))
        return PASS; /* UDP and all others are not ours */
    netns = netns_of(ctx);
    pod = pods.lookup(&netns);
    if (!pod)
        return PASS; /* the node's, or of a pod that is not in the mesh */
    if ((ctx->user_ip4 & __builtin_bswap32(0xff000000)) == __builtin_bswap32(0x7f000000))
        return PASS; /* loopback: the pod's containers among themselves */
    if (ctx->user_ip4 == pod->ip4_be)
        return PASS; /* the pod's own address: the same */
    if (has_agents_mark(ctx))
        return PASS; /* or the agent would talk to itself for ever */
    if (!pod->ip4_be)
        return refuse_connect(); /* an IPv4 socket can not reach a listener that has no IPv4 address */

    listener.ip_be[2] = MAPPED_PREFIX_BE;
    listener.ip_be[3] = pod->ip4_be;
    listener.port_be = __builtin_bswap16(OUTBOUND_PORT);
    if (!is_listening(&listener))
        return refuse_connect(); /* the agent is down */
    original.ip_be[2] = MAPPED_PREFIX_BE;
    original.ip_be[3] = ctx->user_ip4;
    original.port_be = ctx->user_port;
    if (!file_original(ctx, &original))
        return refuse_connect(); /* the agent would not know what to do with it */
    ctx->user_ip4 = listener.ip_be[3];
    ctx->user_port = listener.port_be;
    return PASS;
}

int pod_connect6(struct bpf_sock_addr *ctx) {
    struct original_destination original = {};
    struct listener_key listener = {};
    struct pod *pod;
    bool is_mapped;
    __u64 netns;

    if (!IS_TCP(ctx))
        return PASS; /* UDP and all others are not ours */
    netns = netns_of(ctx);
    pod = pods.lookup(&netns);
    if (!pod)
        return PASS; /* the node's, or of a pod that is not in the mesh */
    original.ip_be[0] = ctx->user_ip6[0];
    original.ip_be[1] = ctx->user_ip6[1];
    original.ip_be[2] = ctx->user_ip6[2];
    original.ip_be[3] = ctx->user_ip6[3];
    original.port_be = ctx->user_port;
    is_mapped = !original.ip_be[0] && !original.ip_be[1] && original.ip_be[2] == MAPPED_PREFIX_BE;
    if (is_mapped) {
        if ((original.ip_be[3] & __builtin_bswap32(0xff000000)) == __builtin_bswap32(0x7f000000))
            return PASS; /* ::ffff:127.0.0.0/104 is loopback */
        if (original.ip_be[3] == pod->ip4_be)
            return PASS; /* the pod's own address */
    } else {
        if (!original.ip_be[0] && !original.ip_be[1] && !original.ip_be[2] && original.ip_be[3] == __builtin_bswap32(1))
            return PASS; /* ::1 is loopback */
        if (original.ip_be[0] == pod->ip6_be[0] && original.ip_be[1] == pod->ip6_be[1] &&
            original.ip_be[2] == pod->ip6_be[2] && original.ip_be[3] == pod->ip6_be[3])
            return PASS; /* the pod's own address */
    }
    if (has_agents_mark(ctx))
        return PASS; /* or the agent would talk to itself for ever */

    listener.port_be = __builtin_bswap16(OUTBOUND_PORT);
    if (is_mapped) {
        if (!pod->ip4_be)
            return refuse_connect(); /* the socket may be for IPv4 only in all but name */
        listener.ip_be[2] = MAPPED_PREFIX_BE;
        listener.ip_be[3] = pod->ip4_be;
    } else {
        if (!pod->ip6_be[0])
            return refuse_connect(); /* a pod without IPv6 has no way there anyway */
        listener.ip_be[0] = pod->ip6_be[0];
        listener.ip_be[1] = pod->ip6_be[1];
        listener.ip_be[2] = pod->ip6_be[2];
        listener.ip_be[3] = pod->ip6_be[3];
    }
    if (!is_listening(&listener))
        return refuse_connect(); /* the agent is down */
    if (!file_original(ctx, &original))
        return refuse_connect(); /* the agent would not know what to do with it */
    ctx->user_ip6[0] = listener.ip_be[0];
    ctx->user_ip6[1] = listener.ip_be[1];
    ctx->user_ip6[2] = listener.ip_be[2];
    ctx->user_ip6[3] = listener.ip_be[3];
    ctx->user_port = listener.port_be;
    return PASS;
}
