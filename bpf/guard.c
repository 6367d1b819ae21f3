/* Keep away from a workload's programs what does not come through the agent.
 *
 * When:    a packet has arrived for a socket of a workload's cgroup (ingress),
 *          wherever it came from and whatever has translated its address.
 * Reads:   the packet, the socket that it is for, workloads (written by the agent).
 * Writes:  nothing.
 *
 * What begins a connection reaches a listening socket.  The agent's packets
 * carry its mark, which nobody on the wire can set, and no program of the node
 * without CAP_NET_ADMIN or CAP_NET_RAW.  So a program that listens on all
 * addresses of the node is not reached by another way than the one where its
 * identity's policies are applied.
 *
 * On a node that has the addresses of several workloads, a program that listens
 * on all of them would also get what is for the others: judged by their policies,
 * sent to their identity.  So what comes has to be for the workload's own address.
 *
 * Any program of the node can speak from 127.0.0.1 to the workload's own address.  So what passes as the loopback has
 * both of its ends there.
 *
 * REFUSE drops the packet.  That is the second line: what is sent to a
 * workload's own address and port is steered to the agent before, and answered.
 */
#include "capture.h"

#define ETH_P_IP_BE      __builtin_bswap16(0x0800)
#define IPV4_SOURCE      12
#define IPV4_DESTINATION 16
#define IPV6_SOURCE      8
#define IPV6_DESTINATION 24
#define LOOPBACK_BE      __builtin_bswap32(0x7f000000)
#define LOOPBACK_MASK_BE __builtin_bswap32(0xff000000)

static __u64 (*ancestor_of)(struct __sk_buff *skb, int level) = (void *)83;

static inline bool is_loopback4(__u32 ip_be) {
    return (ip_be & LOOPBACK_MASK_BE) == LOOPBACK_BE;
}

/* ::1. */
static inline bool is_loopback6(const __u32 *ip_be) {
    return !ip_be[0] && !ip_be[1] && !ip_be[2] && ip_be[3] == __builtin_bswap32(1);
}

/* The nearest workload around the socket that the packet is for. */
static inline struct workload *workload_of_socket(struct __sk_buff *skb) {
    struct workload *found = NULL;

#pragma unroll
    for (int level = 1; level <= MAX_CGROUP_DEPTH; level++) {
        __u64 id = ancestor_of(skb, level);
        struct workload *here;

        if (!id)
            break; /* that deep it is not */
        here = workloads.lookup(&id);
        if (here)
            found = here;
    }
    return found;
}

int capture_guard(struct __sk_buff *skb) {
    bool is_ip4 = skb->protocol == ETH_P_IP_BE;
    bool is_agents = (skb->mark & MARK_MASK) == AGENT_MARK;
    struct bpf_sock *sk = skb->sk;
    __u32 source[4] = {}, destination[4] = {};
    struct workload *workload;

    if (!sk || sk->state != BPF_TCP_LISTEN)
        return PASS; /* of a connection that is there, or not TCP */
    if (is_ip4) {
        if (bpf_skb_load_bytes(skb, IPV4_SOURCE, source, 4) ||
            bpf_skb_load_bytes(skb, IPV4_DESTINATION, destination, 4))
            return REFUSE; /* too short to say who sent it */
        if (is_loopback4(source[0]) && is_loopback4(destination[0]))
            return PASS; /* programs of this machine among themselves */
    } else {
        if (bpf_skb_load_bytes(skb, IPV6_SOURCE, source, 16) ||
            bpf_skb_load_bytes(skb, IPV6_DESTINATION, destination, 16))
            return REFUSE; /* too short to say who sent it */
        if (is_loopback6(source) && is_loopback6(destination))
            return PASS; /* likewise */
    }
    if (!is_agents)
        return REFUSE; /* it goes round the agent */
    workload = workload_of_socket(skb);
    if (!workload)
        return REFUSE; /* not served: whose policies would have judged it? */
    if (is_ip4)
        return destination[0] == workload->listener_ip4_be ? PASS : REFUSE; /* for another workload */
    if (destination[0] == workload->listener_ip6_be[0] && destination[1] == workload->listener_ip6_be[1] &&
        destination[2] == workload->listener_ip6_be[2] && destination[3] == workload->listener_ip6_be[3])
        return PASS;
    return REFUSE; /* for another workload */
}
