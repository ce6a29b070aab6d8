/*
 * RAM blocks: making and freeing them, their linear numbers, finding them.
 *
 * Linear numbers: each block begins at a multiple of 64 pages, so that bitmaps of 64-bit words can be
 * moved whole, in the tightest gap that holds its largest size.
 * Source: QEMU qemu_ram_alloc_internal(), find_ram_offset(), qemu_ram_block_from_host(), by rule.
 */
#include "memory/ram.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define ADDR_ALIGN (UINT64_C(64) << MEMORY_DIRTY_SHIFT)

static uint64_t round_up(uint64_t v, uint64_t align)
{
    return (v + align - 1) & ~(align - 1);
}

struct gap_search {
    uint64_t size;
    uint64_t end;        /* of the block before */
    uint64_t best, best_gap;
};

static int gap_look(void *opaque, struct itree_node *node)
{
    struct gap_search *g = opaque;
    uint64_t at = round_up(g->end, ADDR_ALIGN);

    if (node->start > at && node->start - at >= g->size && node->start - at < g->best_gap) {
        g->best = at;
        g->best_gap = node->start - at;
    }
    g->end = node->last + 1;
    return 0;
}

/* Find numbers for a block and enter it. -ENOSPC when 2^63 bytes are used up. */
static int addr_alloc(struct strata_ram *ram)
{
    struct strata_memory *mem = ram->mem;
    struct gap_search g = {.size = ram->max_size, .best_gap = UINT64_MAX};

    memory_itree_visit(&mem->ram_addrs, 0, UINT64_MAX, gap_look, &g);
    if (g.best_gap == UINT64_MAX) {
        g.best = round_up(g.end, ADDR_ALIGN);
    }
    if (g.best + ram->max_size > (UINT64_C(1) << 63)) {
        return memory_fail(mem, ENOSPC, "no room for the numbers of RAM '%s'", ram->name);
    }
    ram->addr = g.best;
    ram->addr_node = (struct itree_node){.start = g.best, .last = g.best + ram->max_size - 1};
    ram->addr_node.heap = memory_random(mem);
    memory_itree_insert(&mem->ram_addrs, &ram->addr_node);
    return 0;
}

static void list_insert(struct strata_ram *ram)
{
    struct strata_memory *mem = ram->mem;
    struct strata_ram **at = &mem->rams;

    while (*at && (*at)->max_size >= ram->max_size) {
        at = &(*at)->next;
    }
    ram->next = *at;
    base_rcu_publish(at, ram);
    __atomic_fetch_add(&mem->ram_version, 1, __ATOMIC_RELEASE);
}

static void list_remove(struct strata_ram *ram)
{
    struct strata_memory *mem = ram->mem;
    struct strata_ram **at = &mem->rams;

    while (*at && *at != ram) {
        at = &(*at)->next;
    }
    if (*at) {
        base_rcu_publish(at, ram->next);
    }
    __atomic_fetch_add(&mem->ram_version, 1, __ATOMIC_RELEASE);
}

static int desc_fails(struct strata_memory *mem, const struct strata_ram_desc *d)
{
    if (!d->name || !d->size || d->size > (UINT64_C(1) << 62) ||
        d->max_size > (UINT64_C(1) << 62)) {
        return memory_fail(mem, EINVAL, "RAM '%s': bad size", d->name ? d->name : "");
    }
    if ((d->flags & STRATA_RAM_SHARED) && (d->flags & STRATA_RAM_PRIVATE)) {
        return memory_fail(mem, EINVAL, "RAM '%s': shared and private at once", d->name);
    }
    if (d->max_size && !(d->flags & STRATA_RAM_RESIZEABLE)) {
        return memory_fail(mem, EINVAL, "RAM '%s': a largest size, but not resizeable", d->name);
    }
    if ((d->flags & STRATA_RAM_RESIZEABLE) && d->max_size < d->size) {
        return memory_fail(mem, EINVAL, "RAM '%s' begins above its largest size", d->name);
    }
    if ((d->backing == STRATA_HOST) != (d->host != NULL)) {
        return memory_fail(mem, EINVAL, "RAM '%s': host pointer does not go with its backing",
                           d->name);
    }
    if ((d->flags & STRATA_RAM_READONLY_FD) && !(d->flags & STRATA_RAM_READONLY) &&
        (d->flags & STRATA_RAM_SHARED)) {
        return memory_fail(mem, EINVAL, "RAM '%s': writable and shared over a read-only file",
                           d->name);
    }
    for (const struct strata_ram *it = mem->rams; it; it = it->next) {
        if (strcmp(it->name, d->name) == 0) {
            return memory_fail(mem, EEXIST, "there is a RAM block '%s' already", d->name);
        }
    }
    return 0;
}

