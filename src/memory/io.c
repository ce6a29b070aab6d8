/*
 * Device accesses, in the order of QEMU's rules: is the access valid; does a software eventfd take it;
 * is the device being re-entered; then the callback, as often as its own sizes ask for, between the
 * embedder's lock and unlock.
 *
 * Composing: an access of `size` becomes pieces of clamp(size, impl.min, impl.max) bytes at ascending
 * addresses. In compatible mode they begin at the address as it is, and one that is wider than the
 * access reaches beyond it. In strict mode, for callbacks that take no unaligned address, pieces are
 * aligned: reads take the bytes they need out of the pieces; writes use narrower pieces where the
 * callbacks allow them, else read, merge and write back.
 *
 * Source: QEMU memory_region_dispatch_read(), access_with_adjusted_size(), memory_region_access_valid(),
 * memory_access_size(), by rule.
 */
#include "memory/io.h"

#include <stdio.h>

#include "memory/copy.h"
#include "memory/events.h"

/* The guard and the lock of one access. */
struct gate {
    struct strata_owner *busy; /* marked by us */
    bool locked;
};

static bool is_big(const struct strata_region *region)
{
    return region->ops->endian == STRATA_BIG_ENDIAN;
}

/*
 * Would the region take this access? Order: accepts(), alignment, sizes (none given: any).
 * In a read section.
 */
bool memory_io_valid(const struct memory_io *io, bool write)
{
    const struct strata_io_ops *ops = io->region->ops;

    if (!ops) {
        return false;
    }
    if (ops->valid.accepts &&
        !ops->valid.accepts(io->region->opaque, io->addr, io->size, write, io->attrs)) {
        return false;
    }
    if (!ops->valid.unaligned && (io->addr & (io->size - 1))) {
        return false;
    }
    return !ops->valid.max || (io->size >= ops->valid.min && io->size <= ops->valid.max);
}

/* How many of `len` bytes at addr go into one access: up to valid.max (4 when not given), as far as
 * the address is aligned unless the callbacks take unaligned ones, a power of two. */
unsigned memory_io_piece(const struct strata_region *region, strata_addr addr, uint64_t len)
{
    const struct strata_io_ops *ops = region ? region->ops : NULL;
    uint64_t max = ops && ops->valid.max ? ops->valid.max : 4;
    uint64_t align = addr & -addr;

    if (!(ops && ops->impl.unaligned) && align && align < max) {
        max = align;
    }
    max = max < 8 ? max : 8;
    len = len < max ? len : max;
    return 1u << (63 - __builtin_clzll(len));
}

static void warn_reentry(struct strata_region *region)
{
    const struct strata_memory_config *config = &region->mem->config;
    char text[160];

    __atomic_fetch_add(&region->owner->reentries, 1, __ATOMIC_RELAXED);
    if (!__atomic_exchange_n(&region->owner->warned, true, __ATOMIC_RELAXED) && config->warn) {
        snprintf(text, sizeof(text), "device '%s': access to '%s' from within its own callback",
                 region->owner->name, region->name);
        config->warn(config->warn_ctx, text);
    }
}

/* Only plain devices are guarded: memory, read-only and lockless regions cannot hurt themselves. */
static bool is_guarded(const struct strata_region *region)
{
    return region->owner && !region->ram && !memory_region_is_readonly(region) &&
           !__atomic_load_n(&region->lockless, __ATOMIC_RELAXED) &&
           !__atomic_load_n(&region->reentrant, __ATOMIC_RELAXED) &&
           !__atomic_load_n(&region->owner->allow_reentry, __ATOMIC_RELAXED);
}

/*
 * The mark is of the thread that is inside: another thread at the same device at the same time
 * (without a big lock) is no re-entry.
 */
static bool guard_enter(struct strata_region *region, struct gate *gate)
{
    struct strata_owner *owner = region->owner;
    uintptr_t none = 0, self = (uintptr_t)pthread_self();

    if (!is_guarded(region)) {
        return true;
    }
    if (__atomic_compare_exchange_n(&owner->busy, &none, self, false, __ATOMIC_ACQUIRE,
                                    __ATOMIC_RELAXED)) {
        gate->busy = owner;
        return true;
    }
    if (none != self) {
        return true;
    }
    warn_reentry(region);
    return false;
}

