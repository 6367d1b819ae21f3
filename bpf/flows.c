/* File where a connection was going under what the agent will see of it.
 *
 * When:    TCP events of sockets in a workload's cgroup (sock_ops).
 *          ACTIVE_ESTABLISHED comes before the ACK is sent that completes the
 *          handshake at the agent's end, so the entry is there before accept(2).
 * Reads:   originals[socket cookie], written at connect(2).
 * Writes:  flows[flow_key]; the agent takes the entry out when it accepts.
 *          originals: the entry goes with the connection.
 *          balance_failed: where a connection was sent that nobody has accepted.
 *
 * All fields are read before the first branch and through volatile: else the
 * compiler merges reads of different branches into one with a computed address,
 * which the verifier refuses ("dereference of modified ctx ptr").
 */
#include "balance.h"

static __u64 (*netns_cookie_of)(struct bpf_sock_ops *ctx) = (void *)122;
static int (*watch)(struct bpf_sock_ops *ctx, int flags) = (void *)59;

#define READ(field) (*(volatile __u32 *)&(field))

/* The agent does not see these connections: it has to hear of an endpoint that does not answer. */
static inline void tell_failed(const struct original_destination *original, const struct flow_key *flow) {
    struct balanced_key endpoint = {};
    __u64 now = bpf_ktime_get_ns();

    if (!original || original->is_direct != BALANCED)
        return; /* the agent sees it itself */
    copy_ip(endpoint.ip_be, flow->listener_ip_be);
    endpoint.port_be = __builtin_bswap16((__u16)flow->listener_port);
    balance_failed.update(&endpoint, &now);
}

int capture_flows(struct bpf_sock_ops *ctx) {
    __u32 op = READ(ctx->op), old_state = READ(ctx->args[0]), new_state = READ(ctx->args[1]);
    __u32 family = READ(ctx->family);
    __u32 local_ip4 = READ(ctx->local_ip4), remote_ip4 = READ(ctx->remote_ip4);
    __u32 local0 = READ(ctx->local_ip6[0]), local1 = READ(ctx->local_ip6[1]);
    __u32 local2 = READ(ctx->local_ip6[2]), local3 = READ(ctx->local_ip6[3]);
    __u32 remote0 = READ(ctx->remote_ip6[0]), remote1 = READ(ctx->remote_ip6[1]);
    __u32 remote2 = READ(ctx->remote_ip6[2]), remote3 = READ(ctx->remote_ip6[3]);
    __u32 local_port = READ(ctx->local_port), remote_port = READ(ctx->remote_port);
    struct original_destination *original, copy;
    struct flow_key key = {};
    __u64 cookie;

    if (op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
        cookie = bpf_get_socket_cookie(ctx);
        if (originals.lookup(&cookie))
            watch(ctx, BPF_SOCK_OPS_STATE_CB_FLAG); /* also of a connect that fails */
        return PASS;
    }
    if (op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_STATE_CB)
        return PASS; /* also all of accepted connections */
    if (op == BPF_SOCK_OPS_STATE_CB && new_state != BPF_TCP_CLOSE)
        return PASS; /* it goes on */
    cookie = bpf_get_socket_cookie(ctx);
    key.netns_cookie = netns_cookie_of(ctx);
    if (family == AF_INET) {
        key.client_ip_be[2] = MAPPED_PREFIX_BE;
        key.client_ip_be[3] = local_ip4;
        key.listener_ip_be[2] = MAPPED_PREFIX_BE;
        key.listener_ip_be[3] = remote_ip4;
    } else {
        key.client_ip_be[0] = local0;
        key.client_ip_be[1] = local1;
        key.client_ip_be[2] = local2;
        key.client_ip_be[3] = local3;
        key.listener_ip_be[0] = remote0;
        key.listener_ip_be[1] = remote1;
        key.listener_ip_be[2] = remote2;
        key.listener_ip_be[3] = remote3;
    }
    key.client_port = local_port;
    key.listener_port = __builtin_bswap32(remote_port); /* it comes in the upper half, in network order */

    if (op == BPF_SOCK_OPS_STATE_CB) {
        /* A client that has sent FIN may be gone before the agent, busy, accepts it: its entry stays.
         * One that ends without was reset, and nobody can be served any more. */
        if (old_state == BPF_TCP_ESTABLISHED)
            flows.delete(&key);
        if (old_state == BPF_TCP_SYN_SENT)
            tell_failed(originals.lookup(&cookie), &key);
        originals.delete(&cookie); /* release.c never hears of the socket inside of a multipath TCP one */
        return PASS;
    }

    original = originals.lookup(&cookie);
    if (!original || original->is_direct)
        return PASS; /* it was not captured, or does not go to the agent (balance.h, lane_connect.c) */
    copy = *original;
    /* If the map is full the agent finds nothing, and resets the connection. */
    flows.update(&key, &copy);
    watch(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
    return PASS;
}
