/* What the programs of the capture inside pods share: maps, and whose address is whose. */
#pragma once

#include "connect.h"

/* Written by the agent: a pod when it is served, by the cookie of its network namespace. */
BPF_HASH(pods, __u64, struct pod, MAX_PODS);

/* Connections of a pod to itself, the agent's to the application among them, that
 * are not accepted yet.  Not an LRU: what is forgotten here goes to the agent. */
BPF_HASH(passes, struct pass_key, __u64, MAX_PASSES);

/* Connections on the lane that were allowed at connect(2) and are no longer (lane_flows.c), by their client's cookie.
 * An LRU, because it has to have room. */
BPF_TABLE("lru_hash", struct pass_key, __u64, refusals, MAX_LANE_REFUSALS);

/* The address that a pod has of the same IP version as `like_be`; false, and zeros, if it has none. */
static inline bool own_ip(const struct pod *pod, const __u32 *like_be, __u32 *own_be) {
    if (is_ip4(like_be)) {
        set_ip4(own_be, pod->ip4_be);
        return pod->ip4_be;
    }
    copy_ip(own_be, pod->ip6_be);
    return pod->ip6_be[0];
}
