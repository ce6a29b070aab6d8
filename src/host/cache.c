/*
 * Pages of shared files and memfds: two mappings of one page of a file have one frame. A hash from
 * (file, page of the file) to the frame; the key is kept in the frame itself (next: file number,
 * prev: page number), so that the table is four bytes a place.
 *
 *   fault: find (counted for the new mapping) or allocate and add     refcount = 1 (cache) + mappings
 *   unmap: contents at the HVA that goes? then at another mapping's;  last mapping: out of the cache
 *
 * Private mappings take no part: the process may have copied their pages without our seeing it.
 *
 * Invariants: a huge block and a single frame never stand for the same page of a file; a cached
 * frame has type FILE and a file number; its contents are at an HVA that maps it (while anything
 * maps it).
 * Locks: `cache.lock`, inside the mmap lock, outside of the frame allocator's. Left out: sharing
 * between address spaces, more than 2^32 pages in a file.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/mm_impl.h"

#define FIRST_SIZE 256u /* places */

/* A page of a file, or the 2 MiB that start there. */
struct key {
    uint32_t file, page;
    bool huge;
};

static struct host_frame *frame(struct host_mm *mm, uint64_t p)
{
    return &mm->hm->frames[p];
}

static struct key key_of(const struct host_frame *f)
{
    return (struct key){f->next, f->prev, f->order != 0};
}

static bool key_eq(struct key a, struct key b)
{
    return a.file == b.file && a.page == b.page && a.huge == b.huge;
}

static uint64_t hash(struct key k)
{
    uint64_t x = ((uint64_t)k.file << 32 | k.page) * 2 + k.huge;

    x *= UINT64_C(0x9e3779b97f4a7c15);
    return x ^ x >> 32;
}

/* Place of the key, or the free place where it would go. */
static uint64_t find_place(struct host_mm *mm, struct key k)
{
    const struct host_cache *c = &mm->cache;
    uint64_t i = hash(k) & (c->size - 1);

    while (c->places[i] && !key_eq(key_of(frame(mm, c->places[i])), k)) {
        i = (i + 1) & (c->size - 1);
    }
    return i;
}

/* Make room for one more. 0 or -ENOMEM. */
static int reserve(struct host_mm *mm)
{
    struct host_cache *c = &mm->cache;
    uint32_t *old = c->places;
    uint64_t old_size = c->size, size = c->size ? c->size * 2 : FIRST_SIZE;

    if (c->size && (c->used + 1) * 4 < c->size * 3) {
        return 0;
    }
    c->places = host_calloc(mm->hm, size, sizeof(*c->places));
    if (!c->places) {
        c->places = old;
        return -ENOMEM;
    }
    c->size = size;
    for (uint64_t i = 0; i < old_size; i++) {
        if (old[i]) {
            c->places[find_place(mm, key_of(frame(mm, old[i])))] = old[i];
        }
    }
    free(old);
    return 0;
}

/* Take the frame's place out, closing the gap. */
static void remove_place(struct host_mm *mm, struct key k)
{
    struct host_cache *c = &mm->cache;
    uint64_t mask = c->size - 1, gap = find_place(mm, k);

    for (uint64_t i = (gap + 1) & mask; c->places[i]; i = (i + 1) & mask) {
        uint64_t home = hash(key_of(frame(mm, c->places[i]))) & mask;

        if (((i - home) & mask) >= ((i - gap) & mask)) {
            c->places[gap] = c->places[i];
            gap = i;
        }
    }
    c->places[gap] = 0;
    c->used--;
}

/* Number of a file, from 1; 0 when memory for it is lacking. */
static uint32_t file_number(struct host_mm *mm, const struct host_vma *vma)
{
    struct host_cache *c = &mm->cache;
    struct host_file *more;

    for (uint32_t i = 0; i < c->nr_files; i++) {
        if (c->files[i].dev == vma->dev && c->files[i].ino == vma->ino) {
            return i + 1;
        }
    }
    more = host_calloc(mm->hm, c->nr_files + 1, sizeof(*more));
    if (!more) {
        return 0;
    }
    if (c->nr_files) {
        memcpy(more, c->files, c->nr_files * sizeof(*more));
    }
    free(c->files);
    c->files = more;
    c->files[c->nr_files++] = (struct host_file){vma->dev, vma->ino};
    return c->nr_files;
}

