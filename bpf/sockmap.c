/* Relay a plaintext connection inside the kernel: what arrives on one socket goes out of the other one.
 *
 * When:    data, or a FIN, has arrived on a socket that is in sockmap_sources (sk_skb, stream verdict): once for each
 *          packet, under the lock of that socket, so never twice at a time for one of them.
 * Reads:   sockmap_slots[cookie of the socket] and sockmap_sinks[the same], both written by the agent before the socket
 *          is put into sockmap_sources; the kernel takes closed sockets out of the two maps of sockets.
 * Reads and writes: sockmap_flows[slot], one direction.  The agent writes its first members, this program the others.
 * Writes:  sockmap_demotions, a ring that the agent reads.
 *
 * The kernel's queue between two sockets knows no bound: a receiver that does not read would cost the node its memory.
 * So a packet is handed on only while the send buffer of the other socket has room for it and for all that is still
 * on the way into it: then that queue is always about to be empty.  Else this direction is the agent's from now on
 * (SK_PASS): what it does not read stays with the socket, whose TCP window closes, as without us.
 *
 * It is handed back when the agent has passed on everything that was left to it: `wanted` is set, and `consumed` is
 * what we have `passed`.  Nobody else adds to `passed`, so nothing can come in between.
 */
#include "maps.h"

/* bcc knows no map that has both of these calls.  The loader makes SOCKHASHes of these two (bpf/plan.py). */
struct sockets_by_cookie {
    __u64 key;
    struct bpf_sock leaf;
    struct bpf_sock *(*lookup)(__u64 *cookie);
    int (*sk_redirect_hash)(void *skb, void *cookie, __u64 flags);
    __u32 max_entries;
    int flags;
};

/* Where what arrives on a socket goes to. */
__attribute__((section("maps/hash"))) struct sockets_by_cookie sockmap_sinks = {.max_entries = MAX_SOCKMAP_FLOWS};

/* Whose packets we are called for.  A socket is put into sockmap_sinks first: what came for one that is not there yet
 * would be the agent's. */
BPF_HASH(sockmap_sources, __u64, struct bpf_sock, MAX_SOCKMAP_FLOWS);

BPF_HASH(sockmap_slots, __u64, __u32, MAX_SOCKMAP_FLOWS);

/* The agent has them in its memory: it looks at the counters whenever it likes. */
#define MMAPABLE 1024
BPF_F_TABLE("array", int, struct sockmap_flow, sockmap_flows, MAX_SOCKMAP_FLOWS, MMAPABLE);

#ifndef PAGE_SIZE
#define PAGE_SIZE 4096 /* for bcc; the ring is 512 KiB, room for one entry of each direction */
#endif
BPF_RINGBUF_OUTPUT(sockmap_demotions, 128);

static void *(*as_tcp_socket)(void *socket) = (void *)137;
static int (*let_go)(struct bpf_sock *socket) = (void *)86;

/* The offsets come from the running kernel (plan.py, btf.py). */
#define TCP32(tcp, offset) (*(volatile __u32 *)((char *)(tcp) + (offset)))
#define TCP64(tcp, offset) (*(volatile __u64 *)((char *)(tcp) + (offset)))

/* Whether the send buffer has room for one more packet of `bytes`. */
static inline bool has_room(struct sockmap_flow *flow, void *tcp, __u64 bytes) {
    /* In this order: what moves on while we look is counted twice rather than not at all. */
    __u64 acked = TCP64(tcp, TCP_BYTES_ACKED_OFFSET);
    __u32 unacked = TCP32(tcp, TCP_WRITE_SEQ_OFFSET) - TCP32(tcp, TCP_SND_UNA_OFFSET);
    __u64 buffered = TCP32(tcp, SOCK_WMEM_QUEUED_OFFSET);
    __u64 most = TCP32(tcp, SOCK_SNDBUF_OFFSET);
    __s64 on_the_way = (__s64)(flow->redirected + flow->consumed - (acked + unacked - flow->written_before));

    if (on_the_way <= 0) { /* less than 0 if an ACK came in while we looked */
        on_the_way = 0;
        flow->packets = 0;
    }
    /* A quarter is left for what the buffer needs beside the bytes. */
    return buffered + (__u64)on_the_way + bytes + (flow->packets + 1) * SOCKMAP_PACKET_BYTES <= most - most / 4;
}

/* Leave this packet and all that follow to the agent. */
static inline int demote(struct sockmap_flow *flow, __u32 slot, __u64 bytes, __u32 reason) {
    struct sockmap_demotion demotion = {};

    flow->state = reason;
    flow->passed += bytes;
    demotion.cookie = flow->cookie;
    demotion.slot = slot;
    demotion.reason = reason;
    sockmap_demotions.ringbuf_output(&demotion, sizeof(demotion), 0); /* if not: the agent looks twice a second */
    return SK_PASS;
}

int sockmap_verdict(struct __sk_buff *skb) {
    __u64 bytes = *(volatile __u32 *)&skb->len;
    __u64 cookie = bpf_get_socket_cookie(skb);
    struct sockmap_flow *flow;
    struct bpf_sock *sink;
    __u32 *filed, slot;
    bool fits = false;
    void *tcp;
    int index;

    if (!bytes)
        return SK_DROP; /* a FIN: handed on, it would break the other socket.  The agent hears of it, and ends that one
                         */
    filed = sockmap_slots.lookup(&cookie);
    if (!filed)
        return SK_PASS; /* not one of a running agent: nobody reads it */
    slot = *filed;
    index = (int)slot;
    flow = sockmap_flows.lookup(&index);
    if (!flow)
        return SK_PASS; /* there is no such slot; the verifier wants it asked */

    if (flow->state != SOCKMAP_REDIRECTS) {
        if (!flow->wanted || flow->passed != flow->consumed) {
            flow->passed += bytes;
            return SK_PASS; /* the agent's, which has not passed on yet all that was left to it */
        }
        flow->state = SOCKMAP_REDIRECTS;
    }

    sink = sockmap_sinks.lookup(&cookie);
    if (!sink)
        return demote(flow, slot, bytes, SOCKMAP_NO_SINK); /* closed: the agent knows, or will in a moment */
    tcp = as_tcp_socket(sink);
    if (tcp)
        fits = has_room(flow, tcp, bytes);
    let_go(sink);
    if (!fits)
        return demote(flow, slot, bytes, SOCKMAP_BACKLOG); /* its peer does not read as fast as this one sends */
    if (sockmap_sinks.sk_redirect_hash(skb, &cookie, 0) != SK_PASS)
        return demote(flow, slot, bytes, SOCKMAP_NO_SINK); /* closed between the two looks */
    flow->packets++;
    flow->redirected += bytes;
    return SK_PASS; /* with a socket to redirect to, this means: there */
}
