/* Follow the connections that take the lane: open the destination's door for exactly this one, and tell how it ended.
 *
 * When:    TCP events of any socket of the node (sock_ops of the root cgroup).  TCP_CONNECT_CB comes when both
 *          addresses and ports are chosen and before the SYN is sent (with TCP fast open that may be long after
 *          connect(2)); STATE_CB for those whose flag was set then.
 * Reads:   lane_control, written by the agent; lane_connections[socket cookie], written at connect(2).
 * Writes:  passes, which steer.c looks into and pod_passes.c takes the entry out of: when the connection is accepted,
 *          or with the socket that connects.  Not when that is established: with SYN cookies the last ACK of the
 *          handshake is looked up once more.
 *          refusals, for steer.c too; lane_connections; lane_ends or lane_spill.
 *
 * The agent takes a grant back by another generation.  Whoever was between connect(2) and here then is refused:
 * without an entry in passes it would arrive in plaintext, as if nobody knew who it is.
 */
#include "lane.h"

static int (*watch_lane)(struct bpf_sock_ops *ctx, int flags) = (void *)59;
static void *(*as_tcp_socket)(void *socket) = (void *)137;

#define FIELD(field)   (*(volatile __u32 *)&(field))
#define FIELD64(field) (*(volatile __u64 *)&(field))

/* SOCK_FLAGS_OFFSET, SOCK_DONE_BIT and SOCK_ERROR_OFFSET come from the running kernel (plan.py, btf.py). */
#define SOCKET_FLAGS(socket) (*(volatile unsigned long *)((char *)(socket) + SOCK_FLAGS_OFFSET))
#define SOCKET_ERROR(socket) (*(volatile int *)((char *)(socket) + SOCK_ERROR_OFFSET))

static inline void tell_end(__u64 *cookie, struct lane_end *end) {
    struct lane_counters *counted = counters();

    if (!lane_ends.ringbuf_output(end, sizeof(*end), 0))
        return;
    /* Full, or two at the same time. */
    if (counted)
        count_one(&counted->spilled);
    if (lane_spill.update(cookie, end) && counted)
        count_one(&counted->lost);
}