static uint64_t page_in_file(const struct host_vma *vma, uint64_t addr)
{
    return (vma->offset + (addr - vma->start.v)) >> PAGE_SHIFT;
}

/* The frame for a key, or 0. */
static uint64_t lookup(struct host_mm *mm, struct key k)
{
    return mm->cache.size ? mm->cache.places[find_place(mm, k)] : 0;
}

static bool any_single(struct host_mm *mm, struct key k)
{
    k.huge = false;
    for (unsigned i = 0; i < PT_ENTRIES; i++, k.page++) {
        if (lookup(mm, k)) {
            return true;
        }
    }
    return false;
}

/* Is the frame mapped at the HVA where its contents are? Only a pin can keep one for which not. */
static bool has_place(struct host_mm *mm, pfn_t p)
{
    uint64_t at = (uintptr_t)host_frame_data(frame(mm, p.v)), value;
    unsigned level;

    value = host_pte_load(host_pt_find(mm, at, &level));
    return (value & X86_PTE_P) && ((value & X86_PTE_ADDR_MASK) >> PAGE_SHIFT) +
                                          ((at & (pt_leaf_size(level) - 1)) >> PAGE_SHIFT) ==
                                      p.v;
}

static void set_place(struct host_mm *mm, pfn_t p, uint64_t addr)
{
    struct host_frame *f = frame(mm, p.v);

    __atomic_store_n(&f->data, hva_to_ptr(hva(addr)), __ATOMIC_RELAXED);
    __atomic_store_n(&f->gen, f->gen + 1, __ATOMIC_RELAXED);
}

/* Find what the cache has for a fault: 0 and *out (a reference taken), -ENOENT, or -EAGAIN when a
 * huge frame is wanted where single ones are in use. Lock: cache lock held. */
static int find(struct host_mm *mm, struct key k, uint64_t addr, pfn_t *out)
{
    struct key block = {k.file, k.page & ~(uint32_t)(PT_ENTRIES - 1), true};
    uint64_t p = lookup(mm, block);

    if (p) {
        p += k.huge ? 0 : k.page - block.page;
    } else if (k.huge) {
        return any_single(mm, block) ? -EAGAIN : -ENOENT;
    } else {
        p = lookup(mm, k);
    }
    if (!p || never(!host_frame_try_get(mm->hm, pfn(p)))) {
        return -ENOENT;
    }
    out->v = p;
    for (uint64_t i = 0; i < (k.huge ? PT_ENTRIES : 1u); i++) {
        if (!has_place(mm, pfn(p + i))) {
            set_place(mm, pfn(p + i), addr + (i << PAGE_SHIFT));
        }
    }
    return 0;
}

/*
 * The frame, or block of req->order, for the page of a shared file mapping at addr, with a
 * reference for the mapping. Returns 0; -EAGAIN: small frames must do; -ENOMEM.
 * Lock: mmap lock held; takes the cache's.
 */
int host_cache_get(struct host_mm *mm, const struct host_vma *vma, uint64_t addr,
                   const struct host_alloc *req, pfn_t *out)
{
    uint64_t base = addr & ~((PAGE_SIZE << req->order) - 1), page = page_in_file(vma, base);
    struct key k = {.page = (uint32_t)page, .huge = req->order != 0};
    struct host_frame *f;
    int err = -ENOMEM;

    pthread_mutex_lock(&mm->cache.lock);
    k.file = file_number(mm, vma);
    if (!k.file || page >> 32) {
        goto out;
    }
    err = find(mm, k, base, out);
    if (err != -ENOENT) {
        goto out;
    }
    err = reserve(mm);
    if (!err) {
        err = host_block_alloc(host_impl(mm->hm), req, out);
    }
    if (!err) {
        uint64_t place = find_place(mm, k);

        f = frame(mm, out->v);
        f->next = k.file;
        f->prev = k.page;
        mm->cache.places[place] = (uint32_t)out->v;
        mm->cache.used++;
        __atomic_fetch_add(&f->refcount, 1, __ATOMIC_RELAXED); /* the cache's own */
    }
out:
    pthread_mutex_unlock(&mm->cache.lock);
    return err;
}