static void ram_destroy(struct strata_ram *ram)
{
    struct strata_memory *mem = ram->mem;

    memory_dirty_fini(ram);
    memory_ram_unmap(ram);
    if (ram->guest_fd >= 0) {
        close(ram->guest_fd);
    }
    if (ram->name) {
        memory_free(mem, ram->name, strlen(ram->name) + 1);
    }
    memory_free(mem, ram, sizeof(*ram));
}

static int ram_build(struct strata_ram *ram, const struct strata_ram_desc *d)
{
    int err;

    ram->name = memory_strdup(ram->mem, d->name);
    if (!ram->name) {
        return memory_fail_alloc(ram->mem);
    }
    err = memory_ram_map(ram, d);
    err = err ? err : memory_dirty_init(ram);
    return err ? err : addr_alloc(ram);
}

/*
 * Make a block; see strata/ram.h for the description. Returns 0 and one reference; -EEXIST, -EINVAL,
 * -ENOMEM, -ENOSPC, or the errno of the system call that failed: nothing is left of it then.
 * Lock: taken.
 */
int strata_ram_new(struct strata_memory *mem, const struct strata_ram_desc *desc,
                   struct strata_ram **out)
{
    struct strata_ram *ram;
    int err;

    memory_lock(mem);
    err = desc_fails(mem, desc);
    if (err) {
        goto out;
    }
    ram = memory_zalloc(mem, sizeof(*ram));
    if (!ram) {
        err = memory_fail_alloc(mem);
        goto out;
    }
    ram->mem = mem;
    ram->refs = 1;
    ram->fd = ram->guest_fd = -1;
    ram->flags = desc->flags;
    ram->backing = desc->backing;
    ram->resized = desc->resized;
    ram->opaque = desc->opaque;
    err = ram_build(ram, desc);
    if (err) {
        ram_destroy(ram);
        goto out;
    }
    list_insert(ram);
    memory_ram_notify_added(ram);
    *out = ram;
out:
    memory_unlock(mem);
    return err;
}

static void ram_free(struct strata_memory *mem, struct memory_retired *retired)
{
    ram_destroy(container_of(retired, struct strata_ram, retired));
}

/* One more reference, by who holds one or is in a read section that found it. */
void strata_ram_ref(struct strata_ram *ram)
{
    __atomic_fetch_add(&ram->refs, 1, __ATOMIC_RELAXED);
}

/* Give a reference back; the last takes the block out of the list and unmaps it after a grace
 * period. Null is fine. Lock: taken for the last. */
void strata_ram_unref(struct strata_ram *ram)
{
    struct strata_memory *mem;

    if (!ram || __atomic_sub_fetch(&ram->refs, 1, __ATOMIC_ACQ_REL) != 0) {
        return;
    }
    mem = ram->mem;
    memory_lock(mem);
    list_remove(ram);
    memory_itree_remove(&mem->ram_addrs, &ram->addr_node);
    memory_ram_notify_removed(ram);
    memory_retire(mem, &ram->retired, ram_free);
    mem->retire.urgent = true;
    memory_retire_kick(mem);
    memory_unlock(mem);
}

/* The handle goes: let go of every block, whoever holds it. Lock: held. */
void memory_ram_free_all(struct strata_memory *mem)
{
    while (mem->rams) {
        mem->rams->refs = 1;
        strata_ram_unref(mem->rams);
    }
}

/*
 * Give a region its block: `ram`, or a new anonymous one of the region's size and name.
 * Returns 0; -EBUSY when the block has a region; -EINVAL when it is smaller than the region.
 * Lock: held.
 */
int memory_region_join_ram(struct strata_region *region, struct strata_ram *ram)
{
    struct strata_ram_desc desc = {.name = region->name, .size = (uint64_t)region->size};
    int err;

    if (ram) {
        if (ram->mem != region->mem || region->size > (i128)ram->max_size) {
            return memory_fail(region->mem, EINVAL, "'%s' is larger than its RAM", region->name);
        }
        if (ram->region) {
            return memory_fail(region->mem, EBUSY, "RAM '%s' is shown by '%s'", ram->name,
                               ram->region->name);
        }
        strata_ram_ref(ram);
    } else {
        err = strata_ram_new(region->mem, &desc, &ram);
        if (err) {
            return err;
        }
    }
    region->ram = ram;
    ram->region = region;
    return 0;
}

