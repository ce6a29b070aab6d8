/*
 * Dirty bitmaps of RAM blocks: one bit per 4 KiB page and client, LSB first, all set when the block
 * is made. Any thread sets bits; a set bit is set again only after a look, so that pages written over
 * and over cost a load. Clearing takes whole words by atomic exchange.
 *
 * Ordering. Who clears a bit reads the page afterwards; no write may be lost between the two:
 *
 *   writer                         harvester
 *   store to the page              clear the bit
 *   bit set already? then done     full barrier in every thread (membarrier)
 *   else set it, atomically        read the page
 *
 * A writer that finds the bit set did so before the harvester cleared it; the barrier, wherever it
 * meets that writer, either comes behind its look, and then its store is visible to the harvester,
 * or before, and then the look finds the bit cleared. Without membarrier a writer always does the
 * atomic operation, which is a full barrier of its own.
 * Source: QEMU cpu_physical_memory_set_dirty_range() and its kin, by rule.
 */
#include "memory/dirty.h"

#include <linux/membarrier.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "memory/ram.h"

#define PAGE (UINT64_C(1) << MEMORY_DIRTY_SHIFT)

/* Bitmaps for a block, all dirty. 0 or -ENOMEM; memory_dirty_fini() cleans up either way. */
int memory_dirty_init(struct strata_ram *ram)
{
    uint64_t pages = (ram->max_size + PAGE - 1) >> MEMORY_DIRTY_SHIFT;

    ram->dirty_words = (size_t)((pages + 63) / 64);
    for (int i = 0; i < STRATA_DIRTY_CLIENTS; i++) {
        ram->dirty[i] = memory_zalloc(ram->mem, ram->dirty_words * sizeof(uint64_t));
        if (!ram->dirty[i]) {
            return memory_fail_alloc(ram->mem);
        }
    }
    strata_ram_set_dirty(ram, 0, ram->size, MEMORY_DIRTY_ALL);
    return 0;
}

/* Free the bitmaps. */
void memory_dirty_fini(struct strata_ram *ram)
{
    for (int i = 0; i < STRATA_DIRTY_CLIENTS; i++) {
        memory_free(ram->mem, ram->dirty[i], ram->dirty_words * sizeof(uint64_t));
        ram->dirty[i] = NULL;
    }
}

/* The pages that [start, start + len) touches, cut to the block: bits [*first, *end). */
static bool page_range(const struct strata_ram *ram, uint64_t start, uint64_t len, uint64_t *first,
                       uint64_t *end)
{
    if (!len || start >= ram->max_size) {
        return false;
    }
    len = len < ram->max_size - start ? len : ram->max_size - start;
    *first = start >> MEMORY_DIRTY_SHIFT;
    *end = ((start + len - 1) >> MEMORY_DIRTY_SHIFT) + 1;
    return true;
}

/* The bits of word `w` that lie in [first, end). */
static uint64_t word_mask(uint64_t w, uint64_t first, uint64_t end)
{
    uint64_t mask = ~UINT64_C(0);

    if (w == first / 64) {
        mask <<= first % 64;
    }
    if (w == (end - 1) / 64) {
        mask &= ~UINT64_C(0) >> (63 - (end - 1) % 64);
    }
    return mask;
}

/* Can harvesters make every thread pass a barrier? Then writers need none. */
bool memory_dirty_register(void)
{
    return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
}

/* The harvester's half, after clearing bits. */
static void order_after_clear(const struct strata_ram *ram)
{
    if (ram->mem->fenceless) {
        syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
    }
}

static void set_bits(const struct strata_ram *ram, uint64_t *map, uint64_t first, uint64_t end)
{
    bool look = ram->mem->fenceless;

    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* the compiler keeps the page's store before the look */
    for (uint64_t w = first / 64; w <= (end - 1) / 64; w++) {
        uint64_t mask = word_mask(w, first, end);

        if (!look || (__atomic_load_n(&map[w], __ATOMIC_RELAXED) & mask) != mask) {
            __atomic_fetch_or(&map[w], mask, __ATOMIC_SEQ_CST);
        }
    }
}

/*
 * Mark the pages of [start, start + len) for the clients of `mask` (1 << client). Bytes beyond the
 * block are ignored. Any thread.
 */
