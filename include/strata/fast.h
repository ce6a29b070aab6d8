/*
 * libstrata: accesses to RAM compiled into the caller, for emulators' inner loops.
 *
 *     strata_read_begin(mem);
 *     struct strata_lens lens = strata_lens_get(space);
 *     ... strata_lens_read64(&lens, addr, &value) ...        any number of accesses
 *     strata_read_end(mem);
 *
 * A lens shows one commit's view and is valid until the read section ends. What is not plain RAM
 * (devices, logged writes, pieces that an access straddles) goes through strata_load() and
 * strata_store(), with their results. Values are in host order.
 *
 * The structures below are the public heads of the library's own; their layout is part of the ABI.
 */
#ifndef STRATA_FAST_H
#define STRATA_FAST_H

#include "strata/access.h"
#include "strata/common.h"

STRATA_DECLS_BEGIN

enum strata_fast_flags {
    STRATA_FAST_READ = 1,  /* reads may go straight to host memory */
    STRATA_FAST_WRITE = 2, /* so may writes, and nobody wants to know of them */
    STRATA_FAST_MARK = 4,  /* so may writes, if strata_lens_mark() is called behind them */
    STRATA_FAST_MEMORY = 8, /* has host memory */
    STRATA_FAST_IOMMU = 16, /* is to be translated */
};

/* A flat range: bytes [start, last], found at host address bias + addr. When one client alone wants
 * to know of writes, bit (addr + marks_bias) / 4096 of its bitmap `marks` says whether it knows already. */
struct strata_fast_range {
    strata_addr start, last;
    uintptr_t bias;
    uint32_t flags;
    const uint64_t *marks; /* null: strata_lens_mark() decides */
    strata_addr marks_bias;
};

/*
 * A node of the dispatch radix covers [base, base + (count << shift)). An entry is 0 (nothing), a
 * range, or a node with bit 0 set; a node below may cover less than its slot, the rest is nothing.
 */
struct strata_fast_node {
    strata_addr base;
    uint32_t count;
    uint8_t shift;
    uintptr_t slot[];
};

struct strata_fast_view {
    uintptr_t root; /* an entry that covers the whole space */
};

struct strata_fast_space {
    struct strata_fast_view *view;
};

struct strata_lens {
    uintptr_t root;
    struct strata_space *space;
};

#ifndef STRATA_RACY
#if defined(__SANITIZE_THREAD__)
#define STRATA_RACY __attribute__((no_sanitize_thread, noinline, unused))
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define STRATA_RACY __attribute__((no_sanitize("thread"), noinline, unused))
#endif
#endif
#endif
#ifndef STRATA_RACY
#define STRATA_RACY inline __attribute__((__always_inline__, unused))
#endif

/* The view of the last commit. Inside a read section. */
static inline struct strata_lens strata_lens_get(struct strata_space *space)
{
    struct strata_fast_space *head = (struct strata_fast_space *)space;
    struct strata_fast_view *view = __atomic_load_n(&head->view, __ATOMIC_ACQUIRE);
    struct strata_lens lens = {__atomic_load_n(&view->root, __ATOMIC_ACQUIRE), space};

    return lens;
}

/* The range that holds addr, or null. */
static inline const struct strata_fast_range *strata_fast_find(uintptr_t entry, strata_addr addr)
{
    while (__builtin_expect(entry & 1, 1)) {
        const struct strata_fast_node *node = (const struct strata_fast_node *)(entry - 1);
        uint64_t i = (addr - node->base) >> node->shift;

        if (__builtin_expect(i >= node->count, 0)) {
            return (const struct strata_fast_range *)0;
        }
        entry = node->slot[i];
    }
    return (const struct strata_fast_range *)entry;
}

/* Are there `more` bytes behind addr in the range? */
static inline bool strata_fast_fits(const struct strata_fast_range *range, strata_addr addr,
                                    uint64_t more)
{
    return range->last - addr >= more;
}