/* The region goes. Lock: held. */
void memory_region_leave_ram(struct strata_region *region)
{
    if (region->ram) {
        region->ram->region = NULL;
        strata_ram_unref(region->ram);
        region->ram = NULL;
    }
}

/* The block of a name, or null. In a read section. */
struct strata_ram *strata_ram_by_name(struct strata_memory *mem, const char *name)
{
    struct strata_ram *ram = base_rcu_load(&mem->rams);

    while (ram && strcmp(ram->name, name) != 0) {
        ram = base_rcu_load(&ram->next);
    }
    return ram;
}

static bool holds_addr(const struct strata_ram *ram, uint64_t addr)
{
    return addr - ram->addr < ram->max_size;
}

/* The block that holds a linear number; offset: in it. Null: none. In a read section. */
struct strata_ram *strata_ram_by_addr(struct strata_memory *mem, uint64_t addr, uint64_t *offset)
{
    struct strata_ram *ram = base_rcu_load(&mem->rams);

    while (ram && !holds_addr(ram, addr)) {
        ram = base_rcu_load(&ram->next);
    }
    if (ram) {
        *offset = addr - ram->addr;
    }
    return ram;
}

/* The block that holds a host address; offset: in it. Null: none. In a read section. */
struct strata_ram *strata_ram_by_host(struct strata_memory *mem, const void *host, uint64_t *offset)
{
    struct strata_ram *ram = base_rcu_load(&mem->rams);
    uintptr_t p = (uintptr_t)host;

    while (ram && p - (uintptr_t)ram->host >= ram->max_size) {
        ram = base_rcu_load(&ram->next);
    }
    if (ram) {
        *offset = p - (uintptr_t)ram->host;
    }
    return ram;
}

/* Call fn for each block, largest first, until it returns nonzero, which is returned. */
int strata_ram_for_each(struct strata_memory *mem, int (*fn)(void *opaque, struct strata_ram *ram),
                        void *opaque)
{
    struct strata_ram *ram;
    int ret = 0;

    base_rcu_read_lock();
    for (ram = base_rcu_load(&mem->rams); ram && !ret; ram = base_rcu_load(&ram->next)) {
        ret = fn(opaque, ram);
    }
    base_rcu_read_unlock();
    return ret;
}

/* Moves whenever the list of blocks changes. Any thread. */
uint64_t strata_ram_list_version(const struct strata_memory *mem)
{
    return __atomic_load_n(&mem->ram_version, __ATOMIC_ACQUIRE);
}

/* The id. */
const char *strata_ram_name(const struct strata_ram *ram)
{
    return ram->name;
}

/* The first byte. */
void *strata_ram_host(const struct strata_ram *ram)
{
    return ram->host;
}

/* Bytes in use, whole pages. */
uint64_t strata_ram_size(const struct strata_ram *ram)
{
    return __atomic_load_n(&ram->size, __ATOMIC_RELAXED);
}

/* Bytes reserved. */
uint64_t strata_ram_max_size(const struct strata_ram *ram)
{
    return ram->max_size;
}

/* Of the backing: 4096, or a huge page of hugetlbfs. */
uint64_t strata_ram_page_size(const struct strata_ram *ram)
{
    return ram->page_size;
}

/* Linear number of byte 0. */
uint64_t strata_ram_addr(const struct strata_ram *ram)
{
    return ram->addr;
}

/* enum strata_ram_flags. */
unsigned strata_ram_flags(const struct strata_ram *ram)
{
    return __atomic_load_n(&ram->flags, __ATOMIC_RELAXED);
}

/* The file descriptor behind it, or -1; the block's. */
int strata_ram_fd(const struct strata_ram *ram)
{
    return ram->fd;
}

/* Where in the file byte 0 is. */
uint64_t strata_ram_fd_offset(const struct strata_ram *ram)
{
    return ram->fd_offset;
}

/* The region that shows it, or null. */
struct strata_region *strata_ram_region(const struct strata_ram *ram)
{
    return ram->region;
}

/* The descriptor of the block's private memory, or -1. */
int strata_ram_guest_fd(const struct strata_ram *ram)
{
    return ram->guest_fd;
}
