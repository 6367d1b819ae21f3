/* Tell a program that it is connected to what it asked for, and not to the agent.
 *
 * When:    getpeername(2) of a socket in a workload's cgroup (getpeername4,
 *          getpeername6), after the kernel has filled in the real answer.
 * Reads:   originals[socket cookie], written at connect(2).
 * Writes:  the answer.
 *
 * The kernel takes no other verdict than PASS.
 */
#include "capture.h"

int capture_getpeername4(struct bpf_sock_addr *ctx) {
    __u64 cookie = bpf_get_socket_cookie(ctx);
    struct original_destination *original = originals.lookup(&cookie);

    if (!original)
        return PASS; /* accepted, or not captured: the real answer is right */
    ctx->user_ip4 = original->ip_be[3];
    ctx->user_port = original->port_be;
    return PASS;
}

int capture_getpeername6(struct bpf_sock_addr *ctx) {
    __u64 cookie = bpf_get_socket_cookie(ctx);
    struct original_destination *original = originals.lookup(&cookie);

    if (!original)
        return PASS; /* accepted, or not captured: the real answer is right */
    ctx->user_ip6[0] = original->ip_be[0];
    ctx->user_ip6[1] = original->ip_be[1];
    ctx->user_ip6[2] = original->ip_be[2];
    ctx->user_ip6[3] = original->ip_be[3];
    ctx->user_port = original->port_be;
    return PASS;
}