void strata_ram_set_dirty(struct strata_ram *ram, uint64_t start, uint64_t len, unsigned mask)
{
    uint64_t first, end;

    if (!page_range(ram, start, len, &first, &end)) {
        return;
    }
    for (int i = 0; i < STRATA_DIRTY_CLIENTS; i++) {
        if (mask & (1u << i)) {
            set_bits(ram, ram->dirty[i], first, end);
        }
    }
}

/*
 * Bytes [addr, addr + len) of a flat range have been written: mark them for the clients of its log
 * mask. The common case, one page that all of them know to be dirty, costs a load per client.
 */
void memory_dirty_mark(const struct memory_range *range, strata_addr addr, uint64_t len)
{
    unsigned mask = __atomic_load_n(&range->piece.log_mask, __ATOMIC_RELAXED), left = mask;
    uint64_t start = addr - range->head.start + range->piece.offset;
    struct strata_ram *ram = range->piece.region->ram;
    uint64_t page = start >> MEMORY_DIRTY_SHIFT;

    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    if (ram->mem->fenceless && len && (start + len - 1) >> MEMORY_DIRTY_SHIFT == page) {
        while (left) {
            const uint64_t *map = ram->dirty[__builtin_ctz(left)];

            if (!(__atomic_load_n(&map[page / 64], __ATOMIC_RELAXED) >> page % 64 & 1)) {
                break;
            }
            left &= left - 1;
        }
    }
    if (left) {
        strata_ram_set_dirty(ram, start, len, left);
    }
}

/* Clear the pages of a range for every client, telling nobody. */
void memory_dirty_clear(struct strata_ram *ram, uint64_t start, uint64_t len)
{
    uint64_t first, end;

    if (!page_range(ram, start, len, &first, &end)) {
        return;
    }
    for (int i = 0; i < STRATA_DIRTY_CLIENTS; i++) {
        for (uint64_t w = first / 64; w <= (end - 1) / 64; w++) {
            __atomic_fetch_and(&ram->dirty[i][w], ~word_mask(w, first, end), __ATOMIC_ACQ_REL);
        }
    }
}

/* Is any page of the range dirty for the client? Any thread. */
bool strata_ram_get_dirty(const struct strata_ram *ram, uint64_t start, uint64_t len,
                          enum strata_dirty_client client)
{
    uint64_t first, end;

    if (!page_range(ram, start, len, &first, &end)) {
        return false;
    }
    for (uint64_t w = first / 64; w <= (end - 1) / 64; w++) {
        if (__atomic_load_n(&ram->dirty[client][w], __ATOMIC_ACQUIRE) & word_mask(w, first, end)) {
            return true;
        }
    }
    return false;
}

/* Take a word's bits out; a clean word costs one load. */
static uint64_t take_word(uint64_t *word, uint64_t mask)
{
    if (!(__atomic_load_n(word, __ATOMIC_RELAXED) & mask)) {
        return 0;
    }
    return mask == ~UINT64_C(0) ? __atomic_exchange_n(word, 0, __ATOMIC_ACQ_REL)
                                : __atomic_fetch_and(word, ~mask, __ATOMIC_ACQ_REL) & mask;
}

/* Eight words without a bit: most of a bitmap, most of the time. */
static bool words_clean(const uint64_t *word)
{
    uint64_t any = 0;

    for (int i = 0; i < 8; i++) {
        any |= __atomic_load_n(&word[i], __ATOMIC_RELAXED);
    }
    return any == 0;
}

/*
 * Clear the pages of a range for a client; true if any was dirty, and then listeners that delay
 * re-protection are told (log_clear). Any thread; takes the lock to tell.
 */
bool strata_ram_test_clear_dirty(struct strata_ram *ram, uint64_t start, uint64_t len,
                                 enum strata_dirty_client client)
{
    uint64_t first, end, any = 0;

    if (!page_range(ram, start, len, &first, &end)) {
        return false;
    }
    for (uint64_t w = first / 64; w <= (end - 1) / 64; w++) {
        any |= take_word(&ram->dirty[client][w], word_mask(w, first, end));
    }
    if (any) {
        order_after_clear(ram);
    }
    if (any && ram->region) {
        strata_region_clear_dirty(ram->region, start, len);
    }
    return any != 0;
}

