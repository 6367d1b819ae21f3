/* Forget a socket that is closed: also one whose connect(2) failed, of which no TCP event tells.
 *
 * When:    the last close(2) of an IP socket in a workload's cgroup (sock_release).
 * Reads:   nothing.
 * Writes:  originals: the entry goes.  Only getpeername(2) would still need it,
 *          and there is no descriptor left to ask it with.
 */
#include "capture.h"

int capture_release(struct bpf_sock *ctx) {
    __u64 cookie = bpf_get_socket_cookie(ctx);

    originals.delete(&cookie);
    return PASS;
}
