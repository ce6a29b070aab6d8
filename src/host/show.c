/*
 * Prints a host address space and the memory behind it: VMAs, figures, zones and free blocks. What
 * the monitor shows and what one reads when a test fails. Writes to the caller's stream only.
 *
 * Locks: mmap lock for reading while VMAs are printed; figures are taken as their own functions
 * take them.
 */
#include <inttypes.h>

#include "host/mm_impl.h"

static const char *kind_of(const struct host_vma *vma)
{
    if (vma->flags & HOST_VMA_PFNMAP) {
        return "pfnmap";
    }
    if (vma->flags & HOST_VMA_HUGETLB) {
        return vma->page_shift == 30 ? "hugetlb-1g" : "hugetlb-2m";
    }
    return vma->flags & HOST_VMA_FILE ? "file" : "anon";
}

static void show_vma(const struct host_vma *vma, FILE *out)
{
    fprintf(out, "%016" PRIx64 "-%016" PRIx64 " %c%c%c%c %-10s", vma->start.v, vma->end.v,
            vma->flags & HOST_VMA_READ ? 'r' : '-', vma->flags & HOST_VMA_WRITE ? 'w' : '-',
            vma->flags & HOST_VMA_EXEC ? 'x' : '-', vma->flags & HOST_VMA_SHARED ? 's' : 'p',
            kind_of(vma));
    if (vma->flags & HOST_VMA_FILE) {
        fprintf(out, " ino %" PRIu64 " offset 0x%" PRIx64, vma->ino, vma->offset);
    }
    fprintf(out, "%s%s%s%s\n", vma->flags & HOST_VMA_HUGEPAGE ? " hugepage" : "",
            vma->flags & HOST_VMA_NOHUGEPAGE ? " nohugepage" : "",
            vma->flags & HOST_VMA_LOCKED ? " locked" : "",
            vma->flags & HOST_VMA_MERGEABLE ? " mergeable" : "");
}

static void show_figures(struct host_mm *mm, FILE *out)
{
    struct host_mm_stats s;

    host_mm_get_stats(mm, &s);
#define SHOW_COUNTER(name)                                                                         \
    if (s.name) {                                                                                  \
        fprintf(out, "%s %" PRIu64 "\n", #name, s.name);                                           \
    }
    HOST_MM_COUNTERS(SHOW_COUNTER)
#undef SHOW_COUNTER
}

static void show_memory(struct host_memory *hm, FILE *out)
{
    static const char *const names[HOST_NR_ZONES] = {"dma", "dma32", "normal"};
    struct host_memory_stats s;

    host_memory_get_stats(hm, &s);
    for (unsigned z = 0; z < HOST_NR_ZONES; z++) {
        if (!s.zone[z].managed) {
            continue;
        }
        fprintf(out,
                "zone %s: managed %" PRIu64 " free %" PRIu64 " untouched %" PRIu64 " min %" PRIu64
                " low %" PRIu64 " high %" PRIu64 "\n  free blocks by order:",
                names[z], s.zone[z].managed, s.zone[z].free, s.zone[z].untouched, s.zone[z].min,
                s.zone[z].low, s.zone[z].high);
        for (unsigned o = 0; o <= HOST_MAX_ORDER; o++) {
            fprintf(out, " %" PRIu64, s.zone[z].blocks[o]);
        }
        fprintf(out, "\n  fragmentation for 2 MiB: %d\n",
                host_zone_fragmentation(hm, (enum host_zone_id)z, HOST_PAGEBLOCK_ORDER));
    }
}

/* See mm.h. */
void host_mm_show(struct host_mm *mm, FILE *out)
{
    pthread_rwlock_rdlock(&mm->mmap_lock);
    for (size_t i = 0; i < mm->vmas.n; i++) {
        show_vma(&mm->vmas.v[i], out);
    }
    pthread_rwlock_unlock(&mm->mmap_lock);
    show_figures(mm, out);
    show_memory(mm->hm, out);
}
