/*
 * Allocation and freeing of frames, in front of the zones: per-CPU lists of single frames, filling
 * in of frame metadata, storage of table frames, references. Flow: access, step "host frame".
 *
 * Invariants:
 *  1. A frame on a per-CPU list has refcount 0, type FREE, no contents and no flag but STALE.
 *  2. A list holds frames whose 2 MiB block had the list's migrate type when they were put
 *     there.
 *
 * Locks: the per-CPU list's lock, leaf but for zone locks. The CPU is a hint only: a thread that
 * moves to another processor in between is as right as before.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "host/memory_impl.h"

static struct host_pcp *this_pcp(struct host_memory_impl *m)
{
    int cpu = sched_getcpu();

    return &m->pcp[(cpu < 0 ? 0u : (unsigned)cpu) % m->nr_cpus];
}

static struct host_pcp *lock_pcp(struct host_memory_impl *m)
{
    struct host_pcp *pcp = this_pcp(m);

    pthread_mutex_lock(&pcp->lock);
    return pcp;
}

/* Take one frame through the per-CPU list, refilling it by a batch. Lock: takes the list's. */
static bool take_single(struct host_memory_impl *m, const struct host_alloc *req, uint64_t *pfn)
{
    unsigned mt = req->flags & HOST_GFP_MT_MASK;
    struct host_pcp *pcp = lock_pcp(m);
    bool ok = true;

    if (!pcp->count[mt]) {
        pcp->count[mt] = host_zones_take_batch(m, req->flags, pcp->pfns[mt], HOST_PCP_BATCH);
    }
    if (pcp->count[mt]) {
        *pfn = pcp->pfns[mt][--pcp->count[mt]];
        pcp->allocs[0]++;
        pcp->in_use[req->type]++;
    } else {
        ok = false;
    }
    pthread_mutex_unlock(&pcp->lock);
    return ok;
}

static int take_from_zones(struct host_memory_impl *m, const struct host_alloc *req, uint64_t *pfn)
{
    return req->order == HOST_GIGANTIC_ORDER ? host_zones_take_gigantic(m, pfn)
                                             : host_zones_take(m, req->order, req->flags, pfn);
}

/* Take a block from the zones, or a frame that must be in a low zone. */
static bool take_block(struct host_memory_impl *m, const struct host_alloc *req, uint64_t *pfn)
{
    struct host_pcp *pcp;

    if (take_from_zones(m, req, pfn) != 0) {
        if (req->flags & HOST_GFP_TRY) {
            return false;
        }
        /* Frames that CPUs keep may be what a larger block lacks. */
        host_pcp_drain(m);
        if (take_from_zones(m, req, pfn) != 0) {
            return false;
        }
    }
    pcp = lock_pcp(m);
    pcp->allocs[req->order < HOST_MAX_ORDER ? req->order : HOST_MAX_ORDER]++;
    pcp->in_use[req->type] += INT64_C(1) << req->order;
    pthread_mutex_unlock(&pcp->lock);
    return true;
}

static void *storage_of(struct host_memory_impl *m, const struct host_alloc *req, uint64_t pfn)
{
    return req->own_storage ? m->hm.arena + (pfn << PAGE_SHIFT) : req->data;
}

/* Fill in the frames of a new block. They are nobody else's yet: only `gen`, `flags` and `refcount`
 * may be looked at by others. */
static void fill_frames(struct host_memory_impl *m, const struct host_alloc *req, uint64_t pfn)
{
    struct host_frame *head = &m->hm.frames[pfn];
    unsigned char *data = storage_of(m, req, pfn);

    for (uint64_t i = 0; i < UINT64_C(1) << req->order; i++) {
        struct host_frame *f = head + i;

        __atomic_store_n(&f->gen, f->gen + 1, __ATOMIC_RELAXED);
        /* Compaction looks at these two of any frame, as hints. */
        __atomic_store_n(&f->type, (uint8_t)req->type, __ATOMIC_RELAXED);
        __atomic_store_n(&f->owner, req->owner, __ATOMIC_RELAXED);
        f->order = 0;
        f->next = f->prev = 0;
        __atomic_store_n(&f->link, i ? (uint32_t)pfn : 0, __ATOMIC_RELAXED);
        if (req->order) {
            uint8_t keep = f->flags & HOST_FRAME_STALE;

            __atomic_store_n(&f->flags, keep | (i ? HOST_FRAME_TAIL : HOST_FRAME_HEAD),
                             __ATOMIC_RELAXED);
        }
        __atomic_store_n(&f->data, data ? data + (i << PAGE_SHIFT) : NULL, __ATOMIC_RELAXED);
    }
    head->order = (uint8_t)req->order;
    __atomic_store_n(&head->refcount, 1, __ATOMIC_RELEASE);
}

