/* What the programs of the same-node lane share: maps. */
#pragma once

#include "inpod.h"

/* Written by the agent; an array of one. */
BPF_ARRAY(lane_control, struct lane_control, 1);

/* Counted here; the agent reads it. */
BPF_ARRAY(lane_counters, struct lane_counters, 1);

/* Written by the agent.  An entry is deleted only together with its generation: the memory of a deleted one may be
 * another's while a program still reads it. */
BPF_HASH(lanes, struct lane_key, struct lane, MAX_LANES);

/* By the socket cookie of the client.  Not an LRU: what is forgotten here has no access record. */
BPF_HASH(lane_connections, __u64, struct lane_connection, MAX_LANE_CONNECTIONS);

/* How connections have ended, for the agent; what the ring has no room for is in the other one. */
#ifndef PAGE_SIZE
#define PAGE_SIZE 4096 /* for bcc; the ring is 1 MiB, which is right for pages of every size */
#endif
BPF_RINGBUF_OUTPUT(lane_ends, 256);
BPF_HASH(lane_spill, __u64, struct lane_end, MAX_LANE_SPILL);

static inline struct lane_counters *counters(void) {
    int first = 0;

    return lane_counters.lookup(&first);
}
