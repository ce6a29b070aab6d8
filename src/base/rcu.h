/*
 * Read-copy-update, over liburcu's bulletproof flavour: threads need no registration, because a
 * library is called from threads it never saw start. Read sections nest, cost about a nanosecond at
 * each end, and may enclose callbacks. Nothing here waits inside a read section.
 *
 * Publication: a writer fills an object, then stores the pointer with base_rcu_publish(); a reader
 * loads it with base_rcu_load() inside a section (partners: release and acquire). Reclamation:
 * unlink, then base_rcu_call(); the callback runs in liburcu's worker thread after all sections that
 * could see the object have ended.
 *
 * ThreadSanitizer does not see liburcu's barriers; the two annotations tell it what they order.
 */
#ifndef STRATA_BASE_RCU_H
#define STRATA_BASE_RCU_H

#include <stdbool.h>

#if defined(__SANITIZE_THREAD__)
#define BASE_RCU_TSAN 1
#elif defined(__SANITIZE_ADDRESS__)
#define BASE_RCU_CALLS 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define BASE_RCU_TSAN 1
#elif __has_feature(address_sanitizer) || __has_feature(undefined_behavior_sanitizer)
#define BASE_RCU_CALLS 1
#endif
#endif

/* Inline the two read-side functions, as liburcu's licence allows; not for the address and undefined
 * behaviour sanitizers, which object to how liburcu aligns its own records. */
#ifndef BASE_RCU_CALLS
#define _LGPL_SOURCE 1
#endif
#pragma push_macro("always_inline") /* base/compiler.h has it, liburcu means the attribute */
#undef always_inline
#include <urcu/urcu-bp.h>
#pragma pop_macro("always_inline")

#ifdef BASE_RCU_TSAN
void __tsan_acquire(void *addr);
void __tsan_release(void *addr);
#define base_rcu_tsan_acquire() __tsan_acquire(&urcu_bp_gp)
#define base_rcu_tsan_release() __tsan_release(&urcu_bp_gp)
#else
#define base_rcu_tsan_acquire() ((void)0)
#define base_rcu_tsan_release() ((void)0)
#endif

#define base_rcu_load(pp)        __atomic_load_n(pp, __ATOMIC_ACQUIRE)
#define base_rcu_publish(pp, v)  __atomic_store_n(pp, v, __ATOMIC_RELEASE)

static inline void base_rcu_read_lock(void)
{
    urcu_bp_read_lock();
}

static inline void base_rcu_read_unlock(void)
{
    base_rcu_tsan_release();
    urcu_bp_read_unlock();
}

static inline bool base_rcu_in_section(void)
{
    return urcu_bp_read_ongoing() != 0;
}

/* Wait for all sections that are open now. Not inside a section: that would wait for itself. */
static inline void base_rcu_synchronize(void)
{
    urcu_bp_synchronize_rcu();
    base_rcu_tsan_acquire();
}

/* Run fn(head) after a grace period, in liburcu's worker thread; fn begins with
 * base_rcu_callback_begin(). */
static inline void base_rcu_call(struct rcu_head *head, void (*fn)(struct rcu_head *))
{
    base_rcu_tsan_release();
    urcu_bp_call_rcu(head, fn);
}

static inline void base_rcu_callback_begin(void)
{
    base_rcu_tsan_acquire();
}

#endif
