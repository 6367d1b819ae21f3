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

#define MAX_LANES            8192  /* pairs of a pod and a destination that may take the lane now */
#define MAX_LANE_ENDPOINTS   8     /* of a destination; one with more does not take the lane */
#define MAX_LANE_CONNECTIONS 16384 /* that are open; the next goes through the agent */
#define MAX_LANE_SPILL       32768 /* ends that the ring had no room for: of all that are open, and as many waiting */
#define MAX_LANE_REFUSALS    4096  /* connections that are being refused; the oldest go first */
#define MAX_POD_ADDRESSES    4096  /* a node */

#define MAX_BALANCED       4096 /* addresses and ports of services that are balanced at connect; others go to the agent */
#define MAX_BALANCE_FAILED 1024  /* endpoints that could not be connected to; the oldest go first */
#define MAX_BALANCE_ROWS   16384 /* of all of them together: one for each endpoint, at least one for each */

#define MAX_SOCKMAP_FLOWS    8192 /* directions of connections that the kernel relays; further ones the agent does */
#define SOCKMAP_PACKET_BYTES 2048 /* what a packet may cost in a send buffer beside its bytes */

#define SOCKMAP_REDIRECTS 0 /* sockmap_flow.state; another one says why the agent has to relay it */
#define SOCKMAP_BACKLOG   1 /* the receiver does not take it as fast as it comes */
#define SOCKMAP_NO_SINK   2 /* the receiver's socket is closed */

#define LANE_SYN_SENT    1 /* flags of a lane_connection, and of a lane_end */
#define LANE_ESTABLISHED 2
#define LANE_FIN_ACKED   4  /* the server has acknowledged the client's FIN */
#define LANE_FIN_CAME    8  /* the server's FIN has arrived */
#define LANE_REFUSED     16 /* what had been allowed was so no longer when the SYN was to be sent */

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

#define TO_THE_AGENT 0
#define ON_THE_LANE  1 /* to the application of another pod (lane_connect.c) */
#define BALANCED     2 /* to an endpoint of a service that needs no proxy (balance.h) */

/* originals[socket cookie] and flows[flow_key]: where a connection was going. */
struct original_destination {
    __u32 ip_be[4];
    __u32 port_be;
    __u32 is_direct; /* TO_THE_AGENT, or why nobody will accept it for the agent */
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

/* lane_control[0]: written by the agent.  A lane of another generation is none. */
struct lane_control {
    __u64 generation;     /* 0: no lanes */
    __u64 valid_until_ns; /* CLOCK_MONOTONIC */
    __u64 collected;      /* of the spilled ends: how many the agent has taken */
};

/* lane_counters[0]: written by the programs. */
struct lane_counters {
    __u64 taken;   /* connections */
    __u64 full;    /* that went through the agent, because a map was full */
    __u64 refused; /* see LANE_REFUSED */
    __u64 spilled; /* ends that the ring had no room for */
    __u64 lost;    /* ends that nothing had room for */
};

/* Key of lanes: a pod, and where its programs connect to. */
struct lane_key {
    __u64 netns_cookie;
    __u32 ip_be[4];
    __u32 port_be;
    __u32 reserved;
};

/* lanes[lane_key]: whom the agent lets the pod connect to there, without it.  Never changed, only made and deleted. */
struct lane {
    __u64 generation;
    __u64 grants[8]; /* by endpoint: the agent's number for who may talk to whom */
    __u32 ip_be[32]; /* by endpoint, four words each */
    __u32 port_be[8];
    __u32 weights[8]; /* each with all before it; the last one is the sum */
    __u32 count;
    __u32 reserved;
};

/* lane_connections[socket cookie of the client]: one that took the lane. */
struct lane_connection {
    __u64 generation;
    __u64 grant;
    __u64 netns_cookie; /* of the client */
    __u64 began_ns;     /* CLOCK_MONOTONIC */
    __u64 established_ns;
    __u32 original_ip_be[4];
    __u32 original_port_be;
    __u32 flags;
    __u32 client_ip_be[4]; /* zeros before the SYN */
    __u32 server_ip_be[4];
    __u32 client_port;
    __u32 server_port;
};

/* In the ring, or in lane_spill[socket cookie]: the end of one.  Numbers are the client's TCP's own. */
struct lane_end {
    __u64 cookie;
    __u64 grant;
    __u64 netns_cookie;
    __u64 began_ns;
    __u64 established_ns;
    __u64 ended_ns;
    __u64 acked_bytes;    /* with SYN and FIN */
    __u64 received_bytes; /* with FIN */
    __u32 original_ip_be[4];
    __u32 original_port_be;
    __u32 flags;
    __u32 client_ip_be[4];
    __u32 server_ip_be[4];
    __u32 client_port;
    __u32 server_port;
    __u32 error; /* errno of the socket; 0: the client ended it */
    __u32 reserved;
};

/* Key of pod_addresses, whose values are the interface on the node that the address is behind. */
struct pod_address {
    __u32 ip_be[4];
};

/* balance_control[0]: written by the agent. */
struct balance_control {
    __u64 valid_until_ns; /* CLOCK_MONOTONIC; later than that nobody has looked after the rows for long */
};

/* balance_counters[0]: written by the programs, each processor its own. */
struct balance_counters {
    __u64 balanced; /* connections */
    __u64 refused;  /* because nobody serves them */
    __u64 missed;   /* that went to the agent, because what was found was being replaced, or is too old */
};

/* Key of balanced: a cluster IP and port; and of balance_failed: those of an endpoint. */
struct balanced_key {
    __u32 ip_be[4];
    __u32 port_be;
};

/* balanced[balanced_key]: which rows are a service's.  Replaced as a whole. */
struct balanced {
    __u64 version; /* no two are the same */
    __u32 first;
    __u32 count;
};

/* balance_rows[n]: where connections may go.  It says whose it is: whoever finds another's goes to the agent. */
struct balance_row {
    __u64 version;
    __u32 service_ip_be[4];
    __u32 service_port_be;
    __u32 keep;     /* of 2^32 draws that come to this row, how many take `ip_be`; the others `other_ip_be` */
    __u32 ip_be[4]; /* zeros: nobody serves it */
    __u32 other_ip_be[4];
    __u32 port_be;
    __u32 other_port_be;
};

/* sockmap_flows[sockmap_slots[socket cookie]]: one direction of a connection that the kernel relays. */
struct sockmap_flow {
    __u64 cookie;         /* of the socket that it comes from; written by the agent, as the next three */
    __u64 written_before; /* bytes that the other socket had been given when the kernel took over */
    __u64 consumed;       /* bytes of `passed` that the agent has given to the other socket */
    __u64 wanted;         /* 1: the kernel is to relay again as soon as all that it has passed is consumed */
    __u64 redirected;     /* bytes that the kernel has relayed; written by the program, as the next three */
    __u64 passed;         /* bytes that were left to the agent */
    __u64 state;          /* SOCKMAP_REDIRECTS, or why not */
    __u64 packets;        /* handed on since all of them had arrived in the other socket */
};

/* In the ring sockmap_demotions: a direction is the agent's from now on. */
struct sockmap_demotion {
    __u64 cookie;
    __u32 slot;
    __u32 reason;
};