/*
 * Allocate a block and fill in its frames as `req` says.
 * Returns 0 with *out the first frame; -EINVAL order too large; -ENOMEM.
 * Lock: takes the per-CPU list's and zones' locks. Source: own.
 */
int host_block_alloc(struct host_memory_impl *m, const struct host_alloc *req, pfn_t *out)
{
    uint64_t pfn;
    bool ok;

    if ((req->order > HOST_MAX_ORDER && req->order != HOST_GIGANTIC_ORDER) ||
        (req->flags & HOST_GFP_MT_MASK) >= HOST_NR_MIGRATE) {
        return -EINVAL;
    }
    if (m->fail_alloc && m->fail_alloc(m->opaque)) {
        ok = false;
    } else if (req->order == 0 && !(req->flags & (HOST_GFP_DMA | HOST_GFP_DMA32))) {
        ok = take_single(m, req, &pfn) || take_block(m, req, &pfn);
    } else {
        ok = take_block(m, req, &pfn);
    }
    if (!ok) {
        __atomic_fetch_add(&m->failures, 1, __ATOMIC_RELAXED);
        return -ENOMEM;
    }
    fill_frames(m, req, pfn);
    out->v = pfn;
    return 0;
}

/* See buddy.h. Source: own, after alloc_pages(). */
int host_frames_alloc(struct host_memory *hm, unsigned order, unsigned flags, pfn_t *out)
{
    struct host_alloc req = {.order = order, .flags = flags, .type = HOST_FRAME_KERNEL};

    return host_block_alloc(host_impl(hm), &req, out);
}

/* Make the frames of a block that goes anonymous again. */
static void clear_frames(struct host_frame *head, unsigned order)
{
    for (uint64_t i = 0; i < UINT64_C(1) << order; i++) {
        struct host_frame *f = head + i;

        __atomic_store_n(&f->data, NULL, __ATOMIC_RELAXED);
        __atomic_store_n(&f->type, HOST_FRAME_FREE, __ATOMIC_RELAXED);
        __atomic_store_n(&f->owner, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&f->flags, f->flags & HOST_FRAME_STALE, __ATOMIC_RELAXED);
    }
}

/* Put a single frame on the per-CPU list, giving the older part back when it is full. */
static void put_single(struct host_memory_impl *m, uint64_t pfn, enum host_frame_type type)
{
    unsigned mt = host_block_mt(m, pfn);
    struct host_pcp *pcp = lock_pcp(m);

    if (unlikely(mt ==
                 HOST_MIGRATE_ISOLATED)) { /* the block is being emptied: straight to its list */
        pcp->frees[0]++;
        pcp->in_use[type]--;
        pthread_mutex_unlock(&pcp->lock);
        host_zones_give(m, pfn, 0);
        return;
    }
    if (pcp->count[mt] == HOST_PCP_HIGH) {
        host_zones_give_batch(m, pcp->pfns[mt], HOST_PCP_BATCH);
        pcp->count[mt] -= HOST_PCP_BATCH;
        memmove(pcp->pfns[mt], pcp->pfns[mt] + HOST_PCP_BATCH,
                pcp->count[mt] * sizeof(pcp->pfns[mt][0]));
    }
    pcp->pfns[mt][pcp->count[mt]++] = (uint32_t)pfn;
    pcp->frees[0]++;
    pcp->in_use[type]--;
    pthread_mutex_unlock(&pcp->lock);
}

/* See buddy.h. Lock: takes the per-CPU list's and the zone's. Source: own, after free_pages(). */
void host_frames_free(struct host_memory *hm, pfn_t first, unsigned order)
{
    struct host_memory_impl *m = host_impl(hm);
    struct host_frame *head = host_frame_at(hm, first);
    enum host_frame_type type;
    struct host_pcp *pcp;

    if (never(!head || order != head->order || head->type == HOST_FRAME_FREE)) {
        return;
    }
    type = head->type;
    __atomic_store_n(&head->refcount, 0, __ATOMIC_RELAXED);
    clear_frames(head, order);
    if (order == 0) {
        put_single(m, first.v, type);
        return;
    }
    pcp = lock_pcp(m);
    pcp->frees[order < HOST_MAX_ORDER ? order : HOST_MAX_ORDER]++;
    pcp->in_use[type] -= INT64_C(1) << order;
    pthread_mutex_unlock(&pcp->lock);
    if (order <= HOST_MAX_ORDER) {
        host_zones_give(m, first.v, order);
        return;
    }
    for (uint64_t p = 0; p < UINT64_C(1) << order; p += HOST_MAX_PAGES) {
        host_zones_give(m, first.v + p, HOST_MAX_ORDER);
    }
}

