/* Send what a pod connects to the agent's listener inside the pod, and remember where it was going.
 *
 * When:    connect(2) of any TCP socket of the node (connect4 and connect6 of the
 *          root cgroup).  The network namespace says whether it is a pod's, so
 *          it does not matter which cgroup the calling process is in.
 * Reads:   pods, listeners (both written by the agent); see also balance.h.
 * Writes:  originals[socket cookie].
 *
 * PASS is for what is not to be captured, and each says why; what is a pod's and
 * can not be sent to the agent ends in ECONNREFUSED.
 */
#include "inpod.h"

#include "balance.h"

static inline bool is_agents(struct bpf_sock_addr *ctx) {
    __u32 mark = mark_of(ctx);

    return mark == AGENT_MARK || mark == RETURN_MARK;
}

static inline int capture(struct bpf_sock_addr *ctx, const struct place *asked, struct place *to) {
    struct original_destination original = {};
    struct listener_key listener = {};
    bool has_listener;
    int decided;
    struct pod *pod;
    __u64 netns;

    if (!IS_TCP(ctx))
        return PASS; /* UDP and all others are not ours */
    netns = netns_cookie_of_caller(ctx);
    pod = pods.lookup(&netns);
    if (!pod)
        return PASS; /* the node's, or of a pod that is not in the mesh */
    if (is_loopback(asked->ip_be))
        return PASS; /* the pod's containers among themselves */
    has_listener = own_ip(pod, asked->ip_be, listener.ip_be);
    if (is_same_ip(asked->ip_be, listener.ip_be))
        return PASS; /* the pod's own address: the same */
    if (is_agents(ctx))
        return PASS; /* or the agent would talk to itself for ever */
    if (!has_listener)
        return refuse(); /* the pod has no address of that IP version: no way there, and no listener */
    decided = balance(ctx, asked, to);
    if (decided != PASS)
        return decided; /* no proxy is needed */
    listener.port_be = __builtin_bswap16(OUTBOUND_PORT);
    return go_to_agent(ctx, asked, &listener, &original, to);
}

int pod_connect4(struct bpf_sock_addr *ctx) {
    struct place asked = {}, to = {};

    read_place4(ctx, &asked);
    return go4(ctx, capture(ctx, &asked, &to), &to);
}

int pod_connect6(struct bpf_sock_addr *ctx) {
    struct place asked = {}, to = {};

    read_place6(ctx, &asked);
    return go6(ctx, capture(ctx, &asked, &to), &to);
}