/* Is the page of a byte that has been written known to be dirty, to all that want to know? */
static inline bool strata_fast_is_marked(const struct strata_fast_range *range, strata_addr addr)
{
    const uint64_t *marks = __atomic_load_n(&range->marks, __ATOMIC_RELAXED);
    uint64_t page = (addr + range->marks_bias) >> 12;

    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* the byte's store stays before the look */
    return marks && (__atomic_load_n(&marks[page / 64], __ATOMIC_RELAXED) >> page % 64 & 1);
}

/* Bytes of a range with STRATA_FAST_MARK have been written: enter them in the dirty bitmaps. */
STRATA_PUBLIC void strata_lens_mark(const struct strata_fast_range *range, strata_addr addr,
                                    uint64_t len);

#define STRATA_DEFINE_LENS(bits)                                                                   \
    struct strata_packed##bits {                                                                   \
        uint##bits##_t v;                                                                          \
    } __attribute__((packed, may_alias));                                                          \
    static STRATA_RACY uint##bits##_t strata_racy_read##bits(uintptr_t host)                       \
    {                                                                                              \
        return ((const volatile struct strata_packed##bits *)host)->v;                             \
    }                                                                                              \
    static STRATA_RACY void strata_racy_write##bits(uintptr_t host, uint##bits##_t value)          \
    {                                                                                              \
        ((volatile struct strata_packed##bits *)host)->v = value;                                  \
    }                                                                                              \
    static inline enum strata_result strata_lens_read##bits(const struct strata_lens *lens,        \
                                                            strata_addr addr,                      \
                                                            uint##bits##_t *value)                 \
    {                                                                                              \
        const struct strata_fast_range *range = strata_fast_find(lens->root, addr);                \
        enum strata_result result;                                                                 \
        uint64_t wide;                                                                             \
                                                                                                   \
        if (__builtin_expect(range && strata_fast_fits(range, addr, bits / 8 - 1) &&               \
                                 (__atomic_load_n(&range->flags, __ATOMIC_RELAXED) &               \
                                  STRATA_FAST_READ), 1)) {                                         \
            *value = strata_racy_read##bits(range->bias + addr);                                   \
            return STRATA_OK;                                                                      \
        }                                                                                          \
        result = strata_load(lens->space, addr, bits / 8, STRATA_NATIVE_ENDIAN, &wide);            \
        *value = (uint##bits##_t)wide;                                                             \
        return result;                                                                             \
    }                                                                                              \
    static inline enum strata_result strata_lens_write##bits(const struct strata_lens *lens,       \
                                                             strata_addr addr,                     \
                                                             uint##bits##_t value)                 \
    {                                                                                              \
        const struct strata_fast_range *range = strata_fast_find(lens->root, addr);                \
                                                                                                   \
        if (__builtin_expect(range && strata_fast_fits(range, addr, bits / 8 - 1), 1)) {           \
            uint32_t flags = __atomic_load_n(&range->flags, __ATOMIC_RELAXED);                     \
                                                                                                   \
            if (__builtin_expect(flags & STRATA_FAST_MARK, 1)) {                                   \
                strata_racy_write##bits(range->bias + addr, value);                                \
                if (!(flags & STRATA_FAST_WRITE) &&                                                \
                    (!strata_fast_is_marked(range, addr) ||                                        \
                     !strata_fast_is_marked(range, addr + (bits / 8 - 1)))) {                      \
                    strata_lens_mark(range, addr, bits / 8);                                       \
                }                                                                                  \
                return STRATA_OK;                                                                  \
            }                                                                                      \
        }                                                                                          \
        return strata_store(lens->space, addr, bits / 8, STRATA_NATIVE_ENDIAN, value);             \
    }

STRATA_DEFINE_LENS(8)
STRATA_DEFINE_LENS(16)
STRATA_DEFINE_LENS(32)
STRATA_DEFINE_LENS(64)

STRATA_DECLS_END

#endif
