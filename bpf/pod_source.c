/* Drop what a pod sends with the address of another pod of this node.
 *
 * When:    a packet comes out of a pod, at the node's end of its veth (TCX ingress).
 * Reads:   pod_addresses, written by the agent.
 * Writes:  nothing.
 *
 * Policies believe the address of whoever comes in plaintext; and the lane, with which a SYN with the addresses and
 * ports of a connection that is just being made would reach the application.  So an address of a pod is believed only
 * of the interface that the pod is behind.  All other addresses are none of our business.
 */
#include "maps.h"

#define TO_THE_NEXT (-1) /* TCX_NEXT */
#define DROP        2    /* TCX_DROP */

#define ETHER_TYPE_IPV4 __builtin_bswap16(0x0800)
#define ETHER_TYPE_IPV6 __builtin_bswap16(0x86dd)
#define ETHER_BYTES     14
#define IPV4_SOURCE_AT  12
#define IPV6_SOURCE_AT  8
#define MAPPED_PREFIX   __builtin_bswap32(0xffff) /* the third word of ::ffff:a.b.c.d */

BPF_HASH(pod_addresses, struct pod_address, __u32, MAX_POD_ADDRESSES);

int pod_source(struct __sk_buff *skb) {
    struct pod_address address = {};
    __u32 *interface;
    int failed;

    if (skb->protocol == ETHER_TYPE_IPV4) {
        address.ip_be[2] = MAPPED_PREFIX;
        failed = bpf_skb_load_bytes(skb, ETHER_BYTES + IPV4_SOURCE_AT, &address.ip_be[3], 4);
    } else if (skb->protocol == ETHER_TYPE_IPV6) {
        failed = bpf_skb_load_bytes(skb, ETHER_BYTES + IPV6_SOURCE_AT, address.ip_be, 16);
    } else {
        return TO_THE_NEXT; /* ARP and others carry no connections */
    }
    if (failed)
        return DROP; /* too short to be one */
    interface = pod_addresses.lookup(&address);
    if (interface && *interface != skb->ifindex)
        return DROP; /* forged */
    return TO_THE_NEXT;
}
