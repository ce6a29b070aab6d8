/*
 * Single values: loads and stores in a byte order, atomics, and accesses straight at a region.
 * Source: QEMU address_space_ldl() and its kin, by rule. Differs: a value that runs across the end of
 * a RAM range is put together from both sides, where QEMU gives a decode error.
 */
#include "memory/access.h"
#include "memory/copy.h"
#include "memory/io.h"
#include "memory/ram.h"

static bool size_ok(unsigned size)
{
    return size == 1 || size == 2 || size == 4 || size == 8;
}

static uint64_t to_order(uint64_t value, unsigned size, enum strata_endian endian)
{
    return endian == STRATA_BIG_ENDIAN ? memory_swap(value, size) : value;
}

/*
 * Load one value. size: 1, 2, 4, 8 bytes; endian: how the value lies in memory. value: set also on
 * failure, to what a failing access reads as. Returns as strata_read(); STRATA_ERROR: bad size.
 */
enum strata_result strata_load(struct strata_space *space, strata_addr addr, unsigned size,
                               enum strata_endian endian, uint64_t *value)
{
    struct memory_access access = {.space = space};
    enum strata_result result = STRATA_OK;
    struct memory_place place;
    uint64_t raw = 0;

    *value = 0;
    if (!size_ok(size)) {
        return STRATA_ERROR;
    }
    base_rcu_read_lock();
    memory_translate(&access, addr, size, &place);
    if (place.len < size) {
        result = strata_read(space, addr, access.attrs, &raw, size);
    } else if (memory_place_is_direct(&place, &access)) {
        raw = memory_peek(memory_place_host(&place), size);
    } else {
        result = memory_place_read(&place, &access, size, &raw);
    }
    base_rcu_read_unlock();
    *value = to_order(raw, size, endian);
    return result;
}

/* Store one value. Like strata_load(). */
enum strata_result strata_store(struct strata_space *space, strata_addr addr, unsigned size,
                                enum strata_endian endian, uint64_t value)
{
    struct memory_access access = {.space = space, .write = true};
    enum strata_result result = STRATA_OK;
    struct memory_place place;

    if (!size_ok(size)) {
        return STRATA_ERROR;
    }
    value = to_order(value & memory_mask(size), size, endian);
    base_rcu_read_lock();
    memory_translate(&access, addr, size, &place);
    if (place.len < size) {
        result = strata_write(space, addr, access.attrs, &value, size);
    } else if (memory_place_is_direct(&place, &access)) {
        memory_poke(memory_place_host(&place), size, value);
        memory_place_mark_dirty(&place, size);
    } else {
        result = memory_place_write(&place, &access, size, value);
    }
    base_rcu_read_unlock();
    return result;
}

/* Find RAM that can be operated on atomically; false: not so. In a read section. */
static bool find_atomic(struct strata_space *space, strata_addr addr, unsigned size,
                        struct memory_place *place)
{
    struct memory_access access = {.space = space, .write = true};

    if (!size_ok(size) || (addr & (size - 1))) {
        return false;
    }
    memory_translate(&access, addr, size, place);
    return place->len == size && memory_place_is_direct(place, &access) &&
           ((uintptr_t)memory_place_host(place) & (size - 1)) == 0;
}

