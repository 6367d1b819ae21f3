/* Let a connection between two pods of this node go straight to the application, where the agent has said so.
 *
 * When:    connect(2) of any TCP socket of the node, after pod_connect.c has sent it to the agent: what that lets
 *          pass, or refuses because the agent is down, is not looked at.
 * Reads:   lane_control, lanes (both written by the agent), originals[socket cookie] (pod_connect.c).
 * Writes:  lane_connections[socket cookie], lane_counters.
 *
 * Whatever is missing, old or full: the connection goes through the agent, as it would have without this file.
 * Every verdict is PASS.  The SYN is not sent yet; lane_flows.c asks again when it is.
 */
#include "lane.h"

static __u64 (*netns_cookie_here)(struct bpf_sock_addr *ctx) = (void *)122;

struct lane_choice {
    __u32 ip_be[4];
    __u32 port_be;
};

/* Whether there is room for the ends of all that are open and of this one, so that none is ever lost. */
static inline bool has_room(struct lane_control *control, struct lane_counters *counted) {
    return counted->spilled - control->collected < MAX_LANE_SPILL - MAX_LANE_CONNECTIONS;
}

static inline bool is_ip4(const __u32 *ip_be) {
    return !ip_be[0] && !ip_be[1] && ip_be[2] == MAPPED_PREFIX_BE;
}

static inline bool choose_lane(struct bpf_sock_addr *ctx, __u64 cookie, struct lane_choice *choice) {
    struct original_destination *original = originals.lookup(&cookie);
    struct lane_connection connection = {};
    struct lane_counters *counted = counters();
    struct lane_control *control;
    struct lane_key key = {};
    __u32 drawn, total;
    bool is_chosen = false;
    struct lane *lane;
    int first = 0;

    control = lane_control.lookup(&first);
    if (!original || !control || !counted)
        return false; /* it was not captured */
    connection.began_ns = bpf_ktime_get_ns();
    connection.generation = *(volatile __u64 *)&control->generation;
    if (!connection.generation || connection.began_ns >= control->valid_until_ns)
        return false; /* no lanes, or nobody has looked after them for a while */
    key.netns_cookie = netns_cookie_here(ctx);
    key.ip_be[0] = original->ip_be[0];
    key.ip_be[1] = original->ip_be[1];
    key.ip_be[2] = original->ip_be[2];
    key.ip_be[3] = original->ip_be[3];
    key.port_be = original->port_be;
    lane = lanes.lookup(&key);
    if (!lane || !lane->count || lane->count > MAX_LANE_ENDPOINTS)
        return false; /* the agent has not said so */
    total = lane->weights[(lane->count - 1) & (MAX_LANE_ENDPOINTS - 1)];
    if (!total)
        return false;
    drawn = bpf_get_prandom_u32() % total;
#pragma unroll
    for (int each = 0; each < MAX_LANE_ENDPOINTS; each++) {
        if (!is_chosen && drawn < lane->weights[each]) {
            is_chosen = true;
            connection.server_ip_be[0] = lane->ip_be[4 * each];
            connection.server_ip_be[1] = lane->ip_be[4 * each + 1];
            connection.server_ip_be[2] = lane->ip_be[4 * each + 2];
            connection.server_ip_be[3] = lane->ip_be[4 * each + 3];
            connection.server_port = lane->port_be[each];
            connection.grant = lane->grants[each];
        }
    }
    /* Last: what was read before is of this generation, or not to be used. */
    if (!is_chosen || *(volatile __u64 *)&lane->generation != connection.generation)
        return false;
    if (is_ip4(connection.server_ip_be) != is_ip4(key.ip_be))
        return false; /* a socket for IPv4 can not go there */
    choice->ip_be[0] = connection.server_ip_be[0];
    choice->ip_be[1] = connection.server_ip_be[1];
    choice->ip_be[2] = connection.server_ip_be[2];
    choice->ip_be[3] = connection.server_ip_be[3];
    choice->port_be = connection.server_port;
    connection.server_port = __builtin_bswap16((__u16)connection.server_port);
    connection.netns_cookie = key.netns_cookie;
    connection.original_ip_be[0] = key.ip_be[0];
    connection.original_ip_be[1] = key.ip_be[1];
    connection.original_ip_be[2] = key.ip_be[2];
    connection.original_ip_be[3] = key.ip_be[3];
    connection.original_port_be = key.port_be;
    if (!has_room(control, counted) || lane_connections.update(&cookie, &connection)) {
        count_one(&counted->full);
        return false;
    }
    original->is_lane = 1;
    count_one(&counted->taken);
    return true;
}

int lane_connect4(struct bpf_sock_addr *ctx) {
    struct lane_choice choice = {};
    __u64 cookie, netns;
    struct pod *pod;

    if (ctx->type != SOCK_STREAM || ctx->protocol != IPPROTO_TCP)
        return PASS; /* UDP and all others are not ours */
    cookie = bpf_get_socket_cookie(ctx);
    lane_connections.delete(&cookie); /* of an attempt of this socket that sent no SYN */
    if (ctx->user_port != __builtin_bswap16(OUTBOUND_PORT))
        return PASS; /* it was not captured */
    netns = netns_cookie_here(ctx);
    pod = pods.lookup(&netns);
    if (!pod || ctx->user_ip4 != pod->ip4_be)
        return PASS; /* likewise */
    if (!choose_lane(ctx, cookie, &choice))
        return PASS; /* through the agent */
    ctx->user_ip4 = choice.ip_be[3];
    ctx->user_port = choice.port_be;
    return PASS;
}

int lane_connect6(struct bpf_sock_addr *ctx) {
    __u32 to0, to1, to2, to3;
    struct lane_choice choice = {};
    __u64 cookie, netns;
    struct pod *pod;

    if (ctx->type != SOCK_STREAM || ctx->protocol != IPPROTO_TCP)
        return PASS; /* UDP and all others are not ours */
    cookie = bpf_get_socket_cookie(ctx);
    lane_connections.delete(&cookie); /* of an attempt of this socket that sent no SYN */
    if (ctx->user_port != __builtin_bswap16(OUTBOUND_PORT))
        return PASS; /* it was not captured */
    netns = netns_cookie_here(ctx);
    pod = pods.lookup(&netns);
    if (!pod)
        return PASS; /* likewise */
    to0 = ctx->user_ip6[0];
    to1 = ctx->user_ip6[1];
    to2 = ctx->user_ip6[2];
    to3 = ctx->user_ip6[3];
    if (!to0 && !to1 && to2 == MAPPED_PREFIX_BE) {
        if (to3 != pod->ip4_be)
            return PASS; /* likewise */
    } else if (to0 != pod->ip6_be[0] || to1 != pod->ip6_be[1] || to2 != pod->ip6_be[2] || to3 != pod->ip6_be[3]) {
        return PASS; /* likewise */
    }
    if (!choose_lane(ctx, cookie, &choice))
        return PASS; /* through the agent */
    ctx->user_ip6[0] = choice.ip_be[0];
    ctx->user_ip6[1] = choice.ip_be[1];
    ctx->user_ip6[2] = choice.ip_be[2];
    ctx->user_ip6[3] = choice.ip_be[3];
    ctx->user_port = choice.port_be;
    return PASS;
}
