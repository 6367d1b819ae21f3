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

/* Whether there is room for the ends of all that are open and of this one, so that none is ever lost. */
static inline bool has_room(struct lane_control *control, struct lane_counters *counted) {
    return counted->spilled - control->collected < MAX_LANE_SPILL - MAX_LANE_CONNECTIONS;
}

static inline bool choose_lane(__u64 netns, __u64 cookie, struct place *to) {
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
    key.netns_cookie = netns;
    copy_ip(key.ip_be, original->ip_be);
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
            copy_ip(connection.server_ip_be, &lane->ip_be[4 * each]);
            connection.server_port = lane->port_be[each];
            connection.grant = lane->grants[each];
        }
    }
    /* Last: what was read before is of this generation, or not to be used. */
    if (!is_chosen || *(volatile __u64 *)&lane->generation != connection.generation)
        return false;
    if (is_ip4(connection.server_ip_be) != is_ip4(key.ip_be))
        return false; /* a socket for IPv4 can not go there */
    copy_ip(to->ip_be, connection.server_ip_be);
    to->port_be = connection.server_port;
    connection.server_port = __builtin_bswap16((__u16)connection.server_port);
    connection.netns_cookie = key.netns_cookie;
    copy_ip(connection.original_ip_be, key.ip_be);
    connection.original_port_be = key.port_be;
    if (!has_room(control, counted) || lane_connections.update(&cookie, &connection)) {
        count_one(&counted->full);
        return false;
    }
    original->is_direct = ON_THE_LANE;
    count_one(&counted->taken);
    return true;
}

static inline int take_lane(struct bpf_sock_addr *ctx, const struct place *asked, struct place *to) {
    __u32 own_ip_be[4];
    __u64 cookie, netns;
    struct pod *pod;

    if (ctx->type != SOCK_STREAM || ctx->protocol != IPPROTO_TCP)
        return PASS; /* UDP and all others are not ours */
    cookie = bpf_get_socket_cookie(ctx);
    lane_connections.delete(&cookie); /* of an attempt of this socket that sent no SYN */
    if (asked->port_be != __builtin_bswap16(OUTBOUND_PORT))
        return PASS; /* it was not captured */
    netns = netns_cookie_of_caller(ctx);
    pod = pods.lookup(&netns);
    if (!pod || !own_ip(pod, asked->ip_be, own_ip_be) || !is_same_ip(asked->ip_be, own_ip_be))
        return PASS;                                         /* likewise */
    return choose_lane(netns, cookie, to) ? REDIRECT : PASS; /* or through the agent */
}

int lane_connect4(struct bpf_sock_addr *ctx) {
    struct place asked = {}, to = {};

    read_place4(ctx, &asked);
    return go4(ctx, take_lane(ctx, &asked, &to), &to);
}

int lane_connect6(struct bpf_sock_addr *ctx) {
    struct place asked = {}, to = {};

    read_place6(ctx, &asked);
    return go6(ctx, take_lane(ctx, &asked, &to), &to);
}