/* See buddy.h. The caller owns the block; its count is 1, or frozen at 0. Source: own. */
void host_frames_split(struct host_memory *hm, pfn_t first, unsigned order)
{
    struct host_frame *head = host_frame_at(hm, first);

    if (never(!head || head->order != order)) {
        return;
    }
    head->order = 0;
    /* The head last: until then its count of 0 keeps everybody off the tails. */
    for (uint64_t i = UINT64_C(1) << order; i-- > 0;) {
        host_frame_clear(&head[i], HOST_FRAME_HEAD | HOST_FRAME_TAIL);
        __atomic_store_n(&head[i].refcount, 1, __ATOMIC_RELEASE);
    }
}

/* See memory_impl.h. */
void host_frame_mark_storage(struct host_memory *hm, pfn_t p)
{
    host_frame_set(&hm->frames[p.v], HOST_FRAME_STALE);
    __atomic_fetch_or(&host_impl(hm)->blocks[p.v >> HOST_PAGEBLOCK_ORDER], HOST_BLOCK_STALE,
                      __ATOMIC_RELAXED);
}

/* See buddy.h. Source: own. */
int host_table_alloc(struct host_memory *hm, enum host_frame_type type, hpa_t *out)
{
    struct host_memory_impl *m = host_impl(hm);
    struct host_alloc req = {
        .type = type, .flags = HOST_GFP_UNMOVABLE | HOST_GFP_ATOMIC, .own_storage = true};
    struct host_frame *f;
    pfn_t p;
    int err = host_block_alloc(m, &req, &p);

    if (err) {
        return err;
    }
    f = &hm->frames[p.v];
    if (host_frame_test(f, HOST_FRAME_STALE)) {
        memset(f->data, 0, PAGE_SIZE);
    }
    host_frame_mark_storage(hm, p);
    *out = pfn_to_hpa(p);
    return 0;
}

/* See buddy.h. Source: own. */
void host_table_free(struct host_memory *hm, hpa_t addr)
{
    host_frames_free(hm, hpa_to_pfn(addr), 0);
}

/* See buddy.h. Source: own. */
void host_frame_set_type(struct host_memory *hm, pfn_t head, enum host_frame_type type)
{
    struct host_frame *f = host_frame_at(hm, head);
    struct host_pcp *pcp;
    int64_t n;

    if (never(!f || type >= HOST_FRAME_NR_TYPES)) {
        return;
    }
    n = INT64_C(1) << f->order;
    pcp = lock_pcp(host_impl(hm));
    pcp->in_use[f->type] -= n;
    pcp->in_use[type] += n;
    pthread_mutex_unlock(&pcp->lock);
    for (int64_t i = 0; i < n; i++) {
        __atomic_store_n(&f[i].type, (uint8_t)type, __ATOMIC_RELAXED);
    }
}

/* The frame that counts for `f`: its block's head. */
static struct host_frame *head_of(struct host_memory *hm, struct host_frame *f)
{
    if (host_frame_test(f, HOST_FRAME_TAIL)) {
        return &hm->frames[__atomic_load_n(&f->link, __ATOMIC_RELAXED)];
    }
    return f;
}

/* Drop a reference on a block by its head. */
static void put_head(struct host_memory *hm, struct host_frame *head)
{
    if (__atomic_fetch_sub(&head->refcount, 1, __ATOMIC_ACQ_REL) == 1) {
        host_frames_free(hm, host_frame_pfn(hm, head), head->order);
    }
}

/* See buddy.h. Lock-free: a count of 0 means free or about to be, and stays. The block may come
 * apart, or go and come back, between finding its head and counting: so the head is looked up
 * again. */
bool host_frame_try_get(struct host_memory *hm, pfn_t p)
{
    struct host_frame *f = host_frame_at(hm, p), *head;
    uint32_t count;

    if (!f) {
        return false;
    }
    head = head_of(hm, f);
    count = __atomic_load_n(&head->refcount, __ATOMIC_RELAXED);
    do {
        if (count == 0) {
            return false;
        }
    } while (!__atomic_compare_exchange_n(&head->refcount, &count, count + 1, true,
                                          __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    if (unlikely(head_of(hm, f) != head)) {
        put_head(hm, head);
        return false;
    }
    return true;
}

/* See buddy.h. The last reference frees the block. */
void host_frame_put(struct host_memory *hm, pfn_t p)
{
    struct host_frame *f = host_frame_at(hm, p);

    if (!never(!f)) {
        put_head(hm, head_of(hm, f));
    }
}

/* Give back what all per-CPU lists hold. Lock: takes theirs and the zones'. */
void host_pcp_drain(struct host_memory_impl *m)
{
    for (unsigned i = 0; i < m->nr_cpus; i++) {
        struct host_pcp *pcp = &m->pcp[i];

        pthread_mutex_lock(&pcp->lock);
        for (unsigned mt = 0; mt < HOST_NR_MIGRATE; mt++) {
            host_zones_give_batch(m, pcp->pfns[mt], pcp->count[mt]);
            pcp->count[mt] = 0;
        }
        pthread_mutex_unlock(&pcp->lock);
    }
}
