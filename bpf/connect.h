/* What the hooks of connect(2) share: where a program wants to go, and sending it somewhere else.
 *
 * A hook for IPv4 may touch other fields of its context than one for IPv6, so each reads and writes its own; what is
 * decided in between knows addresses of 16 bytes only.
 */
#pragma once

#include "capture.h"

#define REDIRECT                                                                                                       \
    2 /* of what is decided, besides PASS and REFUSE: let it connect to another place than it asked for                \
       */

struct place {
    __u32 ip_be[4];
    __u32 port_be;
};

static __u64 (*netns_cookie_of_caller)(struct bpf_sock_addr *ctx) = (void *)122;
static int (*get_option)(struct bpf_sock_addr *ctx, int level, int name, void *value, int bytes) = (void *)57;
static int (*set_retval)(int retval) = (void *)187;
static int (*release)(struct bpf_sock *socket) = (void *)86;

/* Without an errno of its own a refused connect(2) is EPERM, which programs take for a firewall's. */
static inline int refuse(void) {
    set_retval(-ECONNREFUSED);
    return REFUSE;
}

/* Also of a processor's own counter: who counts may be preempted by somebody who counts. */
static inline void count_one(__u64 *counter) {
    __sync_fetch_and_add(counter, 1);
}

static inline bool is_ip4(const __u32 *ip_be) {
    return !ip_be[0] && !ip_be[1] && ip_be[2] == MAPPED_PREFIX_BE;
}

static inline bool is_same_ip(const __u32 *one_be, const __u32 *other_be) {
    return one_be[0] == other_be[0] && one_be[1] == other_be[1] && one_be[2] == other_be[2] && one_be[3] == other_be[3];
}

static inline void copy_ip(__u32 *to_be, const __u32 *from_be) {
    to_be[0] = from_be[0];
    to_be[1] = from_be[1];
    to_be[2] = from_be[2];
    to_be[3] = from_be[3];
}

static inline void set_ip4(__u32 *to_be, __u32 ip4_be) {
    to_be[0] = to_be[1] = 0;
    to_be[2] = MAPPED_PREFIX_BE;
    to_be[3] = ip4_be;
}

/* 127.0.0.0/8 and ::1. */
static inline bool is_loopback(const __u32 *ip_be) {
    if (is_ip4(ip_be))
        return (ip_be[3] & __builtin_bswap32(0xff000000)) == __builtin_bswap32(0x7f000000);
    return !ip_be[0] && !ip_be[1] && !ip_be[2] && ip_be[3] == __builtin_bswap32(1);
}

static inline __u32 mark_of(struct bpf_sock_addr *ctx) {
    __u32 mark = 0;

    get_option(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
    return mark & MARK_MASK;
}

/* Whether the agent listens there.  Without this question another program could take the port of an agent that is
 * down, and with it what the workloads send. */
static inline bool is_listening(struct listener_key *listener) {
    struct bpf_sock *socket = listeners.lookup(listener);

    if (!socket)
        return false;
    release(socket);
    return true;
}

static inline bool remember(struct bpf_sock_addr *ctx, struct original_destination *original) {
    __u64 cookie = bpf_get_socket_cookie(ctx);

    return originals.update(&cookie, original) == 0; /* not 0: the map is full */
}

/* To the agent's listener, which is told where the connection was going. */
static inline int go_to_agent(struct bpf_sock_addr *ctx, const struct place *asked, struct listener_key *listener,
                              struct original_destination *original, struct place *to) {
    if (!is_listening(listener))
        return refuse(); /* the agent is down */
    copy_ip(original->ip_be, asked->ip_be);
    original->port_be = asked->port_be;
    if (!remember(ctx, original))
        return refuse(); /* the agent would not know what to do with it */
    copy_ip(to->ip_be, listener->ip_be);
    to->port_be = listener->port_be;
    return REDIRECT;
}

static inline void read_place4(struct bpf_sock_addr *ctx, struct place *asked) {
    set_ip4(asked->ip_be, ctx->user_ip4);
    asked->port_be = ctx->user_port;
}

static inline void read_place6(struct bpf_sock_addr *ctx, struct place *asked) {
    asked->ip_be[0] = ctx->user_ip6[0];
    asked->ip_be[1] = ctx->user_ip6[1];
    asked->ip_be[2] = ctx->user_ip6[2];
    asked->ip_be[3] = ctx->user_ip6[3];
    asked->port_be = ctx->user_port;
}

/* The verdict for the kernel, when something was decided. */
static inline int go4(struct bpf_sock_addr *ctx, int decided, const struct place *to) {
    if (decided != REDIRECT)
        return decided;
    ctx->user_ip4 = to->ip_be[3];
    ctx->user_port = to->port_be;
    return PASS;
}

static inline int go6(struct bpf_sock_addr *ctx, int decided, const struct place *to) {
    if (decided != REDIRECT)
        return decided;
    ctx->user_ip6[0] = to->ip_be[0];
    ctx->user_ip6[1] = to->ip_be[1];
    ctx->user_ip6[2] = to->ip_be[2];
    ctx->user_ip6[3] = to->ip_be[3];
    ctx->user_port = to->port_be;
    return PASS;
}