static bool compare_exchange(void *p, unsigned size, uint64_t *expected, uint64_t desired)
{
    uint8_t e8 = (uint8_t)*expected;
    uint16_t e16 = (uint16_t)*expected;
    uint32_t e32 = (uint32_t)*expected;
    bool done;

    switch (size) {
    case 1:
        done = __atomic_compare_exchange_n((uint8_t *)p, &e8, (uint8_t)desired, false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        *expected = e8;
        return done;
    case 2:
        done = __atomic_compare_exchange_n((uint16_t *)p, &e16, (uint16_t)desired, false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        *expected = e16;
        return done;
    case 4:
        done = __atomic_compare_exchange_n((uint32_t *)p, &e32, (uint32_t)desired, false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        *expected = e32;
        return done;
    default:
        return __atomic_compare_exchange_n((uint64_t *)p, expected, desired, false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
}

/*
 * If the value at addr equals *expected, replace it; *expected becomes what was there. Host order.
 * Returns STRATA_OK whether it was replaced or not; STRATA_ACCESS_ERROR: not aligned writable RAM.
 */
enum strata_result strata_cmpxchg(struct strata_space *space, strata_addr addr, unsigned size,
                                  uint64_t *expected, uint64_t desired)
{
    enum strata_result result = STRATA_ACCESS_ERROR;
    struct memory_place place;

    base_rcu_read_lock();
    if (find_atomic(space, addr, size, &place)) {
        if (compare_exchange(memory_place_host(&place), size, expected, desired)) {
            memory_place_mark_dirty(&place, size);
        }
        result = STRATA_OK;
    }
    base_rcu_read_unlock();
    return result;
}

/* Add to the value at addr; *old: what was there. Host order. Results as strata_cmpxchg(). */
enum strata_result strata_fetch_add(struct strata_space *space, strata_addr addr, unsigned size,
                                    uint64_t add, uint64_t *old)
{
    enum strata_result result = STRATA_ACCESS_ERROR;
    struct memory_place place;

    base_rcu_read_lock();
    if (find_atomic(space, addr, size, &place)) {
        void *p = memory_place_host(&place);

        *old = memory_peek(p, size);
        while (!compare_exchange(p, size, old, (*old + add) & memory_mask(size))) {
        }
        memory_place_mark_dirty(&place, size);
        result = STRATA_OK;
    }
    base_rcu_read_unlock();
    return result;
}

/* Through aliases down to what answers. */
static struct strata_region *resolve(struct strata_region *region, strata_addr *addr)
{
    while (region->target) {
        *addr += region->offset;
        region = region->target;
    }
    return region;
}

static bool region_holds(const struct strata_region *region, strata_addr addr, unsigned size)
{
    return size_ok(size) && (i128)addr + size <= region->size;
}

/*
 * Read a region directly. addr: in the region; value: as the bus carries it. RAM kinds read their
 * memory. Returns as a device access; STRATA_DECODE_ERROR beyond the end or with a bad size.
 * The caller holds the region. Source: QEMU memory_region_dispatch_read().
 */
enum strata_result strata_region_read(struct strata_region *region, strata_addr addr, unsigned size,
                                      struct strata_attrs attrs, uint64_t *value)
{
    struct memory_io io = {.size = size, .attrs = attrs};
    enum strata_result result;

    *value = 0;
    if (!region_holds(region, addr, size)) {
        return STRATA_DECODE_ERROR;
    }
    io.region = resolve(region, &addr);
    io.addr = addr;
    if (!region_holds(io.region, addr, size)) {
        return STRATA_DECODE_ERROR;
    }
    if (io.region->ram && (io.region->kind != STRATA_ROM_DEVICE || __atomic_load_n(&io.region->romd, __ATOMIC_RELAXED))) {
        *value = memory_peek((uint8_t *)strata_ram_host(io.region->ram) + addr, size);
        return STRATA_OK;
    }
    base_rcu_read_lock();
    result = memory_io_read(&io, value);
    base_rcu_read_unlock();
    return result;
}

/* Write a region directly; read-only memory refuses. Like strata_region_read(). */
enum strata_result strata_region_write(struct strata_region *region, strata_addr addr, unsigned size,
                                       struct strata_attrs attrs, uint64_t value)
{
    struct memory_io io = {.size = size, .attrs = attrs};
    enum strata_result result;

    if (!region_holds(region, addr, size)) {
        return STRATA_DECODE_ERROR;
    }
    io.region = resolve(region, &addr);
    io.addr = addr;
    if (!region_holds(io.region, addr, size)) {
        return STRATA_DECODE_ERROR;
    }
    if (io.region->ram && io.region->kind != STRATA_ROM_DEVICE) {
        if (memory_region_is_readonly(io.region) || io.region->kind == STRATA_ROM) {
            return STRATA_DECODE_ERROR;
        }
        memory_poke((uint8_t *)strata_ram_host(io.region->ram) + addr, size, value);
        strata_region_set_dirty(io.region, addr, size);
        return STRATA_OK;
    }
    base_rcu_read_lock();
    result = memory_io_write(&io, value);
    base_rcu_read_unlock();
    return result;
}
