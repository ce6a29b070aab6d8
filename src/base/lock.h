/*
 * The order of locks, declared in one place and checked in debug builds. A lock gets its rank when it is made; a
 * thread may take a lock only if its rank is above those of all it holds. Files that include this header have
 * their pthread calls checked when STRATA_DEBUG is defined; else nothing here costs anything.
 *
 * A lock without a rank is not judged, nor is one taken by trylock: that cannot wait.
 *
 * docs/locking.md says what each lock protects. Ranks go up from the outermost to the leaves.
 */
#ifndef STRATA_BASE_LOCK_H
#define STRATA_BASE_LOCK_H

#include <pthread.h>

enum base_lock_rank {
    BASE_RANK_NONE,
    BASE_RANK_VCPU = 10,      /* kvm_vcpu.lock: one thread in KVM_RUN */
    BASE_RANK_VM = 20,        /* kvm_vm.lock: vCPUs, chips, capabilities */
    BASE_RANK_SLOTS = 30,     /* kvm_vm.slots_lock */
    BASE_RANK_IRQ = 35,       /* kvm_vm.irq_lock: interrupt chips and routing */
    BASE_RANK_DAEMON = 38,    /* host_daemon.lock: background work */
    BASE_RANK_MMS = 40,       /* host_memory_impl.mms_lock: which address spaces there are */
    BASE_RANK_MMAP = 50,      /* host_mm.mmap_lock */
    BASE_RANK_KSM = 55,       /* host_ksm.lock */
    BASE_RANK_NOTIFIERS = 60, /* host_mm.notifier_lock, read around callbacks */
    BASE_RANK_MMU = 70,       /* kvm_mmu.lock */
    BASE_RANK_SWAP = 80,      /* host_swap.lock: under it no page of the process is touched */
    BASE_RANK_CACHE = 85,     /* host_cache.lock */
    BASE_RANK_PCP = 90,       /* host_pcp.lock */
    BASE_RANK_ZONE = 95,      /* host_zone.lock */
    BASE_RANK_FILES = 100,    /* softkvm.lock: descriptors */
};

#ifdef STRATA_DEBUG

void base_lock_set_rank(const void *lock, enum base_lock_rank rank);
void base_lock_forget(const void *lock);
/* Before waiting for a lock: aborts with both names' ranks when the order is broken. */
void base_lock_taking(const void *lock, const char *file, int line);
void base_lock_taken(const void *lock);
void base_lock_dropped(const void *lock);

#define BASE_LOCK_CHECKED(take, l)                                                                 \
    (base_lock_taking((l), __FILE__, __LINE__), base_lock_result((l), (take)(l)))

static inline int base_lock_result(const void *l, int r)
{
    if (r == 0) {
        base_lock_taken(l);
    }
    return r;
}

static inline int base_lock_undo(const void *l, int r)
{
    base_lock_dropped(l);
    return r;
}

static inline int base_lock_gone(const void *l, int r)
{
    base_lock_forget(l);
    return r;
}

#define pthread_mutex_lock(l)       BASE_LOCK_CHECKED(pthread_mutex_lock, l)
#define pthread_mutex_trylock(l)    base_lock_result((l), pthread_mutex_trylock(l))
#define pthread_mutex_unlock(l)     base_lock_undo((l), pthread_mutex_unlock(l))
#define pthread_mutex_destroy(l)    base_lock_gone((l), pthread_mutex_destroy(l))
#define pthread_rwlock_rdlock(l)    BASE_LOCK_CHECKED(pthread_rwlock_rdlock, l)
#define pthread_rwlock_wrlock(l)    BASE_LOCK_CHECKED(pthread_rwlock_wrlock, l)
#define pthread_rwlock_tryrdlock(l) base_lock_result((l), pthread_rwlock_tryrdlock(l))
#define pthread_rwlock_trywrlock(l) base_lock_result((l), pthread_rwlock_trywrlock(l))
#define pthread_rwlock_unlock(l)    base_lock_undo((l), pthread_rwlock_unlock(l))
#define pthread_rwlock_destroy(l)   base_lock_gone((l), pthread_rwlock_destroy(l))

#else

static inline void base_lock_set_rank(const void *lock, enum base_lock_rank rank)
{
    (void)lock;
    (void)rank;
}

#endif

#endif
