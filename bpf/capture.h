/* What the programs of the cgroup capture share: maps, and the calls that bcc has no name for. */
#pragma once

#include "maps.h"

#define PASS   1
#define REFUSE 0

#define ECONNREFUSED  111
#define SOCK_STREAM   1
#define IPPROTO_TCP   6
#define IPPROTO_MPTCP 262
#define AF_INET       2
#define AF_INET6      10
#define SOL_SOCKET    1
#define SO_MARK       36

/* Multipath TCP is TCP to whoever looks at the packets: it must not be a way around us. */
#define IS_TCP(ctx) ((ctx)->type == SOCK_STREAM && ((ctx)->protocol == IPPROTO_TCP || (ctx)->protocol == IPPROTO_MPTCP))

#define MAPPED_PREFIX_BE __builtin_bswap32(0xffff) /* the third word of ::ffff:a.b.c.d */

/* Written by the agent: a workload when it is served. */
BPF_HASH(workloads, __u64, struct workload, MAX_WORKLOADS);

/* Written by the agent: its listening sockets.  The kernel takes one out when it
 * is closed, also when the agent is killed.  The loader makes a SOCKHASH of it
 * (bpf/plan.py), for which bcc has no look-up. */
BPF_HASH(listeners, struct listener_key, struct bpf_sock, MAX_LISTENERS);

/* Where a socket wanted to go.  Written at connect(2), read until it is closed.
 * Not an LRU: what is forgotten here would be a connection without destination. */
BPF_HASH(originals, __u64, struct original_destination, MAX_CAPTURED);

/* The same, by what the agent sees when it accepts; taken out by it then. */
BPF_HASH(flows, struct flow_key, struct original_destination, MAX_UNACCEPTED);
