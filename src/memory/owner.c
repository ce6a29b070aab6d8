/*
 * Owners: the devices that regions belong to. An owner outlives everything that can still call it:
 * flat ranges, mappings and caches of its regions each hold a reference.
 */
#include "memory/region.h"

#include <errno.h>
#include <string.h>

/* Take a reference; null is fine. Any thread that already relies on one. */
void memory_owner_get(struct strata_owner *owner)
{
    if (owner) {
        __atomic_fetch_add(&owner->refs, 1, __ATOMIC_RELAXED);
    }
}

static void owner_free(struct strata_owner *owner)
{
    struct strata_memory *mem = owner->mem;

    list_del(&owner->node);
    memory_free(mem, owner->name, strlen(owner->name) + 1);
    memory_free(mem, owner, sizeof(*owner));
}

/* Drop a reference; the last one releases the device. Lock: taken for the last. */
void memory_owner_put(struct strata_owner *owner)
{
    struct strata_memory *mem;

    if (!owner || __atomic_sub_fetch(&owner->refs, 1, __ATOMIC_ACQ_REL) != 0) {
        return;
    }
    mem = owner->mem;
    memory_lock(mem);
    if (owner->release) {
        owner->release(owner->opaque);
    }
    owner_free(owner);
    memory_unlock(mem);
}

/*
 * Make an owner with one reference, the caller's.
 * name: for printers and warnings, copied; release: called once with opaque when the last reference
 * goes, may be null. Returns 0, -ENOMEM.
 * Lock: taken. Source: own; QEMU counts references on the owning object likewise.
 */
int strata_owner_new(struct strata_memory *mem, const char *name, void (*release)(void *opaque),
                     void *opaque, struct strata_owner **owner)
{
    struct strata_owner *o;
    int err = 0;

    memory_lock(mem);
    o = memory_zalloc(mem, sizeof(*o));
    if (!o || !(o->name = memory_strdup(mem, name ? name : ""))) {
        memory_free(mem, o, sizeof(*o));
        err = memory_fail_alloc(mem);
        goto out;
    }
    o->mem = mem;
    o->release = release;
    o->opaque = opaque;
    o->refs = 1;
    list_add_tail(&mem->owners, &o->node);
    *owner = o;
out:
    memory_unlock(mem);
    return err;
}

/* Another reference on an owner that the caller already holds. */
void strata_owner_ref(struct strata_owner *owner)
{
    memory_owner_get(owner);
}

/* Give a reference back; see strata_owner_new() for what the last one does. Lock: taken for it. */
void strata_owner_unref(struct strata_owner *owner)
{
    memory_owner_put(owner);
}

/* How many references there are now; for tests and listings. */
unsigned strata_owner_refs(const struct strata_owner *owner)
{
    return __atomic_load_n(&owner->refs, __ATOMIC_RELAXED);
}

/* Let the device's callbacks be entered from within each other, or forbid it again (the default). */
void strata_owner_allow_reentry(struct strata_owner *owner, bool allow)
{
    __atomic_store_n(&owner->allow_reentry, allow, __ATOMIC_RELAXED);
}

/* How many re-entrant accesses were refused so far. */
uint64_t strata_owner_reentries(const struct strata_owner *owner)
{
    return __atomic_load_n(&owner->reentries, __ATOMIC_RELAXED);
}
