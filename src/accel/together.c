/*
 * Slots that change places at once, where the engine takes several changes as one (libsoftkvm's transactions): no
 * vCPU is stopped and none sees a hole. Used where old and new slots overlap and no log has to be read first.
 *
 * Place in the flow: topology change, last step, instead of deletions and additions with the gate closed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "accel/slots.h"
#include "softkvm/kvm_abi.h"
#include "softkvm/slots.h"

struct together {
    struct kvm_userspace_memory_region2 *changes; /* room for all of them */
    uint32_t *old;                                /* ids that went */
    size_t changed, gone;
};

static void set_change(struct together *t, uint32_t id, const struct accel_slot_desc *d)
{
    struct kvm_userspace_memory_region2 *c = &t->changes[t->changed++];

    memset(c, 0, sizeof(*c));
    c->slot = id;
    if (d) {
        c->flags = d->flags;
        c->guest_phys_addr = d->gpa;
        c->memory_size = d->size;
        c->userspace_addr = d->hva;
    }
}

/* The table as it will be, and what the engine has to be told for it. */
static bool edit_table(struct accel_slots *s, struct together *t)
{
    bool fits = true;
    size_t i;

    for (i = 0; i < s->going.count; i++) {
        struct accel_slot *slot = accel_slot_table_find(&s->table, s->going.v[i].gpa, s->going.v[i].size);

        if (slot) {
            t->old[t->gone++] = slot->id;
            accel_slot_table_remove(&s->table, slot);
        }
    }
    for (i = 0; i < s->adding.count && fits; i++) {
        struct accel_slot *slot =
            accel_slot_table_reserve(&s->table, 1) == 0 ? accel_slot_table_insert(&s->table, &s->adding.v[i]) : NULL;

        fits = slot != NULL;
        if (slot) {
            set_change(t, slot->id, &slot->d);
        }
    }
    for (i = 0; i < t->gone; i++) {
        if (!accel_slot_table_by_id(&s->table, t->old[i])) {
            set_change(t, t->old[i], NULL);
        }
    }
    return fits;
}

/* The transaction was refused: the same outcome one by one, with every vCPU out. */
static int one_by_one(struct accel_slots *s, const struct together *t)
{
    struct accel_slot gone = {.d = {.size = 0}};
    int ret = 0;
    size_t i;

    for (i = 0; i < t->gone && ret == 0; i++) {
        gone.id = t->old[i];
        ret = accel_slot_tell(s, &gone, 0);
    }
    for (i = 0; i < t->changed && ret == 0; i++) {
        struct accel_slot *slot = accel_slot_table_by_id(&s->table, t->changes[i].slot);

        ret = slot ? accel_slot_tell(s, slot, slot->d.size) : 0;
    }
    return ret;
}

static bool fits_transaction(const struct accel_slots *s)
{
    size_t i, n = s->going.count + s->adding.count;

    for (i = 0; i < s->adding.count; i++) {
        if (s->adding.v[i].flags & KVM_MEM_GUEST_MEMFD) {
            return false; /* its private half may be bound to a slot that goes */
        }
    }
    return n && n <= s->accel->max_transaction;
}

/*
 * Apply the queues as one transaction.
 * Returns: false when that cannot be tried: nothing has changed, and the caller goes the other way.
 * Lock: topology; takes s->lock. Errors: accel_slots_fail(). Source: own, softkvm/slots.h.
 */
bool accel_slots_apply_together(struct accel_slots *s)
{
    size_t n = s->going.count + s->adding.count;
    struct softkvm_slot_transaction args = {.size = sizeof(args)};
    struct together t = {NULL, NULL, 0, 0};
    bool fits;
    int ret;

    if (!fits_transaction(s)) {
        return false;
    }
    t.changes = accel_calloc(s->accel, n, sizeof(*t.changes));
    t.old = accel_calloc(s->accel, n, sizeof(*t.old));
    if (!t.changes || !t.old) {
        free(t.changes);
        free(t.old);
        return false;
    }
    pthread_mutex_lock(&s->lock);
    fits = edit_table(s, &t);
    args.count = (uint32_t)t.changed;
    args.changes = (uint64_t)(uintptr_t)t.changes;
    ret = fits ? accel_ioctl_ptr(s->accel->ep, s->accel->vm_fd, SOFTKVM_SLOT_TRANSACTION, &args) : -ENOMEM;
    pthread_mutex_unlock(&s->lock);
    if (ret < 0) {
        accel_gate_close(s->accel);
        pthread_mutex_lock(&s->lock);
        ret = one_by_one(s, &t);
        if (ret < 0 || !fits) {
            accel_slots_fail(s, ret < 0 ? ret : -ENOMEM, "%zu changes of memory slots", t.changed);
        }
        pthread_mutex_unlock(&s->lock);
        accel_gate_open(s->accel);
    }
    TRACE(&s->accel->trace, topology_slots_together, "changes %llu result %llu", t.changed, ret < 0);
    free(t.changes);
    free(t.old);
    return true;
}
