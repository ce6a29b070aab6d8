/*
 * In-kernel buses (bus.h): sorted tables, replaced whole.
 *
 * An entry answers an access that lies wholly inside it (or, with length 0, a write that starts at its
 * address). `reach` of an entry is the highest last address among it and all before it: a search goes
 * back from the last entry that starts at or below the address, and may stop where nothing before
 * reaches that far. So overlapping and nested ranges are all found.
 */
#include "softkvm/bus.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "softkvm/vcpu.h"

struct bus_entry {
    struct kvm_bus_range range;
    uint64_t reach;
};

struct kvm_bus_table {
    uint32_t count, nr_eventfds;
    struct bus_entry entry[];
};

static uint64_t last_addr(const struct kvm_bus_range *r)
{
    return r->len ? r->addr + (r->len - 1) : r->addr;
}

static bool entry_takes(const struct kvm_bus_range *r, uint64_t addr, unsigned len)
{
    if (r->len == 0) {
        return r->addr == addr;
    }
    return addr >= r->addr && len <= r->len && addr - r->addr <= r->len - len;
}

/* First entry that may hold addr, and one past the last. */
static uint32_t find_window(const struct kvm_bus_table *t, uint64_t addr, uint32_t *end)
{
    uint32_t lo = 0, hi = t->count;

    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;

        if (t->entry[mid].range.addr <= addr) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    *end = lo;
    while (lo > 0 && t->entry[lo - 1].reach >= addr) {
        lo--;
    }
    return lo;
}

int kvm_bus_access(struct kvm_buses *buses, struct kvm_vcpu *v, const struct kvm_bus_access *a)
{
    const struct kvm_bus_table *t = atomic_load_explicit(&buses->bus[a->bus].table, memory_order_acquire);
    uint32_t i, end;

    if (!t) {
        return -EOPNOTSUPP;
    }
    for (i = find_window(t, a->addr, &end); i < end; i++) {
        const struct kvm_bus_range *r = &t->entry[i].range;
        int ret = -EOPNOTSUPP;

        if (!entry_takes(r, a->addr, a->size)) {
            continue;
        }
        if (a->is_write && r->ops->write) {
            ret = r->ops->write(r->opaque, v, a->addr, a->size, a->data);
        } else if (!a->is_write && r->ops->read) {
            ret = r->ops->read(r->opaque, v, a->addr, a->size, a->data);
        }
        if (ret == 0) {
            return 0;
        }
    }
    return -EOPNOTSUPP;
}

static struct kvm_bus_table *table_of(struct kvm_vm *vm, enum kvm_bus_id id)
{
    return atomic_load_explicit(&vm->buses->bus[id].table, memory_order_relaxed);
}

static void table_finish(struct kvm_bus_table *t)
{
    uint64_t reach = 0;

    t->nr_eventfds = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        uint64_t last = last_addr(&t->entry[i].range);

        reach = last > reach ? last : reach;
        t->entry[i].reach = reach;
        t->nr_eventfds += t->entry[i].range.is_eventfd;
    }
}

/* Publish `t` and free what was there once no vCPU can be reading it. */
static void table_replace(struct kvm_vm *vm, enum kvm_bus_id id, struct kvm_bus_table *t)
{
    struct kvm_bus_table *old = table_of(vm, id);

    atomic_store_explicit(&vm->buses->bus[id].table, t, memory_order_seq_cst);
    if (old) {
        kvm_readers_wait(vm);
        free(old);
    }
}

static struct kvm_bus_table *table_new(struct kvm_vm *vm, uint32_t count)
{
    struct kvm_bus_table *t = kvm_alloc(vm->s, sizeof(*t) + count * sizeof(t->entry[0]));

    if (t) {
        t->count = count;
    }
    return t;
}

/* Order of entries, and so who is asked first: by address, then the one that ends first, then age. An entry
 * without a length is asked as if it ended with its address. Source: KVM's kvm_io_bus_cmp(). */
static bool goes_before(const struct kvm_bus_range *a, const struct kvm_bus_range *b)
{
    return a->addr < b->addr || (a->addr == b->addr && last_addr(a) <= last_addr(b));
}

int kvm_bus_register(struct kvm_vm *vm, enum kvm_bus_id id, const struct kvm_bus_range *range)
{
    struct kvm_bus_table *old = table_of(vm, id), *t;
    uint32_t n = old ? old->count : 0, at = 0;

    if (range->len && range->addr + (range->len - 1) < range->addr) {
        return -EINVAL;
    }
    if (old && old->count - old->nr_eventfds >= KVM_BUS_MAX_DEVICES) {
        return -ENOSPC;
    }
    t = table_new(vm, n + 1);
    if (!t) {
        return -ENOMEM;
    }
    while (at < n && goes_before(&old->entry[at].range, range)) {
        at++;
    }
    if (old) {
        memcpy(t->entry, old->entry, at * sizeof(t->entry[0]));
        memcpy(t->entry + at + 1, old->entry + at, (n - at) * sizeof(t->entry[0]));
    }
    t->entry[at].range = *range;
    table_finish(t);
    table_replace(vm, id, t);
    return 0;
}

int kvm_bus_unregister(struct kvm_vm *vm, enum kvm_bus_id id, const void *opaque)
{
    struct kvm_bus_table *old = table_of(vm, id), *t;
    uint32_t keep = 0, n = old ? old->count : 0;

    for (uint32_t i = 0; i < n; i++) {
        keep += old->entry[i].range.opaque != opaque;
    }
    if (keep == n) {
        return -ENOENT;
    }
    t = table_new(vm, keep);
    if (!t) {
        return -ENOMEM;
    }
    for (uint32_t i = 0, k = 0; i < n; i++) {
        if (old->entry[i].range.opaque != opaque) {
            t->entry[k++] = old->entry[i];
        }
    }
    table_finish(t);
    table_replace(vm, id, t);
    return 0;
}

int kvm_buses_init(struct kvm_vm *vm)
{
    struct kvm_buses *buses = kvm_alloc(vm->s, sizeof(*buses));

    if (!buses) {
        return -ENOMEM;
    }
    list_init(&buses->ioeventfds);
    list_init(&buses->zones);
    atomic_flag_clear(&buses->ring_busy);
    vm->buses = buses;
    return 0;
}

void kvm_buses_fini(struct kvm_vm *vm)
{
    struct kvm_buses *buses = vm->buses;

    if (!buses) {
        return;
    }
    kvm_ioeventfd_release_all(buses);
    kvm_coalesced_release_all(buses);
    free(atomic_load(&buses->bus[KVM_BUS_MEM].table));
    free(atomic_load(&buses->bus[KVM_BUS_PORT].table));
    free(buses);
    vm->buses = NULL;
}