int lane_flows(struct bpf_sock_ops *ctx) {
    /* All fields first, and through volatile: see flows.c. */
    __u32 op = FIELD(ctx->op), old_state = FIELD(ctx->args[0]), new_state = FIELD(ctx->args[1]);
    __u32 family = FIELD(ctx->family), local_ip4 = FIELD(ctx->local_ip4), remote_ip4 = FIELD(ctx->remote_ip4);
    __u32 local0 = FIELD(ctx->local_ip6[0]), local1 = FIELD(ctx->local_ip6[1]);
    __u32 local2 = FIELD(ctx->local_ip6[2]), local3 = FIELD(ctx->local_ip6[3]);
    __u32 remote0 = FIELD(ctx->remote_ip6[0]), remote1 = FIELD(ctx->remote_ip6[1]);
    __u32 remote2 = FIELD(ctx->remote_ip6[2]), remote3 = FIELD(ctx->remote_ip6[3]);
    __u32 local_port = FIELD(ctx->local_port), remote_port = FIELD(ctx->remote_port);
    __u32 snd_una = FIELD(ctx->snd_una), snd_nxt = FIELD(ctx->snd_nxt);
    __u64 acked_bytes = FIELD64(ctx->bytes_acked), received_bytes = FIELD64(ctx->bytes_received);
    struct lane_connection *connection;
    struct lane_control *control;
    struct lane_end end = {};
    struct pass_key key = {};
    struct bpf_sock *socket;
    __u64 cookie;
    int first = 0;

    if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
        op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_STATE_CB)
        return PASS; /* nothing that matters here */
    cookie = bpf_get_socket_cookie(ctx);
    connection = lane_connections.lookup(&cookie);
    if (!connection)
        return PASS; /* not on the lane */
    if (op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB || op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
        connection->established_ns = bpf_ktime_get_ns(); /* passive: two that connect to each other at one time */
        connection->flags |= LANE_ESTABLISHED;
        return PASS;
    }

    if (op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
        if (family == AF_INET || (!remote0 && !remote1 && remote2 == MAPPED_PREFIX_BE)) {
            local0 = local1 = remote0 = remote1 = 0;
            local2 = remote2 = MAPPED_PREFIX_BE;
            local3 = local_ip4;
            remote3 = remote_ip4;
        }
        key.client_ip_be[0] = local0;
        key.client_ip_be[1] = local1;
        key.client_ip_be[2] = local2;
        key.client_ip_be[3] = local3;
        key.server_ip_be[0] = remote0;
        key.server_ip_be[1] = remote1;
        key.server_ip_be[2] = remote2;
        key.server_ip_be[3] = remote3;
        key.client_port = local_port;
        key.server_port = __builtin_bswap32(remote_port); /* it comes in the upper half, in network order */
        if (remote0 != connection->server_ip_be[0] || remote1 != connection->server_ip_be[1] ||
            remote2 != connection->server_ip_be[2] || remote3 != connection->server_ip_be[3] ||
            key.server_port != connection->server_port) {
            lane_connections.delete(&cookie); /* somebody else's program has sent it to another place */
            return PASS;
        }
        connection->client_ip_be[0] = local0;
        connection->client_ip_be[1] = local1;
        connection->client_ip_be[2] = local2;
        connection->client_ip_be[3] = local3;
        connection->client_port = local_port;
        connection->flags = LANE_SYN_SENT;
        watch_lane(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
        control = lane_control.lookup(&first);
        if (!control || FIELD64(control->generation) != connection->generation || passes.update(&key, &cookie)) {
            struct lane_counters *counted = counters();

            connection->flags = LANE_SYN_SENT | LANE_REFUSED;
            if (counted)
                count_one(&counted->refused);
            refusals.update(&key, &cookie);
        }
        return PASS;
    }

    if (new_state == BPF_TCP_FIN_WAIT2)
        connection->flags |= LANE_FIN_ACKED;
    if (new_state != BPF_TCP_CLOSE)
        return PASS; /* it goes on */
    end.cookie = cookie;
    end.grant = connection->grant;
    end.netns_cookie = connection->netns_cookie;
    end.began_ns = connection->began_ns;
    end.established_ns = connection->established_ns;
    end.ended_ns = bpf_ktime_get_ns();
    end.acked_bytes = acked_bytes;
    end.received_bytes = received_bytes;
    end.flags = connection->flags;
    if ((old_state == BPF_TCP_LAST_ACK || old_state == BPF_TCP_CLOSING || old_state == BPF_TCP_FIN_WAIT1) &&
        snd_una == snd_nxt)
        end.flags |= LANE_FIN_ACKED;
    socket = ctx->sk;
    if (socket) {
        void *tcp = as_tcp_socket(socket);

        if (tcp) {
            /* FIN_WAIT2 to CLOSE says nothing of the server's FIN: the client may just have waited long enough. */
            if (SOCKET_FLAGS(tcp) & (1ul << SOCK_DONE_BIT))
                end.flags |= LANE_FIN_CAME;
            end.error = (__u32)SOCKET_ERROR(tcp);
        }
    }
    __builtin_memcpy(end.original_ip_be, connection->original_ip_be, sizeof(end.original_ip_be));
    end.original_port_be = connection->original_port_be;
    __builtin_memcpy(end.client_ip_be, connection->client_ip_be, sizeof(end.client_ip_be));
    __builtin_memcpy(end.server_ip_be, connection->server_ip_be, sizeof(end.server_ip_be));
    end.client_port = connection->client_port;
    end.server_port = connection->server_port;
    if (end.flags & LANE_REFUSED) {
        __builtin_memcpy(key.client_ip_be, end.client_ip_be, sizeof(key.client_ip_be));
        __builtin_memcpy(key.server_ip_be, end.server_ip_be, sizeof(key.server_ip_be));
        key.client_port = end.client_port;
        key.server_port = end.server_port;
        refusals.delete(&key);
    }
    lane_connections.delete(&cookie);
    tell_end(&cookie, &end);
    return PASS;
}
