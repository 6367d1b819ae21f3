/* The programs that the kernel's hooks hold: each hands over to the version in force.
 *
 * When:    every time that a hook is called, whichever it is.
 * Reads:   state (written by the loader), slots (one map a hook; the loader
 *          files the program of each version there).
 * Writes:  nothing.
 *
 * Why not the programs themselves?  A new version has several hooks to take
 * over, and a link is replaced one at a time: a loader that is killed in between
 * would leave half of each.  Here all hooks look at one number, so that all of
 * them change in one moment, or none does.
 *
 * A tail call never comes back, unless there is nothing to call.
 */
#include "maps.h"

BPF_ARRAY(state, struct loader_state, 1);
BPF_PROG_ARRAY(slots, 2);

/* Of the hooks that let something through: without a program nothing gets through. */
int dispatch_or_refuse(struct bpf_sock_addr *ctx) {
    int first = 0;
    struct loader_state *loader = state.lookup(&first);

    if (loader)
        slots.call(ctx, loader->active_slot);
    return 0;
}

/* Of the hooks that only look on; the kernel takes no other answer from them. */
int dispatch_or_pass(struct bpf_sock_addr *ctx) {
    int first = 0;
    struct loader_state *loader = state.lookup(&first);

    if (loader)
        slots.call(ctx, loader->active_slot);
    return 1;
}

/* Of the hooks for packets: without a program it is the next one's business. */
int dispatch_or_next(struct __sk_buff *ctx) {
    int first = 0;
    struct loader_state *loader = state.lookup(&first);

    if (loader)
        slots.call(ctx, loader->active_slot);
    return -1; /* TCX_NEXT */
}
