/* Send what a workload connects to the agent instead, and remember where it was going.
 *
 * When:    connect(2) of a TCP socket in a workload's cgroup (connect4, connect6),
 *          before the kernel looks for a route.  Also for MSG_FASTOPEN.
 * Reads:   workloads, listeners (both written by the agent); see also balance.h.
 * Writes:  originals[socket cookie].
 *
 * Whatever is not sure ends in ECONNREFUSED.  PASS is for what is not to be
 * captured, and each says why.
 */
#include "balance.h"

static __u64 (*ancestor_cgroup_id)(int level) = (void *)123;
static int (*bind_to)(struct bpf_sock_addr *ctx, void *address, int bytes) = (void *)64;

struct address4 {
    __u16 family;
    __u16 port_be;
    __u32 ip_be;
    __u64 zero;
};

struct address6 {
    __u16 family;
    __u16 port_be;
    __u32 flow;
    __u32 ip_be[4];
    __u32 scope;
};

/* The nearest workload around the calling process, which may be in a cgroup of its own inside. */
static inline struct workload *workload_of_caller(__u64 *cgroup_id) {
    struct workload *found = NULL;

#pragma unroll
    for (int level = 1; level <= MAX_CGROUP_DEPTH; level++) {
        __u64 id = ancestor_cgroup_id(level);
        struct workload *here;

        if (!id)
            break; /* that deep it is not */
        here = workloads.lookup(&id);
        if (here) {
            found = here;
            *cgroup_id = id;
        }
    }
    return found;
}

/* A workload speaks to others from its own address, as the agent does for it: the node has more of them.  A socket that
 * its program has bound stays as it is. */
static inline void speak_from(struct bpf_sock_addr *ctx, const struct workload *workload, const struct place *to,
                              bool is_ip4_socket) {
    struct address4 from4 = {.family = AF_INET};
    struct address6 from6 = {.family = AF_INET6};

    if (is_ip4_socket) {
        from4.ip_be = workload->listener_ip4_be;
        if (from4.ip_be)
            bind_to(ctx, &from4, sizeof(from4));
        return;
    }
    if (is_ip4(to->ip_be)) {
        if (!workload->listener_ip4_be)
            return;
        set_ip4(from6.ip_be, workload->listener_ip4_be);
    } else {
        if (!workload->listener_ip6_be[0])
            return;
        copy_ip(from6.ip_be, workload->listener_ip6_be);
    }
    bind_to(ctx, &from6, sizeof(from6));
}

static inline int capture(struct bpf_sock_addr *ctx, const struct place *asked, struct place *to, bool is_ip4_socket) {
    struct original_destination original = {};
    struct listener_key listener = {};
    struct workload *workload;
    int decided;

    if (!IS_TCP(ctx))
        return PASS; /* UDP and all others are not ours */
    if (is_loopback(asked->ip_be))
        return PASS; /* programs of this machine among themselves */
    if (mark_of(ctx) == AGENT_MARK)
        return PASS; /* or the agent would talk to itself for ever */

    workload = workload_of_caller(&original.cgroup_id);
    if (!workload)
        return refuse(); /* the socket is a workload's, the process is none's, or is not served yet */
    if (netns_cookie_of_caller(ctx) != workload->netns_cookie)
        return refuse(); /* the agent serves another network namespace */
    decided = balance(ctx, asked, to);
    if (decided != PASS) {
        if (decided == REDIRECT)
            speak_from(ctx, workload, to, is_ip4_socket);
        return decided; /* no proxy is needed */
    }
    if (is_ip4_socket && !workload->listener_ip4_be)
        return refuse(); /* an IPv4 socket can not reach a workload's agent that has no IPv4 address */
    /* A mapped destination prefers IPv4, as the connection would have been; an IPv6 socket can do both. */
    if (workload->listener_ip4_be && (is_ip4(asked->ip_be) || !workload->listener_ip6_be[0]))
        set_ip4(listener.ip_be, workload->listener_ip4_be);
    else
        copy_ip(listener.ip_be, workload->listener_ip6_be);
    listener.port_be = workload->listener_port_be;
    return go_to_agent(ctx, asked, &listener, &original, to);
}

int capture_connect4(struct bpf_sock_addr *ctx) {
    struct place asked = {}, to = {};

    read_place4(ctx, &asked);
    return go4(ctx, capture(ctx, &asked, &to, true), &to);
}

int capture_connect6(struct bpf_sock_addr *ctx) {
    struct place asked = {}, to = {};

    read_place6(ctx, &asked);
    return go6(ctx, capture(ctx, &asked, &to, false), &to);
}