static struct host_frame *head_of(struct host_mm *mm, pfn_t p)
{
    struct host_frame *f = frame(mm, p.v);

    return host_frame_test(f, HOST_FRAME_TAIL) ? frame(mm, f->link) : f;
}

/* Is the frame one of the cache's? */
bool host_frame_is_cached(struct host_mm *mm, pfn_t p)
{
    const struct host_frame *head = head_of(mm, p);

    return head->type == HOST_FRAME_FILE && head->next != 0;
}

/* Does this VMA map the file's page by this frame? Sets *addr to where. */
static bool maps_frame(struct host_mm *mm, const struct host_vma *vma, struct key k, pfn_t p,
                       uint64_t *addr)
{
    const struct host_file *file = &mm->cache.files[k.file - 1];
    uint64_t at = ((uint64_t)k.page << PAGE_SHIFT) - vma->offset + vma->start.v, value;
    unsigned level;

    if (!(vma->flags & HOST_VMA_SHARED) || vma->dev != file->dev || vma->ino != file->ino ||
        at < vma->start.v || at >= vma->end.v) {
        return false;
    }
    *addr = at;
    value = host_pte_load(host_pt_find(mm, at, &level));
    return (value & X86_PTE_P) && ((value & X86_PTE_ADDR_MASK) >> PAGE_SHIFT) +
                                          ((at & (pt_leaf_size(level) - 1)) >> PAGE_SHIFT) ==
                                      p.v;
}

/* The contents were at an HVA that goes: find another one that maps the frame. */
static void find_other_place(struct host_mm *mm, pfn_t p)
{
    const struct host_frame *head = head_of(mm, p);
    struct key k = key_of(head);
    uint64_t addr;

    k.page += (uint32_t)(p.v - host_frame_pfn(mm->hm, head).v);
    for (size_t i = 0; i < mm->vmas.n; i++) {
        if (maps_frame(mm, &mm->vmas.v[i], k, p, &addr)) {
            set_place(mm, p, addr);
            return;
        }
    }
}

/*
 * A mapping of n frames from p at addr has been taken out (its references not yet dropped): let the
 * cache follow. Lock: mmap lock held for writing.
 */
void host_cache_unmapped(struct host_mm *mm, pfn_t p, uint64_t addr, uint64_t n)
{
    struct host_frame *head = head_of(mm, p);
    bool last;

    pthread_mutex_lock(&mm->cache.lock);
    last = __atomic_load_n(&head->refcount, __ATOMIC_ACQUIRE) == 2; /* the cache's and this one's */
    if (last) {
        remove_place(mm, key_of(head));
        head->next = head->prev = 0;
        __atomic_fetch_sub(&head->refcount, 1, __ATOMIC_RELEASE);
    }
    for (uint64_t i = 0; !last && i < n; i++) {
        if (host_frame_data(frame(mm, p.v + i)) == hva_to_ptr(hva(addr + (i << PAGE_SHIFT)))) {
            find_other_place(mm, pfn(p.v + i));
        }
    }
    pthread_mutex_unlock(&mm->cache.lock);
}

/* Frames still cached (their pins outlived the mappings) are let go; tables freed. */
void host_cache_fini(struct host_mm *mm)
{
    for (uint64_t i = 0; i < mm->cache.size; i++) {
        if (mm->cache.places[i]) {
            frame(mm, mm->cache.places[i])->next = 0;
            host_frame_put(mm->hm, pfn(mm->cache.places[i]));
        }
    }
    free(mm->cache.places);
    free(mm->cache.files);
    pthread_mutex_destroy(&mm->cache.lock);
}
