/*
 * Dirty tracking by ring: each vCPU has an array of (slot, page) entries which the engine fills and the
 * client collects, one after the other, into the RAM blocks' bitmaps; KVM_RESET_DIRTY_RINGS then gives the
 * collected entries back and protects their pages again.
 *
 *     engine                                client (s->lock)
 *     write entry, flags = DIRTY (release)  flags == DIRTY? (acquire): read, mark the block
 *     ring full: leave KVM_RUN              flags = RESET (release); then KVM_RESET_DIRTY_RINGS
 *
 * A block's bit is set before its page is protected again, so no store goes unreported. Collected by: the
 * vCPU whose ring is full, a sync, a commit that takes a logged slot away, and once a second the reaper.
 * A ring's entries are the engine's words: slot and page are checked before use.
 *
 * Throttle: a vCPU with a limit sleeps, outside KVM_RUN, as long as the pages it dirtied would have taken
 * at that rate. Its debt grows where its ring is collected, so small rings follow the limit more closely.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "softkvm/kvm_abi.h"
#include "accel/slots.h"
#include "strata/dirty.h"

#define REAP_NS     UINT64_C(1000000000)
#define SECOND_NS   UINT64_C(1000000000)
#define DEBT_MAX_NS (UINT64_C(2) * SECOND_NS)

/* Pages of one group of 64 that came in a row, entered together. */
struct batch {
    struct accel_slot *slot;
    uint64_t group, bits;
};

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec;
}

/* value * by / per, for per > 0. */
static uint64_t scale(uint64_t value, uint64_t by, uint64_t per)
{
    return (uint64_t)((unsigned __int128)value * by / per);
}

static void batch_flush(struct batch *b)
{
    const struct accel_slot *slot = b->slot;
    uint64_t pages;

    if (slot && b->bits) {
        pages = (slot->d.size >> PAGE_SHIFT) - b->group * 64;
        strata_ram_import_dirty(slot->d.ram, slot->d.ram_offset + (b->group * 64 << PAGE_SHIFT), &b->bits,
                                pages < 64 ? pages : 64);
    }
    b->bits = 0;
}

static void batch_add(struct accel_slots *s, struct batch *b, uint32_t id, uint64_t page)
{
    struct accel_slot *slot = b->slot && b->slot->id == id ? b->slot : accel_slot_table_by_id(&s->table, id);

    if (!slot || !slot->d.ram || page >= slot->d.size >> PAGE_SHIFT) {
        return; /* of a slot that is gone: its log was read when it went */
    }
    if (slot != b->slot || page / 64 != b->group) {
        batch_flush(b);
        b->slot = slot;
        b->group = page / 64;
    }
    b->bits |= UINT64_C(1) << page % 64;
}

static uint32_t collect_one(struct accel_slots *s, struct accel_vcpu *v)
{
    uint32_t entries = s->accel->ring_entries, n;
    struct batch b = {NULL, 0, 0};

    for (n = 0; n < entries; n++) {
        struct kvm_dirty_gfn *e = &v->ring[v->ring_fetch & (entries - 1)];

        if (__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY) {
            break;
        }
        batch_add(s, &b, e->slot, e->offset);
        __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        v->ring_fetch++;
    }
    batch_flush(&b);
    return n;
}

/* Pages that v dirtied: its rate, and its debt when it is limited. */
static void account(struct accel_vcpu *v, uint32_t pages)
{
    uint64_t limit = atomic_load_explicit(&v->dirty_limit, memory_order_relaxed);
    uint64_t debt = atomic_load_explicit(&v->throttle_ns, memory_order_relaxed);

    atomic_fetch_add_explicit(&v->dirty_pages, pages, memory_order_relaxed);
    if (limit) {
        debt += scale((uint64_t)pages * PAGE_SIZE, SECOND_NS, limit);
        atomic_store_explicit(&v->throttle_ns, debt < DEBT_MAX_NS ? debt : DEBT_MAX_NS, memory_order_relaxed);
    }
}

/*
 * Collect all rings and reset what was collected.
 * Lock: s->lock held. Errors: accel_slots_fail() when the engine gives back another number than was
 * collected: the rings are then out of step. Source: KVM's API document, dirty ring.
 */
