/*
 * MMU notifiers: who derives entries from an address space hears before and after they change.
 *
 * Locks: the list's rwlock, held for reading while callbacks run, so that unregistering waits for
 * them. Callers hold the mmap lock (either way) around start..end; callbacks take their own locks
 * inside.
 */
#include "host/mm_impl.h"

/* See mm.h. Lock: takes the list lock; must not be called from a callback. */
void host_notifier_register(struct host_mm *mm, struct host_notifier *n)
{
    pthread_rwlock_wrlock(&mm->notifier_lock);
    list_add_tail(&mm->notifiers, &n->node);
    pthread_rwlock_unlock(&mm->notifier_lock);
}

/* See mm.h. Holding the mmap lock makes sure that no start..end pair is under way. */
void host_notifier_unregister(struct host_mm *mm, struct host_notifier *n)
{
    pthread_rwlock_wrlock(&mm->mmap_lock);
    pthread_rwlock_wrlock(&mm->notifier_lock);
    list_del(&n->node);
    pthread_rwlock_unlock(&mm->notifier_lock);
    pthread_rwlock_unlock(&mm->mmap_lock);
}

/* Tell everybody that the range is about to change. */
void host_notify_start(struct host_mm *mm, const struct host_mmu_range *range)
{
    struct list *pos;

    host_mm_count(mm, HOST_MM_notifies, 1);
    pthread_rwlock_rdlock(&mm->notifier_lock);
    list_for_each (pos, &mm->notifiers) {
        struct host_notifier *n = list_entry(pos, struct host_notifier, node);

        n->ops->invalidate_start(n, range);
    }
    pthread_rwlock_unlock(&mm->notifier_lock);
}

/* Tell everybody that the change is done. */
void host_notify_end(struct host_mm *mm, const struct host_mmu_range *range)
{
    struct list *pos;

    pthread_rwlock_rdlock(&mm->notifier_lock);
    list_for_each (pos, &mm->notifiers) {
        struct host_notifier *n = list_entry(pos, struct host_notifier, node);

        n->ops->invalidate_end(n, range);
    }
    pthread_rwlock_unlock(&mm->notifier_lock);
}

/* Did any second stage use the range? All are asked: each has bits to clear. */
bool host_notify_clear_young(struct host_mm *mm, const struct host_mmu_range *range)
{
    struct list *pos;
    bool young = false;

    pthread_rwlock_rdlock(&mm->notifier_lock);
    list_for_each (pos, &mm->notifiers) {
        struct host_notifier *n = list_entry(pos, struct host_notifier, node);

        if (n->ops->clear_young && n->ops->clear_young(n, range)) {
            young = true;
        }
    }
    pthread_rwlock_unlock(&mm->notifier_lock);
    return young;
}

/* The address space goes: every notifier is told once and taken off the list. */
void host_notify_release(struct host_mm *mm)
{
    pthread_rwlock_wrlock(&mm->notifier_lock);
    while (!list_is_empty(&mm->notifiers)) {
        struct host_notifier *n = list_entry(mm->notifiers.next, struct host_notifier, node);

        list_del(&n->node);
        if (n->ops->release) {
            n->ops->release(n);
        }
    }
    pthread_rwlock_unlock(&mm->notifier_lock);
}
