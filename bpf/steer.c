/* Give what arrives in a pod to the agent's listeners, whatever port it is for.
 *
 * When:    the kernel looks for the listener of an arriving SYN in a pod's network
 *          namespace (sk_lookup), before any socket of the pod is considered; with
 *          SYN cookies once more for the ACK.
 * Reads:   passes (pod_passes.c, lane_flows.c), refusals (lane_flows.c), listeners
 *          (written by the agent; the kernel takes a socket out when it is closed,
 *          also when the agent is killed).
 * Writes:  nothing.
 *
 * SK_DROP is answered with RST: without an agent a pod is closed.  The agent's
 * accepted socket has the address and port that the client asked for.
 */
#include "inpod.h"

static int (*assign)(struct bpf_sk_lookup *ctx, struct bpf_sock *socket, __u64 flags) = (void *)124;
static int (*let_go)(struct bpf_sock *socket) = (void *)86;

#define LOOK(field) (*(volatile __u32 *)&(field))

int pod_steer(struct bpf_sk_lookup *ctx) {
    /* All fields first, and through volatile: see flows.c. */
    __u32 protocol = LOOK(ctx->protocol), family = LOOK(ctx->family);
    __u32 local_ip4 = LOOK(ctx->local_ip4), remote_ip4 = LOOK(ctx->remote_ip4);
    __u32 local0 = LOOK(ctx->local_ip6[0]), local1 = LOOK(ctx->local_ip6[1]);
    __u32 local2 = LOOK(ctx->local_ip6[2]), local3 = LOOK(ctx->local_ip6[3]);
    __u32 remote0 = LOOK(ctx->remote_ip6[0]), remote1 = LOOK(ctx->remote_ip6[1]);
    __u32 remote2 = LOOK(ctx->remote_ip6[2]), remote3 = LOOK(ctx->remote_ip6[3]);
    __u32 local_port = LOOK(ctx->local_port), remote_port = LOOK(ctx->remote_port);
    struct listener_key listener = {};
    struct pass_key key = {};
    struct bpf_sock *socket;
    long refused;

    if (protocol != IPPROTO_TCP)
        return SK_PASS; /* UDP is not ours */
    if (family == AF_INET) {
        local0 = local1 = remote0 = remote1 = 0;
        local2 = remote2 = MAPPED_PREFIX_BE;
        local3 = local_ip4;
        remote3 = remote_ip4;
        if ((local_ip4 & __builtin_bswap32(0xff000000)) == __builtin_bswap32(0x7f000000))
            return SK_PASS; /* loopback never arrives from outside */
    } else if (!local0 && !local1 && !local2 && local3 == __builtin_bswap32(1)) {
        return SK_PASS; /* ::1 is loopback */
    }
    key.client_ip_be[0] = remote0;
    key.client_ip_be[1] = remote1;
    key.client_ip_be[2] = remote2;
    key.client_ip_be[3] = remote3;
    key.server_ip_be[0] = local0;
    key.server_ip_be[1] = local1;
    key.server_ip_be[2] = local2;
    key.server_ip_be[3] = local3;
    key.client_port = __builtin_bswap16((__u16)remote_port);
    key.server_port = local_port;
    if (passes.lookup(&key))
        return SK_PASS; /* from inside: the agent's to the application, or the pod's to itself; or on the lane */
    if (refusals.lookup(&key))
        return SK_DROP; /* it would have been on the lane */

    listener.ip_be[0] = local0;
    listener.ip_be[1] = local1;
    listener.ip_be[2] = local2;
    listener.ip_be[3] = local3;
    listener.port_be = __builtin_bswap16(local_port == TUNNEL_PORT ? TUNNEL_PORT : INBOUND_PORT);
    socket = listeners.lookup(&listener);
    if (!socket)
        return SK_DROP; /* the agent is down, or this is no address of the pod */
    refused = assign(ctx, socket, 0);
    let_go(socket);
    return refused ? SK_DROP : SK_PASS;
}
