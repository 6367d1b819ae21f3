/* Forget a socket that was to take the lane, and is closed before it has sent a SYN: no TCP event tells of it.
 *
 * When:    the last close(2) of any IP socket of the node (sock_release of the root cgroup).
 * Reads:   nothing.
 * Writes:  lane_connections: the entry goes, unless TCP still has something to do; then lane_flows.c takes it out.
 */
#include "lane.h"

int lane_release(struct bpf_sock *ctx) {
    __u64 cookie = bpf_get_socket_cookie(ctx);
    struct lane_connection *connection = lane_connections.lookup(&cookie);

    if (connection && !(connection->flags & LANE_SYN_SENT))
        lane_connections.delete(&cookie);
    return PASS;
}
