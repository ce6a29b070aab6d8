/*
 * Checks a host address space against its invariants: VMAs sorted and disjoint; every entry inside
 * a VMA that allows it; every frame owned, counted and holding the contents of the very HVA that
 * maps it; the counters equal to what the tables hold. Used by tests and by the consistency check
 * of the engine.
 *
 * Locks: takes the mmap lock for writing; wants no lock-free walk with references under way.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "host/mm_impl.h"

struct check {
    struct host_mm *mm;
    char *text;
    size_t size;
    uint64_t rss_anon, rss_file, tables;
};

static int printf_like(2, 3) broken(const struct check *c, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintf(c->text, c->size, fmt, args);
    va_end(args);
    return -EUCLEAN;
}

static int check_vmas(const struct check *c)
{
    const struct host_vma_set *set = &c->mm->vmas;
    uint64_t last = 0;

    for (size_t i = 0; i < set->n; i++) {
        const struct host_vma *v = &set->v[i];

        if (v->start.v < last || v->start.v >= v->end.v || page_offset(v->start.v | v->end.v) ||
            v->end.v > host_mm_limit(c->mm)) {
            return broken(c, "VMA %zu at %llx lies wrong", i, (unsigned long long)v->start.v);
        }
        last = v->end.v;
    }
    return 0;
}

/* One 4 KiB frame of a leaf. */
static int check_frame(const struct check *c, uint64_t addr, uint64_t p, uint64_t entry)
{
    const struct host_frame *f = host_frame_at(c->mm->hm, pfn(p));
    unsigned long long at = addr;

    if (!f || f->type == HOST_FRAME_FREE || f->type == HOST_FRAME_HOST_PT ||
        f->type == HOST_FRAME_TABLE) {
        return broken(c, "entry at %llx names frame %llx, which is no page", at,
                      (unsigned long long)p);
    }
    if (c->mm->zero_pfn.v && p == c->mm->zero_pfn.v) {
        return entry & X86_PTE_W ? broken(c, "zero page writable at %llx", at) : 0;
    }
    if (f->owner != c->mm->id) {
        return broken(c, "frame %llx at %llx has owner %u", (unsigned long long)p, at, f->owner);
    }
    if (f->type == HOST_FRAME_ANON && f->data != hva_to_ptr(hva(addr))) {
        return broken(c, "frame at %llx holds the contents of %p", at, f->data);
    }
    if (f->type == HOST_FRAME_FILE) {
        uint64_t place = (uintptr_t)f->data, value;
        unsigned level;

        value = host_pte_load(host_pt_find(c->mm, place & (host_mm_limit(c->mm) - 1), &level));
        if (!(value & X86_PTE_P) || ((value & X86_PTE_ADDR_MASK) >> PAGE_SHIFT) +
                                            ((place & (pt_leaf_size(level) - 1)) >> PAGE_SHIFT) !=
                                        p) {
            return broken(c, "file frame at %llx holds the contents of %p", at, f->data);
        }
    }
    return 0;
}

static int check_leaf(struct check *c, uint64_t addr, uint64_t entry, unsigned level)
{
    const struct host_vma *vma = host_vma_find(&c->mm->vmas, addr);
    uint64_t n = pt_leaf_size(level) >> PAGE_SHIFT, p = (entry & X86_PTE_ADDR_MASK) >> PAGE_SHIFT;

    if (!vma || vma->end.v - addr < pt_leaf_size(level)) {
        return broken(c, "entry at %llx outside of VMAs", (unsigned long long)addr);
    }
    if ((entry & X86_PTE_W) && !(vma->flags & HOST_VMA_WRITE)) {
        return broken(c, "entry at %llx writable in a read-only VMA", (unsigned long long)addr);
    }
    if (n > 1 && (p & (n - 1))) {
        return broken(c, "huge entry at %llx unaligned", (unsigned long long)addr);
    }
    for (uint64_t i = 0; i < n; i++) {
        int err = check_frame(c, addr + (i << PAGE_SHIFT), p + i, entry);

        if (err) {
            return err;
        }
    }
    if (!(entry & HOST_PTE_SPECIAL) && p != c->mm->zero_pfn.v) {
        *(host_rss_of(c->mm, entry) == HOST_MM_rss_anon ? &c->rss_anon : &c->rss_file) += n;
    }
    return 0;
}

static int check_table(struct check *c, uint64_t table_entry, unsigned level, uint64_t base)
{
    const uint64_t *table = host_pte_table(c->mm, table_entry);
    const struct host_frame *f =
        &c->mm->hm->frames[(table_entry & X86_PTE_ADDR_MASK) >> PAGE_SHIFT];

    if (f->type != HOST_FRAME_HOST_PT || __atomic_load_n(&f->refcount, __ATOMIC_RELAXED) != 1) {
        return broken(c, "table at %llx level %u is not a table", (unsigned long long)base, level);
    }
    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        uint64_t e = host_pte_load(table + i), addr = base + i * pt_leaf_size(level);
        int err = 0;

        if (!(e & X86_PTE_P)) {
            continue;
        }
        if (host_pte_is_leaf(e, level)) {
            err = check_leaf(c, addr, e, level);
        } else {
            c->tables++;
            err = check_table(c, e, level - 1, addr);
        }
        if (err) {
            return err;
        }
    }
    return 0;
}

static int check_counters(const struct check *c)
{
    struct host_mm_stats s;

    host_mm_get_stats(c->mm, &s);
    if (s.rss_anon != c->rss_anon || s.rss_file != c->rss_file || s.rss_tables != c->tables) {
        return broken(c, "counted anon %llu file %llu tables %llu, found %llu %llu %llu",
                      (unsigned long long)s.rss_anon, (unsigned long long)s.rss_file,
                      (unsigned long long)s.rss_tables, (unsigned long long)c->rss_anon,
                      (unsigned long long)c->rss_file, (unsigned long long)c->tables);
    }
    return 0;
}

/* See mm.h. */
int host_mm_check(struct host_mm *mm, char *text, size_t size)
{
    struct check c = {.mm = mm, .text = text, .size = size};
    int err;

    pthread_rwlock_wrlock(&mm->mmap_lock);
    err = check_vmas(&c);
    if (!err) {
        err = check_table(&c, mm->root.v, mm->levels, 0);
    }
    if (!err) {
        err = check_counters(&c);
    }
    pthread_rwlock_unlock(&mm->mmap_lock);
    return err;
}
