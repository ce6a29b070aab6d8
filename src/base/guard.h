/*
 * Guarded accesses: memory that belongs to somebody else (the embedding process's, which may unmap it at any
 * time) is touched so that a fault is an outcome and not the end of the process.
 *
 *   base_guard_copy, _load64, ...   one access; the faulting instruction has a fixup      -> false
 *   base_guard_enter ... _leave     a stretch of code; its owner judges the fault, and control comes back to
 *                                   base_guard_set() with what happened in `fault`
 *
 * Both need the handlers of base_guard_install(). A fault that is neither goes to the handler that was there
 * before, or does what it would have done. A handler that somebody puts over ours later should pass on what
 * is not his; whether he does or not, the next base_guard_install() goes on top of it again.
 *
 * The handlers are the process's, so this is the one place with state of the process's: it counts its users
 * and gives the dispositions back with the last.
 */
#ifndef STRATA_BASE_GUARD_H
#define STRATA_BASE_GUARD_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

/* What the processor and the kernel said of a fault. */
struct base_guard_fault {
    uintptr_t addr; /* that could not be accessed */
    uintptr_t pc;
    uintptr_t second_argument; /* RSI */
    uint32_t mxcsr;            /* of the interrupted code */
    bool is_bus;               /* SIGBUS: beyond the end of a file, or failed memory */
    bool is_poison;            /* failed memory */
};

/* A guarded stretch of one thread, on its stack. */
struct base_guard {
    struct base_guard *outer;
    /* Is the fault of this stretch's making? In the signal handler: no locks, no allocation, no stdio. */
    bool (*claims)(struct base_guard *g, const struct base_guard_fault *f);
    struct base_guard_fault fault;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(__clang__)
    sigjmp_buf env;
#else
    void *env[5];
#endif
};

/* 0; and later, after a fault, 1, in the same frame. Locals changed since have no value. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(__clang__)
#define base_guard_set(g) sigsetjmp((g)->env, 0)
#else
#define base_guard_set(g) __builtin_setjmp((g)->env)
#endif

/* Have the handlers, or one user more of them. 0 or -errno. Any thread, not in a signal handler. */
int base_guard_install(void) must_check;
/* By a user: be on top again if somebody has put his handlers over ours. */
void base_guard_refresh(void);
void base_guard_uninstall(void);

/* Have they a user? Then the accesses below may be made. */
bool base_guard_is_on(void);

/* The guard is in force in this thread from enter to leave, in which order others may be nested. After a fault
 * it is no longer in force. */
void base_guard_enter(struct base_guard *g);
void base_guard_leave(struct base_guard *g);

/* Copy n bytes, ascending. False: a fault; some bytes may have been written. */
bool base_guard_copy(void *dst, const void *src, size_t n) must_check;

/* Single loads and stores. False: a fault; *v is untouched. */
bool base_guard_load32(const void *p, uint32_t *v) must_check;
bool base_guard_load64(const void *p, uint64_t *v) must_check;
bool base_guard_store32(void *p, uint32_t v) must_check;
bool base_guard_store64(void *p, uint64_t v) must_check;

/* Compare and exchange; `size` is 4 or 8. Whether it was exchanged in *done. False: a fault. */
bool base_guard_exchange(void *p, unsigned size, uint64_t old, uint64_t new_value, bool *done) must_check;

#endif
