/*
 * Reading and writing address spaces: piece by piece, RAM by copying, devices by callbacks.
 *
 * Memory that a device's register file looks like (RAM devices) is accessed with the exact width of
 * each piece. A write to RAM is entered into the bitmaps of the clients that the range's log mask
 * names, after the bytes are there. One call sees one commit's view throughout each piece; a
 * topology change between two pieces of a long access may be seen, as on a real bus.
 * Source: QEMU flatview_read_continue(), flatview_write_continue(), by rule.
 */
#include "memory/access.h"

#include "memory/copy.h"
#include "memory/dirty.h"
#include "memory/io.h"
#include "memory/ram.h"
#include "memory/space.h"

/* Bytes of a RAM range have been written. */
void memory_place_mark_dirty(const struct memory_place *place, uint64_t len)
{
    const struct strata_fast_range *head = &place->range->head;

    if (!(__atomic_load_n(&head->flags, __ATOMIC_ACQUIRE) & STRATA_FAST_WRITE) &&
        (len > 4096 || !strata_fast_is_marked(head, place->addr) ||
         !strata_fast_is_marked(head, place->addr + (len - 1)))) {
        memory_dirty_mark(place->range, place->addr, len);
    }
}

/* The same for accesses compiled into callers; see strata/fast.h. */
void strata_lens_mark(const struct strata_fast_range *range, strata_addr addr, uint64_t len)
{
    memory_dirty_mark((const struct memory_range *)range, addr, len);
}

/* How much of an access that is not direct goes in one step. In strict mode never beyond the range
 * or hole it began in. */
unsigned memory_place_piece(const struct memory_place *place, const struct memory_access *access)
{
    const struct memory_range *range = place->range;
    struct strata_region *region = range ? range->piece.region : NULL;
    uint64_t len = place->len;

    if (region && region->kind == STRATA_RAM_DEVICE) {
        len = len < 8 ? len : 8;
        return 1u << (63 - __builtin_clzll(len));
    }
    if (access->space->mem->config.mode == STRATA_STRICT) {
        struct strata_section next;

        if (range && range->head.last - place->addr < len) {
            len = range->head.last - place->addr + 1;
        } else if (!range && strata_space_next(access->space, place->addr,
                                               place->addr + (len - 1) < place->addr
                                                   ? UINT64_MAX
                                                   : place->addr + (len - 1),
                                               &next) == 0) {
            len = next.start - place->addr;
        }
    }
    return memory_io_piece(region, range ? memory_place_offset(place) : place->addr, len);
}

static bool is_refused(const struct memory_place *place, const struct memory_access *access)
{
    return access->attrs.memory && !(place->range && memory_place_region(place)->ram);
}

/* Read one piece that is not direct. value: as the bus carries it. */
enum strata_result memory_place_read(const struct memory_place *place,
                                     const struct memory_access *access, unsigned size,
                                     uint64_t *value)
{
    struct memory_io io = {.size = size, .attrs = access->attrs};

    if (is_refused(place, access)) {
        *value = 0;
        return STRATA_ACCESS_ERROR;
    }
    if (!place->range) {
        *value = __atomic_load_n(&access->space->open_bus, __ATOMIC_RELAXED) ? memory_mask(size) : 0;
        return STRATA_DECODE_ERROR;
    }
    io.region = memory_place_region(place);
    io.addr = memory_place_offset(place);
    if (io.region->kind == STRATA_RAM_DEVICE) {
        *value = memory_peek(memory_place_host(place), size);
        return STRATA_OK;
    }
    return memory_io_read(&io, value);
}

/* Write one piece that is not direct. */
enum strata_result memory_place_write(const struct memory_place *place,
                                      const struct memory_access *access, unsigned size,
                                      uint64_t value)
{
    struct memory_io io = {.size = size, .attrs = access->attrs};

    if (is_refused(place, access)) {
        return STRATA_ACCESS_ERROR;
    }
    if (!place->range) {
        return STRATA_DECODE_ERROR;
    }
    io.region = memory_place_region(place);
    io.addr = memory_place_offset(place);
    if (io.region->kind == STRATA_RAM_DEVICE) {
        if (memory_region_is_readonly(io.region)) {
            return STRATA_DECODE_ERROR;
        }
        memory_poke(memory_place_host(place), size, value);
        memory_place_mark_dirty(place, size);
        return STRATA_OK;
    }
    if (io.region->kind == STRATA_RAM || io.region->kind == STRATA_ROM ||
        (io.region->mem->config.mode == STRATA_STRICT && place->range->piece.readonly)) {
        return STRATA_DECODE_ERROR; /* read-only memory */
    }
    return memory_io_write(&io, value);
}

static enum strata_result read_piece(const struct memory_access *access, struct memory_place *place,
                                     uint8_t *buf)
{
    enum strata_result result;
    uint64_t value;

    if (memory_place_is_direct(place, access)) {
        memory_copy(buf, memory_place_host(place), place->len);
        return STRATA_OK;
    }
    place->len = memory_place_piece(place, access);
    result = memory_place_read(place, access, (unsigned)place->len, &value);
    memcpy(buf, &value, place->len);
    return result;
}

/*
 * Copy [addr, addr + len) of a space to buf; an access that runs past 2^64 goes on at 0. What fails
 * reads as zero. Returns the pieces' results ORed. Lock: none; device callbacks run in a read section.
 */
