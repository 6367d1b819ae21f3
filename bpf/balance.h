/* Choose an endpoint of a service at connect(2), where no proxy is needed.
 *
 * The hooks of connect.c and pod_connect.c ask this before they send a connection to the agent.
 *
 * Reads:   balance_control, balanced, balance_rows (all written by the agent).
 * Writes:  balance_counters; originals[socket cookie], for getpeername.c and flows.c.
 *
 * A service is in `balanced` once, with the numbers of its rows.  The agent writes new rows beside the old ones, and
 * then replaces the entry: a connect sees the old set or the new one.  One that comes late, and finds a row that has
 * become another's, or an entry whose memory has, notices it by the version and the address in the row.
 *
 * A draw is fair by one row and one comparison (the alias method): each row is drawn as often as any other, and gives
 * the share that is too much for its own endpoint to another one.
 */
#pragma once

#include "connect.h"

BPF_ARRAY(balance_control, struct balance_control, 1);
BPF_PERCPU_ARRAY(balance_counters, struct balance_counters, 1);
BPF_HASH(balanced, struct balanced_key, struct balanced, MAX_BALANCED);
BPF_ARRAY(balance_rows, struct balance_row, MAX_BALANCE_ROWS);

/* Written by flows.c: endpoints that could not be connected to; the agent takes them out.  An LRU: it is only a hint.
 */
BPF_TABLE("lru_hash", struct balanced_key, __u64, balance_failed, MAX_BALANCE_FAILED);

/* PASS: the agent has to do it. */
static inline int balance(struct bpf_sock_addr *ctx, const struct place *asked, struct place *to) {
    struct original_destination original = {};
    struct balance_counters *counted;
    struct balance_control *control;
    struct balanced_key key = {};
    struct balance_row *row;
    struct balanced *found;
    bool is_another, keeps;
    __u64 version;
    int first = 0;
    __u32 number;

    copy_ip(key.ip_be, asked->ip_be);
    key.port_be = asked->port_be;
    found = balanced.lookup(&key);
    if (!found || ctx->protocol != IPPROTO_TCP)
        return PASS; /* it is no such service; or multipath TCP, whose further paths would not be known */
    counted = balance_counters.lookup(&first);
    control = balance_control.lookup(&first);
    if (!counted || !control)
        return PASS; /* never so */
    version = *(volatile __u64 *)&found->version;
    number = found->first + (__u32)(((__u64)bpf_get_prandom_u32() * found->count) >> 32);
    row = balance_rows.lookup((int *)&number);
    is_another = !row || row->version != version || !is_same_ip(row->service_ip_be, key.ip_be) ||
                 row->service_port_be != key.port_be;
    if (is_another || bpf_ktime_get_ns() >= control->valid_until_ns) {
        count_one(&counted->missed);
        return PASS;
    }
    keeps = bpf_get_prandom_u32() <= row->keep;
    copy_ip(to->ip_be, keeps ? row->ip_be : row->other_ip_be);
    to->port_be = keeps ? row->port_be : row->other_port_be;
    if (*(volatile __u64 *)&row->version != version) {
        count_one(&counted->missed);
        return PASS; /* what was read since may be another's */
    }
    if (!to->port_be) {
        count_one(&counted->refused);
        return refuse(); /* nobody serves it */
    }
    copy_ip(original.ip_be, key.ip_be);
    original.port_be = key.port_be;
    original.is_direct = BALANCED;
    if (!remember(ctx, &original))
        return refuse(); /* as it would be on the way to the agent */
    count_one(&counted->balanced);
    return REDIRECT;
}
