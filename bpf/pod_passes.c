/* Know the connections of a pod to itself, so that steer.c can tell them from those that come from outside.
 *
 * When:    TCP events of any socket of the node (sock_ops of the root cgroup).
 *          TCP_CONNECT_CB comes when both addresses and ports are chosen and
 *          before the SYN is sent.
 * Reads:   pods, written by the agent.
 * Writes:  passes[pass_key].  The entry goes when the connection is accepted,
 *          or with the socket that connects.
 *
 * Nothing in an arriving SYN says as much: the kernel tells the same interface
 * for both, and source addresses can be forged.
 */
#include "inpod.h"

static __u64 (*netns_of_socket)(struct bpf_sock_ops *ctx) = (void *)122;
static int (*watch_state)(struct bpf_sock_ops *ctx, int flags) = (void *)59;

#define READ_FIELD(field) (*(volatile __u32 *)&(field))

int pod_passes(struct bpf_sock_ops *ctx) {
    /* All fields first, and through volatile: see flows.c. */
    __u32 op = READ_FIELD(ctx->op), new_state = READ_FIELD(ctx->args[1]), family = READ_FIELD(ctx->family);
    __u32 local_ip4 = READ_FIELD(ctx->local_ip4), remote_ip4 = READ_FIELD(ctx->remote_ip4);
    __u32 local0 = READ_FIELD(ctx->local_ip6[0]), local1 = READ_FIELD(ctx->local_ip6[1]);
    __u32 local2 = READ_FIELD(ctx->local_ip6[2]), local3 = READ_FIELD(ctx->local_ip6[3]);
    __u32 remote0 = READ_FIELD(ctx->remote_ip6[0]), remote1 = READ_FIELD(ctx->remote_ip6[1]);
    __u32 remote2 = READ_FIELD(ctx->remote_ip6[2]), remote3 = READ_FIELD(ctx->remote_ip6[3]);
    __u32 local_port = READ_FIELD(ctx->local_port), remote_port = READ_FIELD(ctx->remote_port);
    struct pass_key key = {};
    struct pod *pod;
    __u64 netns, cookie, *owner;
    bool is_client;

    if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_STATE_CB)
        return PASS; /* nothing that begins or ends a pass */
    if (op == BPF_SOCK_OPS_STATE_CB && new_state != BPF_TCP_CLOSE)
        return PASS; /* it goes on */
    netns = netns_of_socket(ctx);
    pod = pods.lookup(&netns);
    if (!pod)
        return PASS; /* the node's, or of a pod that is not in the mesh */

    is_client = op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB;
    if (family == AF_INET) {
        local0 = local1 = remote0 = remote1 = 0;
        local2 = remote2 = MAPPED_PREFIX_BE;
        local3 = local_ip4;
        remote3 = remote_ip4;
    }
    remote_port = __builtin_bswap32(remote_port); /* it comes in the upper half, in network order */
    key.client_ip_be[0] = is_client ? local0 : remote0;
    key.client_ip_be[1] = is_client ? local1 : remote1;
    key.client_ip_be[2] = is_client ? local2 : remote2;
    key.client_ip_be[3] = is_client ? local3 : remote3;
    key.server_ip_be[0] = is_client ? remote0 : local0;
    key.server_ip_be[1] = is_client ? remote1 : local1;
    key.server_ip_be[2] = is_client ? remote2 : local2;
    key.server_ip_be[3] = is_client ? remote3 : local3;
    key.client_port = is_client ? local_port : remote_port;
    key.server_port = is_client ? remote_port : local_port;

    if (op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
        passes.delete(&key); /* the application has it */
        return PASS;
    }
    cookie = bpf_get_socket_cookie(ctx);
    if (op == BPF_SOCK_OPS_STATE_CB) {
        owner = passes.lookup(&key);
        if (owner && *owner == cookie)
            passes.delete(&key); /* nobody accepted it */
        return PASS;
    }
    if (remote0 || remote1 || remote2 != MAPPED_PREFIX_BE) {
        if (remote0 != pod->ip6_be[0] || remote1 != pod->ip6_be[1] || remote2 != pod->ip6_be[2] ||
            remote3 != pod->ip6_be[3])
            return PASS; /* it leaves the pod */
    } else if (remote3 != pod->ip4_be) {
        return PASS; /* it leaves the pod */
    }
    /* If the map is full the connection goes to the agent, which refuses it. */
    passes.update(&key, &cookie);
    watch_state(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
    return PASS;
}