void accel_ring_collect_locked(struct accel_slots *s)
{
    struct accel *a = s->accel;
    uint64_t total = 0;
    unsigned i;
    int ret;

    for (i = 0; i < a->vcpu_count; i++) {
        uint32_t n = a->vcpus[i].ring ? collect_one(s, &a->vcpus[i]) : 0;

        if (n) {
            account(&a->vcpus[i], n);
        }
        total += n;
    }
    if (!total) {
        return;
    }
    ret = accel_ioctl(a->ep, a->vm_fd, KVM_RESET_DIRTY_RINGS, 0);
    if (ret < 0) {
        accel_slots_fail(s, ret, "KVM_RESET_DIRTY_RINGS");
    } else if ((uint64_t)ret != total) {
        accel_slots_fail(s, -EIO, "KVM_RESET_DIRTY_RINGS reset %d entries, %llu were collected", ret,
                         (unsigned long long)total);
    }
}

/*
 * Bring everything that guests wrote so far into the blocks' bitmaps. Every vCPU leaves KVM_RUN first: a
 * processor may hold pages in a buffer of its own that the engine empties into the ring on the way out.
 * last_stage: also read the bitmaps in which an engine notes writes of its own, if it keeps them.
 * Lock: topology. Source: QEMU kvm_dirty_ring_flush(), by rule.
 */
void accel_ring_sync(struct accel_slots *s, bool last_stage)
{
    struct accel_slot *slot;

    accel_gate_close(s->accel);
    pthread_mutex_lock(&s->lock);
    accel_ring_collect_locked(s);
    if (last_stage && s->accel->ring_bitmap) {
        for (slot = accel_slot_table_from(&s->table, 0); slot;
             slot = accel_slot_table_from(&s->table, slot->d.gpa + slot->d.size)) {
            accel_dirty_sync_slot(s, slot);
        }
    }
    pthread_mutex_unlock(&s->lock);
    accel_gate_open(s->accel);
}

/*
 * A vCPU's ring is full: collect, so that it may run on.
 * Returns: true. Lock: takes the slots' lock. Source: KVM_EXIT_DIRTY_RING_FULL.
 */
bool accel_ring_full(struct accel_vcpu *v)
{
    struct accel_slots *s = v->accel->slots;

    if (!s || !v->ring) {
        accel_tell_stop(v->accel, ACCEL_STOP_INTERNAL_ERROR, "a dirty ring is full that was never made");
        return false;
    }
    pthread_mutex_lock(&s->lock);
    accel_ring_collect_locked(s);
    pthread_mutex_unlock(&s->lock);
    return true;
}

/* The reaper's second: collect, and work out how fast each vCPU dirties. */
static void reap(struct accel *a, uint64_t elapsed)
{
    unsigned i;

    pthread_mutex_lock(&a->slots->lock);
    accel_ring_collect_locked(a->slots);
    pthread_mutex_unlock(&a->slots->lock);
    for (i = 0; elapsed && i < a->vcpu_count; i++) {
        struct accel_vcpu *v = &a->vcpus[i];
        uint64_t pages = atomic_exchange(&v->dirty_pages, 0);

        atomic_store(&v->dirty_rate, scale(pages * PAGE_SIZE, SECOND_NS, elapsed));
        if (atomic_load(&v->throttle_ns)) {
            accel_vcpu_kick(v);
        }
    }
}

static void *reaper_thread(void *opaque)
{
    struct accel *a = opaque;
    uint64_t last = now_ns();
    struct timespec until;

    pthread_setname_np(pthread_self(), "dirty-reaper");
    pthread_mutex_lock(&a->reaper_lock);
    while (!a->reaper_stop) {
        uint64_t at = last + REAP_NS, now;

        until.tv_sec = (time_t)(at / SECOND_NS);
        until.tv_nsec = (long)(at % SECOND_NS);
        if (pthread_cond_timedwait(&a->reaper_cond, &a->reaper_lock, &until) == 0) {
            continue;
        }
        pthread_mutex_unlock(&a->reaper_lock);
        now = now_ns();
        reap(a, now - last);
        last = now;
        pthread_mutex_lock(&a->reaper_lock);
    }
    pthread_mutex_unlock(&a->reaper_lock);
    return NULL;
}

/* Start the reaper of a VM with rings. Returns: 0 or a positive errno. Lock: none; vCPUs stopped. Source: own. */
int accel_ring_start(struct accel *a)
{
    int ret;

    if (!a->ring_entries || a->reaper_runs || !a->slots) {
        return 0;
    }
    a->reaper_stop = false;
    ret = pthread_create(&a->reaper, NULL, reaper_thread, a);
    a->reaper_runs = ret == 0;
    return ret;
}

/* End it and wait. Not from a vCPU thread, nor with the slots' lock. Lock: none. Source: own. */
void accel_ring_stop(struct accel *a)
{
    if (!a->reaper_runs) {
        return;
    }
    pthread_mutex_lock(&a->reaper_lock);
    a->reaper_stop = true;
    pthread_cond_signal(&a->reaper_cond);
    pthread_mutex_unlock(&a->reaper_lock);
    pthread_join(a->reaper, NULL);
    a->reaper_runs = false;
}

