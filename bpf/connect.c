/* Send what a workload connects to the agent instead, and remember where it was going.
 *
 * When:    connect(2) of a TCP socket in a workload's cgroup (connect4, connect6),
 *          before the kernel looks for a route.  Also for MSG_FASTOPEN.
 * Reads:   workloads, listeners (both written by the agent).
 * Writes:  originals[socket cookie].
 *
 * Whatever is not sure ends in ECONNREFUSED.  PASS is for what is not to be
 * captured, and each says why.
 */
#include "capture.h"

static __u64 (*ancestor_cgroup_id)(int level) = (void *)123;
static __u64 (*netns_cookie_at)(struct bpf_sock_addr *ctx) = (void *)122;
static int (*get_option)(struct bpf_sock_addr *ctx, int level, int name, void *value, int bytes) = (void *)57;
static int (*set_retval)(int retval) = (void *)187;
static int (*release)(struct bpf_sock *socket) = (void *)86;

/* Without an errno of its own a refused connect(2) is EPERM, which programs take for a firewall's. */
static inline int refuse(void) {
    set_retval(-ECONNREFUSED);
    return REFUSE;
}

/* The nearest workload around the calling process, which may be in a cgroup of its own inside. */
static inline struct workload *workload_of_caller(__u64 *cgroup_id) {
    struct workload *found = NULL;

#pragma unroll
    for (int level = 1; level <= MAX_CGROUP_DEPTH; level++) {
        __u64 id = ancestor_cgroup_id(level);
        struct workload *here;

        if (!id)
            break; /* that deep it is not */
        here = workloads.lookup(&id);
        if (here) {
            found = here;
            *cgroup_id = id;
        }
    }
    return found;
}

static inline bool is_agents(struct bpf_sock_addr *ctx) {
    __u32 mark = 0;

    get_option(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
    return (mark & MARK_MASK) == AGENT_MARK;
}

/* Whether the agent listens there, in the caller's network namespace.  Without
 * this question another program of the node could take the port of an agent
 * that is down, and with it what the workloads send. */
static inline bool is_served(struct bpf_sock_addr *ctx, struct workload *workload, struct listener_key *listener) {
    struct bpf_sock *socket;

    if (netns_cookie_at(ctx) != workload->netns_cookie)
        return false;
    socket = listeners.lookup(listener);
    if (!socket)
        return false;
    release(socket);
    return true;
}

static inline bool remember(struct bpf_sock_addr *ctx, struct original_destination *original) {
    __u64 cookie = bpf_get_socket_cookie(ctx);

    return originals.update(&cookie, original) == 0; /* not 0: the map is full */
}

int capture_connect4(struct bpf_sock_addr *ctx) {
    struct original_destination original = {};
    struct listener_key listener = {};
    struct workload *workload;

    if (!IS_TCP(ctx))
        return PASS; /* UDP and all others are not ours */
    if ((ctx->user_ip4 & __builtin_bswap32(0xff000000)) == __builtin_bswap32(0x7f000000))
        return PASS; /* loopback: programs of this machine among themselves */
    if (is_agents(ctx))
        return PASS; /* or the agent would talk to itself for ever */

    workload = workload_of_caller(&original.cgroup_id);
    if (!workload)
        return refuse(); /* the socket is a workload's, the process is none's, or is not served yet */
    if (!workload->listener_ip4_be)
        return refuse(); /* an IPv4 socket can not reach a workload's agent that has no IPv4 address */
    listener.ip_be[2] = MAPPED_PREFIX_BE;
    listener.ip_be[3] = workload->listener_ip4_be;
    listener.port_be = workload->listener_port_be;
    if (!is_served(ctx, workload, &listener))
        return refuse(); /* the agent is down, or serves another network namespace */

    original.ip_be[2] = MAPPED_PREFIX_BE;
    original.ip_be[3] = ctx->user_ip4;
    original.port_be = ctx->user_port;
    if (!remember(ctx, &original))
        return refuse(); /* the agent would not know what to do with it */
    ctx->user_ip4 = listener.ip_be[3];
    ctx->user_port = listener.port_be;
    return PASS;
}

int capture_connect6(struct bpf_sock_addr *ctx) {
    struct original_destination original = {};
    struct listener_key listener = {};
    struct workload *workload;
    bool is_mapped;

    if (!IS_TCP(ctx))
        return PASS; /* UDP and all others are not ours */
    original.ip_be[0] = ctx->user_ip6[0];
    original.ip_be[1] = ctx->user_ip6[1];
    original.ip_be[2] = ctx->user_ip6[2];
    original.ip_be[3] = ctx->user_ip6[3];
    original.port_be = ctx->user_port;
    is_mapped = !original.ip_be[0] && !original.ip_be[1] && original.ip_be[2] == MAPPED_PREFIX_BE;
    if (is_mapped && (original.ip_be[3] & __builtin_bswap32(0xff000000)) == __builtin_bswap32(0x7f000000))
        return PASS; /* ::ffff:127.0.0.0/104 is loopback */
    if (!original.ip_be[0] && !original.ip_be[1] && !original.ip_be[2] && original.ip_be[3] == __builtin_bswap32(1))
        return PASS; /* ::1 is loopback */
    if (is_agents(ctx))
        return PASS; /* or the agent would talk to itself for ever */

    workload = workload_of_caller(&original.cgroup_id);
    if (!workload)
        return refuse(); /* the socket is a workload's, the process is none's, or is not served yet */
    listener.port_be = workload->listener_port_be;
    /* A mapped destination prefers IPv4, as the connection would have been; an IPv6 socket can do both. */
    if (workload->listener_ip4_be && (is_mapped || !workload->listener_ip6_be[0])) {
        listener.ip_be[2] = MAPPED_PREFIX_BE;
        listener.ip_be[3] = workload->listener_ip4_be;
    } else {
        listener.ip_be[0] = workload->listener_ip6_be[0];
        listener.ip_be[1] = workload->listener_ip6_be[1];
        listener.ip_be[2] = workload->listener_ip6_be[2];
        listener.ip_be[3] = workload->listener_ip6_be[3];
    }
    if (!is_served(ctx, workload, &listener))
        return refuse(); /* the agent is down, or serves another network namespace */
    if (!remember(ctx, &original))
        return refuse(); /* the agent would not know what to do with it */
    ctx->user_ip6[0] = listener.ip_be[0];
    ctx->user_ip6[1] = listener.ip_be[1];
    ctx->user_ip6[2] = listener.ip_be[2];
    ctx->user_ip6[3] = listener.ip_be[3];
    ctx->user_port = listener.port_be;
    return PASS;
}
