/*
 * Timers of a VM: one thread and a heap of absolute deadlines of CLOCK_MONOTONIC. What fires runs on
 * that thread and must be short: it sets a flag and kicks a vCPU, or works a chip under its lock.
 *
 * A vCPU timer need not be exact here: the vCPU itself judges by its own clock whether its deadline
 * has come and re-arms otherwise; the thread only makes it look.
 *
 * Locks: `lock` of the set guards the heap and every timer's fields. Not held while a timer fires, so
 * a timer may re-arm itself, and may be armed with a chip's lock held.
 */
#ifndef STRATA_SOFTKVM_TIMER_H
#define STRATA_SOFTKVM_TIMER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

struct kvm_timers;

/* Embedded in its owner. */
struct kvm_timer {
    void (*fire)(void *opaque); /* on the timer thread */
    void *opaque;
    uint64_t deadline; /* ns of CLOCK_MONOTONIC */
    uint32_t slot;     /* in the heap + 1; 0: not armed */
};

/* Start the thread (all signals blocked in it). 0 with *out, -ENOMEM or -EAGAIN. */
int kvm_timers_new(struct kvm_timers **out) must_check;

/* Stop and join the thread: nothing fires any more; arming and cancelling still work. Then free.
 * Null is allowed. */
void kvm_timers_stop(struct kvm_timers *set);
void kvm_timers_free(struct kvm_timers *set);

void kvm_timer_init(struct kvm_timer *t, void (*fire)(void *opaque), void *opaque);

/* (Re-)arm for the absolute deadline (a past one fires at once). Any thread. 0, or -ENOMEM when the
 * heap cannot grow: kvm_timers_reserve() makes sure that it need not. */
int kvm_timer_arm(struct kvm_timers *set, struct kvm_timer *t, uint64_t deadline);

/* Room for `more` further timers, so that arming them cannot fail. 0 or -ENOMEM. */
int kvm_timers_reserve(struct kvm_timers *set, unsigned more) must_check;

/* Disarm. It may be firing still; the _sync form waits until it is not (not from the timer itself, nor
 * with a lock held that it takes). */
void kvm_timer_cancel(struct kvm_timers *set, struct kvm_timer *t);
void kvm_timer_cancel_sync(struct kvm_timers *set, struct kvm_timer *t);

/* Now, in ns of CLOCK_MONOTONIC. */
uint64_t kvm_timer_now(void);

#endif