/*
 * Sleep off a limited vCPU's debt, outside KVM_RUN; a stop ends it.
 * Lock: none; v's own thread. Source: own; the purpose is that of QEMU's dirty limit.
 */
void accel_ring_throttle(struct accel_vcpu *v)
{
    uint64_t debt = atomic_exchange(&v->throttle_ns, 0), until;
    struct accel *a = v->accel;
    struct timespec t;

    if (likely(!debt)) {
        return;
    }
    clock_gettime(CLOCK_REALTIME, &t);
    until = (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec + debt;
    t.tv_sec = (time_t)(until / SECOND_NS);
    t.tv_nsec = (long)(until % SECOND_NS);
    atomic_fetch_add_explicit(&v->throttled_ns, debt, memory_order_relaxed);
    pthread_mutex_lock(&a->gate_lock);
    while (!atomic_load(&a->stopping) && pthread_cond_timedwait(&a->gate_cond, &a->gate_lock, &t) == 0) {
    }
    pthread_mutex_unlock(&a->gate_lock);
}

/*
 * Limit how fast a vCPU dirties memory.
 * bytes_per_second: 0 for no limit. Returns: 0; -EINVAL no such vCPU; -EOPNOTSUPP without dirty rings.
 * Lock: none. Source: QEMU's set-vcpu-dirty-limit, by purpose.
 */
int accel_dirty_limit_set(struct accel *a, unsigned vcpu, uint64_t bytes_per_second)
{
    if (vcpu >= a->vcpu_count) {
        return -EINVAL;
    }
    if (!a->ring_entries) {
        return -EOPNOTSUPP;
    }
    atomic_store(&a->vcpus[vcpu].dirty_limit, bytes_per_second);
    if (!bytes_per_second) {
        atomic_store(&a->vcpus[vcpu].throttle_ns, 0);
    }
    return 0;
}

/*
 * What a vCPU dirtied in the last whole second, and how long it has been held back in all.
 * Returns: 0; -EINVAL, -EOPNOTSUPP as above. Lock: none. Source: own.
 */
int accel_dirty_rate(struct accel *a, unsigned vcpu, struct accel_dirty_rate *out)
{
    if (vcpu >= a->vcpu_count) {
        return -EINVAL;
    }
    if (!a->ring_entries) {
        return -EOPNOTSUPP;
    }
    out->bytes_per_second = atomic_load(&a->vcpus[vcpu].dirty_rate);
    out->limit = atomic_load(&a->vcpus[vcpu].dirty_limit);
    out->throttled_ns = atomic_load(&a->vcpus[vcpu].throttled_ns);
    return 0;
}

static int enable_cap(struct accel *a, uint32_t cap, uint64_t arg)
{
    struct kvm_enable_cap args = {.cap = cap, .args = {arg}};

    return accel_ioctl_ptr(a->ep, a->vm_fd, KVM_ENABLE_CAP, &args);
}

/*
 * Give the VM dirty rings, before it has vCPUs.
 * entries: per vCPU, a power of two. Returns: 0; -EOPNOTSUPP the engine has none; -EINVAL too many; what the
 * engine says; with err. Lock: none. Source: KVM_CAP_DIRTY_LOG_RING.
 */
int accel_ring_enable(struct accel *a, uint32_t entries, struct base_error *err)
{
    uint64_t bytes = (uint64_t)entries * sizeof(struct kvm_dirty_gfn);
    uint32_t cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL;
    int max = accel_ioctl(a->ep, a->vm_fd, KVM_CHECK_EXTENSION, cap), ret;

    if (max <= 0) {
        cap = KVM_CAP_DIRTY_LOG_RING;
        max = accel_ioctl(a->ep, a->vm_fd, KVM_CHECK_EXTENSION, cap);
    }
    if (max <= 0) {
        return base_error_set(err, EOPNOTSUPP, "dirty-ring-size: %s has no dirty ring", accel_engine(a));
    }
    if (bytes > (uint64_t)max) {
        return base_error_set(err, EINVAL, "dirty-ring-size=%u: %s takes at most %u", entries, accel_engine(a),
                              (unsigned)((uint64_t)max / sizeof(struct kvm_dirty_gfn)));
    }
    ret = enable_cap(a, cap, bytes);
    if (ret < 0) {
        return base_error_set(err, -ret, "dirty-ring-size=%u: %s", entries, strerror(-ret));
    }
    a->ring_entries = entries;
    if (accel_ioctl(a->ep, a->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP) > 0) {
        a->ring_bitmap = enable_cap(a, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 0) >= 0;
    }
    return 0;
}
