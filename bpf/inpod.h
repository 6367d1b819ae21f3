/* What the programs of the capture inside pods share: maps. */
#pragma once

#include "capture.h"

/* Written by the agent: a pod when it is served, by the cookie of its network namespace. */
BPF_HASH(pods, __u64, struct pod, MAX_PODS);

/* Connections of a pod to itself, the agent's to the application among them, that
 * are not accepted yet.  Not an LRU: what is forgotten here goes to the agent. */
BPF_HASH(passes, struct pass_key, __u64, MAX_PASSES);

/* Connections on the lane that were allowed at connect(2) and are no longer (lane_flows.c), by their client's cookie.
 * An LRU, because it has to have room. */
BPF_TABLE("lru_hash", struct pass_key, __u64, refusals, MAX_LANE_REFUSALS);