static bool gate_enter(struct strata_region *region, struct gate *gate)
{
    const struct strata_memory_config *config = &region->mem->config;

    *gate = (struct gate){0};
    if (__atomic_load_n(&region->flush_coalesced, __ATOMIC_RELAXED)) {
        strata_coalesced_flush(region->mem);
    }
    if (config->io_lock && !__atomic_load_n(&region->lockless, __ATOMIC_RELAXED)) {
        gate->locked = config->io_lock(config->io_lock_ctx);
    }
    return guard_enter(region, gate);
}

static void gate_leave(struct strata_region *region, struct gate *gate)
{
    const struct strata_memory_config *config = &region->mem->config;

    if (gate->busy) {
        __atomic_store_n(&gate->busy->busy, 0, __ATOMIC_RELEASE);
    }
    if (gate->locked) {
        config->io_unlock(config->io_lock_ctx);
    }
}

/* One callback. size: one that the callbacks take. */
static inline enum strata_result call_read(const struct memory_io *io, strata_addr addr, unsigned size,
                                    uint64_t *value)
{
    const struct strata_io_ops *ops = io->region->ops;

    if (ops->read) {
        *value = ops->read(io->region->opaque, addr, size);
        return STRATA_OK;
    }
    if (ops->read_attrs) {
        return ops->read_attrs(io->region->opaque, addr, value, size, io->attrs);
    }
    return STRATA_DECODE_ERROR;
}

static inline enum strata_result call_write(const struct memory_io *io, strata_addr addr, unsigned size,
                                     uint64_t value)
{
    const struct strata_io_ops *ops = io->region->ops;

    if (ops->write) {
        ops->write(io->region->opaque, addr, value, size);
        return STRATA_OK;
    }
    if (ops->write_attrs) {
        return ops->write_attrs(io->region->opaque, addr, value, size, io->attrs);
    }
    return STRATA_DECODE_ERROR;
}

static unsigned impl_min(const struct strata_io_ops *ops)
{
    return ops->impl.min ? ops->impl.min : 1;
}

static unsigned impl_max(const struct strata_io_ops *ops)
{
    return ops->impl.max ? ops->impl.max : 4;
}

static unsigned piece_size(const struct strata_io_ops *ops, unsigned size)
{
    size = size < impl_max(ops) ? size : impl_max(ops);
    return size > impl_min(ops) ? size : impl_min(ops);
}

/* Where piece i lies in the value; negative when the piece is wider than the access. */
static int piece_shift(const struct memory_io *io, unsigned piece, unsigned i)
{
    return 8 * (is_big(io->region) ? (int)io->size - (int)piece - (int)i : (int)i);
}

static enum strata_result read_pieces(const struct memory_io *io, uint64_t *value)
{
    unsigned piece = piece_size(io->region->ops, io->size);
    enum strata_result result = STRATA_OK;

    if (piece == io->size) { /* nearly always */
        return call_read(io, io->addr, piece, value);
    }
    for (unsigned i = 0; i < io->size; i += piece) {
        int shift = piece_shift(io, piece, i);
        uint64_t part = 0;

        result |= call_read(io, io->addr + i, piece, &part);
        part &= memory_mask(piece);
        *value |= shift >= 0 ? part << shift : part >> -shift;
    }
    return result;
}

static enum strata_result write_pieces(const struct memory_io *io, uint64_t value)
{
    unsigned piece = piece_size(io->region->ops, io->size);
    enum strata_result result = STRATA_OK;

    if (piece == io->size) {
        return call_write(io, io->addr, piece, value);
    }
    for (unsigned i = 0; i < io->size; i += piece) {
        int shift = piece_shift(io, piece, i);
        uint64_t part = shift >= 0 ? value >> shift : value << -shift;

        result |= call_write(io, io->addr + i, piece, part & memory_mask(piece));
    }
    return result;
}

/* Does strict mode have to align pieces for this access? */
static bool needs_exact(const struct memory_io *io)
{
    const struct strata_io_ops *ops = io->region->ops;
    unsigned piece;

    if (likely(io->region->mem->config.mode != STRATA_STRICT) || ops->impl.unaligned) {
        return false;
    }
    piece = piece_size(ops, io->size);
    return (io->addr & (piece - 1)) != 0 || piece > io->size;
}

/* The shift of byte `at` of a number of `size` bytes in the device's order. */
static unsigned byte_shift(const struct memory_io *io, unsigned at, unsigned size)
{
    return 8 * (is_big(io->region) ? size - 1 - at : at);
}

static enum strata_result read_exact(const struct memory_io *io, uint64_t *value)
{
    unsigned piece = piece_size(io->region->ops, io->size), at = 0;
    enum strata_result result = STRATA_OK;