/*
 * Move a client's bits of [start, start + len) into `bitmap` and clear them.
 * start: a multiple of 256 KiB; bitmap: one bit per page, LSB first, whole words, overwritten.
 * Returns how many were set; listeners are told (log_clear) if any. Any thread.
 */
uint64_t strata_ram_harvest_dirty(struct strata_ram *ram, uint64_t start, uint64_t len,
                                  enum strata_dirty_client client, uint64_t *bitmap)
{
    uint64_t first, end, count = 0, w;

    if (!page_range(ram, start, len, &first, &end) || first % 64) {
        return 0;
    }
    for (w = first / 64; w < end / 64; w++) {
        uint64_t *map = ram->dirty[client], bits;

        while (end / 64 - w >= 8 && words_clean(&map[w])) {
            memset(&bitmap[w - first / 64], 0, 8 * sizeof(uint64_t));
            w += 8;
        }
        if (w == end / 64) {
            break;
        }
        bits = take_word(&map[w], ~UINT64_C(0));
        bitmap[w - first / 64] = bits;
        count += bits == ~UINT64_C(0) ? 64 : (unsigned)__builtin_popcountll(bits);
    }
    if (end % 64) {
        uint64_t bits = take_word(&ram->dirty[client][w], word_mask(w, first, end));

        bitmap[w - first / 64] = bits;
        count += (unsigned)__builtin_popcountll(bits);
    }
    if (count) {
        order_after_clear(ram);
    }
    if (count && ram->region) {
        strata_region_clear_dirty(ram->region, start, len);
    }
    return count;
}

/* How many pages of the block's used size are dirty for a client. Any thread. */
uint64_t strata_ram_count_dirty(const struct strata_ram *ram, enum strata_dirty_client client)
{
    uint64_t first, end, count = 0;

    if (!page_range(ram, 0, strata_ram_size(ram), &first, &end)) {
        return 0;
    }
    for (uint64_t w = 0; w <= (end - 1) / 64; w++) {
        uint64_t bits = __atomic_load_n(&ram->dirty[client][w], __ATOMIC_RELAXED);

        count += (unsigned)__builtin_popcountll(bits & word_mask(w, first, end));
    }
    return count;
}

/* OR one word of a foreign bitmap into a client's map at a bit offset; newly set bits are counted. */
static uint64_t or_word(const struct strata_ram *ram, uint64_t *map, uint64_t page, uint64_t bits)
{
    unsigned shift = page % 64;
    uint64_t fresh = 0, w = page / 64, part;

    for (int half = 0; half < 2; half++) {
        part = half == 0 ? bits << shift : shift ? bits >> (64 - shift) : 0;
        if (part && w + (unsigned)half < ram->dirty_words) {
            uint64_t was = __atomic_fetch_or(&map[w + (unsigned)half], part, __ATOMIC_RELEASE);

            fresh += (unsigned)__builtin_popcountll(part & ~was);
        }
    }
    return fresh;
}

/*
 * Enter what an accelerator logged: display always, migration while tracking, code while translated
 * code is tracked. bitmap: npages bits, LSB first; bit 0 is the page at byte `start`. Pages beyond the
 * block are ignored. Returns how many pages became dirty for migration. Any thread.
 * Source: QEMU cpu_physical_memory_set_dirty_lebitmap().
 */
uint64_t strata_ram_import_dirty(struct strata_ram *ram, uint64_t start, const uint64_t *bitmap,
                                 uint64_t npages)
{
    unsigned mask = memory_dirty_import_mask(ram->mem);
    uint64_t pages = (ram->max_size + PAGE - 1) >> MEMORY_DIRTY_SHIFT;
    uint64_t first = start >> MEMORY_DIRTY_SHIFT, fresh = 0;

    if (first >= pages) {
        return 0;
    }
    npages = npages < pages - first ? npages : pages - first;
    for (uint64_t i = 0; i < npages; i += 64) {
        uint64_t bits = bitmap[i / 64];

        if (npages - i < 64) {
            bits &= (UINT64_C(1) << (npages - i)) - 1;
        }
        for (int c = 0; bits && c < STRATA_DIRTY_CLIENTS; c++) {
            uint64_t n = mask & (1u << c) ? or_word(ram, ram->dirty[c], first + i, bits) : 0;

            fresh += c == STRATA_DIRTY_MIGRATION ? n : 0;
        }
    }
    return fresh;
}