enum strata_result strata_read(struct strata_space *space, strata_addr addr, struct strata_attrs attrs,
                               void *buf, size_t len)
{
    struct memory_access access = {space, attrs, false};
    enum strata_result result = STRATA_OK;
    struct memory_place place;
    uint8_t *to = buf;

    base_rcu_read_lock();
    while (len > 0) {
        memory_translate(&access, addr, len, &place);
        result |= read_piece(&access, &place, to);
        to += place.len;
        addr += place.len;
        len -= place.len;
    }
    base_rcu_read_unlock();
    return result;
}

static enum strata_result write_piece(const struct memory_access *access, struct memory_place *place,
                                      const uint8_t *buf)
{
    uint64_t value = 0;

    if (memory_place_is_direct(place, access)) {
        memory_copy(memory_place_host(place), buf, place->len);
        memory_place_mark_dirty(place, place->len);
        return STRATA_OK;
    }
    place->len = memory_place_piece(place, access);
    memcpy(&value, buf, place->len);
    return memory_place_write(place, access, (unsigned)place->len, value);
}

/* Copy buf to [addr, addr + len) of a space. Like strata_read(). */
enum strata_result strata_write(struct strata_space *space, strata_addr addr,
                                struct strata_attrs attrs, const void *buf, size_t len)
{
    struct memory_access access = {space, attrs, true};
    enum strata_result result = STRATA_OK;
    const uint8_t *from = buf;
    struct memory_place place;

    base_rcu_read_lock();
    while (len > 0) {
        memory_translate(&access, addr, len, &place);
        result |= write_piece(&access, &place, from);
        from += place.len;
        addr += place.len;
        len -= place.len;
    }
    base_rcu_read_unlock();
    return result;
}

/* Write len times the same byte. Source: QEMU address_space_set(). */
enum strata_result strata_fill(struct strata_space *space, strata_addr addr, struct strata_attrs attrs,
                               uint8_t byte, size_t len)
{
    enum strata_result result = STRATA_OK;
    uint8_t buf[512];

    memset(buf, byte, len < sizeof(buf) ? len : sizeof(buf));
    while (len > 0) {
        size_t n = len < sizeof(buf) ? len : sizeof(buf);

        result |= strata_write(space, addr, attrs, buf, n);
        addr += n;
        len -= n;
    }
    return result;
}

/* A loader's write: RAM, ROM and ROM devices take it, all else is skipped. Always STRATA_OK.
 * Source: QEMU address_space_write_rom(). */
enum strata_result strata_write_rom(struct strata_space *space, strata_addr addr, const void *buf,
                                    size_t len)
{
    struct memory_access access = {.space = space, .write = true};
    const uint8_t *from = buf;
    struct memory_place place;

    base_rcu_read_lock();
    while (len > 0) {
        memory_translate(&access, addr, len, &place);
        if (!place.range || !memory_place_region(&place)->ram) {
            place.len = memory_place_piece(&place, &access);
        } else if (memory_place_region(&place)->kind != STRATA_RAM_DEVICE) {
            memory_copy(memory_place_host(&place), from, place.len);
            memory_place_mark_dirty(&place, place.len);
        }
        from += place.len;
        addr += place.len;
        len -= place.len;
    }
    base_rcu_read_unlock();
    return STRATA_OK;
}

static bool piece_valid(const struct memory_access *access, struct memory_place *place)
{
    struct memory_io io = {.attrs = access->attrs};

    if (memory_place_is_direct(place, access)) {
        return true;
    }
    if (!place->range || is_refused(place, access)) {
        return false;
    }
    io.region = memory_place_region(place);
    io.addr = memory_place_offset(place);
    if (access->space->mem->config.mode == STRATA_COMPATIBLE && io.region->kind != STRATA_RAM_DEVICE) {
        place->len = memory_io_piece(io.region, place->addr, place->len);
    } else {
        place->len = memory_place_piece(place, access);
    }
    io.size = (unsigned)place->len;
    if (io.region->kind == STRATA_RAM_DEVICE) {
        return !access->write || !memory_region_is_readonly(io.region);
    }
    return (io.region->kind == STRATA_IO || io.region->kind == STRATA_CONTAINER ||
            io.region->kind == STRATA_ROM_DEVICE) && memory_io_valid(&io, access->write);
}

/*
 * Would [addr, addr + len) be let through? Nothing is accessed. In compatible mode the piece size
 * comes from the space's address, as in QEMU; in strict mode from the region's, as the access itself
 * has it. Source: QEMU address_space_access_valid().
 */
bool strata_access_valid(struct strata_space *space, strata_addr addr, size_t len, bool write,
                         struct strata_attrs attrs)
{
    struct memory_access access = {space, attrs, write};
    struct memory_place place;
    bool valid = true;

    base_rcu_read_lock();
    while (len > 0 && valid) {
        memory_translate(&access, addr, len, &place);
        valid = piece_valid(&access, &place);
        addr += place.len;
        len -= place.len;
    }
    base_rcu_read_unlock();
    return valid;
}

/* Is what shows at addr not memory? Source: QEMU cpu_physical_memory_is_io(). */
bool strata_is_io(struct strata_space *space, strata_addr addr)
{
    struct memory_access access = {.space = space};
    struct memory_place place;
    bool io;

    base_rcu_read_lock();
    memory_translate(&access, addr, 1, &place);
    io = !place.range || !memory_place_region(&place)->ram ||
         (memory_place_region(&place)->kind == STRATA_ROM_DEVICE && !place.range->piece.romd);
    base_rcu_read_unlock();
    return io;
}