    while (at < io->size) {
        strata_addr base = (io->addr + at) & ~(strata_addr)(piece - 1);
        uint64_t part = 0;

        result |= call_read(io, base, piece, &part);
        for (; at < io->size && ((io->addr + at) & ~(strata_addr)(piece - 1)) == base; at++) {
            unsigned from = byte_shift(io, (unsigned)(io->addr + at - base), piece);

            *value |= (part >> from & 0xff) << byte_shift(io, at, io->size);
        }
    }
    return result;
}

/* The widest aligned piece that fits at `at` of the access; impl.min when none does. */
static unsigned exact_piece(const struct memory_io *io, unsigned at)
{
    const struct strata_io_ops *ops = io->region->ops;
    unsigned piece = impl_max(ops);

    while (piece > impl_min(ops) &&
           (piece > io->size - at || ((io->addr + at) & (piece - 1)) != 0)) {
        piece /= 2;
    }
    return piece;
}

static enum strata_result write_exact(const struct memory_io *io, uint64_t value)
{
    enum strata_result result = STRATA_OK;
    unsigned at = 0;

    while (at < io->size) {
        unsigned piece = exact_piece(io, at);
        strata_addr base = (io->addr + at) & ~(strata_addr)(piece - 1);
        uint64_t part = 0;

        if (base != io->addr + at || piece > io->size - at) {
            result |= call_read(io, base, piece, &part);
        }
        for (; at < io->size && ((io->addr + at) & ~(strata_addr)(piece - 1)) == base; at++) {
            unsigned to = byte_shift(io, (unsigned)(io->addr + at - base), piece);

            part &= ~(UINT64_C(0xff) << to);
            part |= (value >> byte_shift(io, at, io->size) & 0xff) << to;
        }
        result |= call_write(io, base, piece, part & memory_mask(piece));
    }
    return result;
}

/* Nearly every access: one that is valid and that the callbacks take as it is, to a region without
 * guard, lock or buffered writes. */
static inline bool is_plain(const struct memory_io *io)
{
    const struct strata_region *region = io->region;
    const struct strata_io_ops *ops = region->ops;
    unsigned size = io->size;

    return ops && !region->owner && !region->mem->config.io_lock && !(io->addr & (size - 1)) &&
           !__atomic_load_n(&region->flush_coalesced, __ATOMIC_RELAXED) && !ops->valid.accepts &&
           (!ops->valid.max || (size >= ops->valid.min && size <= ops->valid.max)) &&
           size >= impl_min(ops) && size <= impl_max(ops);
}

/*
 * Read a device. io: size 1, 2, 4 or 8. value: as the bus carries it; 0 when the access is refused.
 * Returns the callbacks' results ORed; STRATA_DECODE_ERROR for an invalid access,
 * STRATA_ACCESS_ERROR for a re-entrant one. In a read section; the region stays while it lasts.
 */
enum strata_result memory_io_read(const struct memory_io *io, uint64_t *value)
{
    struct strata_region *region = io->region;
    enum strata_result result = STRATA_ACCESS_ERROR;
    struct gate gate;

    *value = 0;
    if (likely(is_plain(io))) {
        result = call_read(io, io->addr, io->size, value);
    } else if (!memory_io_valid(io, false)) {
        return STRATA_DECODE_ERROR;
    } else {
        if (gate_enter(region, &gate)) {
            result = needs_exact(io) ? read_exact(io, value) : read_pieces(io, value);
        }
        gate_leave(region, &gate);
    }
    if (is_big(region)) {
        *value = memory_swap(*value, io->size);
    }
    *value &= memory_mask(io->size);
    return result;
}

/* Write a device, or signal the eventfd that the write hits. Like memory_io_read(). */
enum strata_result memory_io_write(const struct memory_io *io, uint64_t value)
{
    struct strata_region *region = io->region;
    enum strata_result result = STRATA_ACCESS_ERROR;
    struct gate gate;

    if (!is_plain(io) && !memory_io_valid(io, true)) {
        return STRATA_DECODE_ERROR;
    }
    value &= memory_mask(io->size);
    if (__atomic_load_n(&region->events, __ATOMIC_RELAXED) &&
        memory_events_signal(region, io->addr, io->size, value)) {
        return STRATA_OK;
    }
    if (is_big(region)) {
        value = memory_swap(value, io->size);
    }
    if (likely(is_plain(io))) {
        return call_write(io, io->addr, io->size, value);
    }
    if (gate_enter(region, &gate)) {
        result = needs_exact(io) ? write_exact(io, value) : write_pieces(io, value);
    }
    gate_leave(region, &gate);
    return result;
}
