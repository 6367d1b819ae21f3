/* Every structure that the programs and the agent share, once.
 *
 * Python reads sizes and offsets from this file (bpf/abi.py), and compares them
 * at load with what the compiler made of it.  So it holds only what that reader
 * knows: fixed-width integers, arrays of them, and constants; no padding that
 * is not written down.
 *
 * Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d.  `_be` is
 * network order, whatever has no ending is the host's.
 *
 * A change of this file makes the maps of an older version useless to the new
 * one: the loader then makes new ones.
 */
#pragma once

#define AGENT_MARK  0x539 /* of the agent's own sockets (SO_MARK): never captured */
#define RETURN_MARK 0x111 /* of its sockets towards the application of a pod, and of the answers */
#define MARK_MASK   0xfff

#define OUTBOUND_PORT 15001 /* where the agent listens inside pods */
#define INBOUND_PORT  15006
#define TUNNEL_PORT   15008

#define MAX_CGROUP_DEPTH 16     /* below the root; deeper processes belong to what is above them */
#define MAX_WORKLOADS    1024   /* a node */
#define MAX_PODS         1024   /* a node */
#define MAX_PASSES       65536  /* connections inside pods that are not accepted yet */
#define MAX_LISTENERS    4096   /* addresses of them */
#define MAX_CAPTURED     131072 /* sockets that are captured at one time; the next is refused */
#define MAX_UNACCEPTED   65536  /* connections that the agent has not accepted yet */

/* state[0]: which of the two slots is in force.  Written by the loader, read by
 * the dispatchers (active_slot only) and by the agent. */
struct loader_state {
    __u32 active_slot; /* 0 or 1 */
    __u32 reserved;
    __u64 abi[2];        /* by slot: the first 8 bytes of SHA-256 of this file */
    __u64 generation[2]; /* by slot: counts the loads */
};

/* features[n]: what the loader made of a row of its plan.  UTF-8, NUL at the end. */
struct feature_state {
    __u32 on;
    __u8 name[28];
    __u8 reason[224]; /* why it is off */
};

/* workloads[cgroup id]: where the agent listens for what a workload opens.
 * Written by the agent. */
struct workload {
    __u32 listener_ip4_be;    /* 0: it has none */
    __u32 listener_port_be;   /* in the lower 16 bits */
    __u32 listener_ip6_be[4]; /* zeros: it has none */
    __u64 netns_cookie;       /* of the namespace that the listeners are in */
};

/* Key of listeners: a listening socket of the agent. */
struct listener_key {
    __u32 ip_be[4];
    __u32 port_be;
};

/* originals[socket cookie] and flows[flow_key]: where a connection was going. */
struct original_destination {
    __u32 ip_be[4];
    __u32 port_be;
    __u32 reserved;
    __u64 cgroup_id; /* of the workload that opened it */
};

/* Key of flows: a connection as the agent sees it when it accepts it. */
struct flow_key {
    __u64 netns_cookie;
    __u32 client_ip_be[4];
    __u32 listener_ip_be[4];
    __u32 client_port;
    __u32 listener_port;
};

/* pods[netns cookie]: the addresses of a pod.  Written by the agent, when it listens at all of them. */
struct pod {
    __u32 ip4_be;    /* 0: it has none */
    __u32 ip6_be[4]; /* zeros: it has none */
};

/* Key of passes: a connection of a pod to itself, as the client has it. */
struct pass_key {
    __u32 client_ip_be[4];
    __u32 server_ip_be[4];
    __u32 client_port;
    __u32 server_port;
};
