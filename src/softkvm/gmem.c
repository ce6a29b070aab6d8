/*
 * guest_memfd: guest memory that user space does not map. Its contents lie in a mapping of the library's
 * own, so that the host model serves it like any other memory; only the address is nobody's.
 *
 * A slot with a private half has beside it a twin (slot->priv): the same frames, at the address in that
 * mapping. The twin sits in the hva tree alone, which is how the host's notifiers find what to zap.
 *
 * Lifetimes: the descriptor pins the VM; slots and the descriptor each hold a reference on this object.
 * When the descriptor goes, the contents go; a slot that is left finds it closed, and faults fail.
 *
 * Locks: `bound` under the VM's slots_lock; `is_open` is cleared before the contents are discarded, which
 * moves mmu.inv_seq: a fault that saw it set is found stale.
 */
#include "softkvm/gmem.h"

#include <errno.h>
#include <linux/falloc.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "softkvm/attributes.h"
#include "softkvm/kvm_abi.h"
#include "softkvm/lpage.h"
#include "softkvm/user.h"
#include "softkvm/vcpu.h"
#include "softkvm/vm_types.h"

struct kvm_gmem {
    /* constant */
    struct kvm_vm *vm; /* with a reference while open */
    struct softkvm *s;
    uint64_t size, flags;
    char *at; /* the contents */
    _Atomic uint32_t refs;  /* slots, and one for all that is open */
    _Atomic uint32_t opens; /* descriptors and mappings */
    _Atomic bool is_open;
    /* under slots_lock */
    struct kvm_memslot *bound; /* chained through slot->gmem_next */
};

uint64_t kvm_gmem_flags(const struct kvm_vm *vm)
{
    return vm && vm->attrs ? 0 : GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
}

static char *map_contents(struct softkvm *s, uint64_t size)
{
    void *p = MAP_FAILED;

    if (!s->options.fail_alloc || !s->options.fail_alloc(s->options.fail_opaque)) {
        p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    return p == MAP_FAILED ? NULL : p;
}

static int gmem_new(struct kvm_vm *vm, uint64_t size, uint64_t flags, struct kvm_gmem **out)
{
    struct kvm_gmem *g = kvm_alloc(vm->s, sizeof(*g));

    if (!g) {
        return -ENOMEM;
    }
    g->at = map_contents(vm->s, size);
    if (!g->at) {
        free(g);
        return -ENOMEM;
    }
    kvm_vm_get(vm);
    g->vm = vm;
    g->s = vm->s;
    g->size = size;
    g->flags = flags;
    atomic_store(&g->refs, 1);
    atomic_store(&g->opens, 1);
    atomic_store(&g->is_open, true);
    *out = g;
    return 0;
}

/*
 * KVM_CREATE_GUEST_MEMFD. Returns a descriptor; -EFAULT; -EINVAL (unknown flag, size of 0 or unaligned),
 * -ENOMEM, -EMFILE. Lock: none held. Source: KVM's kvm_gmem_create().
 */
int kvm_gmem_create(struct kvm_vm *vm, const void *arg)
{
    struct kvm_create_guest_memfd u;
    struct kvm_gmem *g;
    int r = kvm_user_read(&u, arg, sizeof(u));

    if (r < 0) {
        return r;
    }
    if (u.flags & ~kvm_gmem_flags(vm)) {
        return -EINVAL;
    }
    if ((int64_t)u.size <= 0 || page_offset(u.size)) {
        return -EINVAL;
    }
    r = gmem_new(vm, u.size, u.flags, &g);
    if (r < 0) {
        return r;
    }
    r = kvm_file_open(vm->s, KVM_FILE_GMEM, g);
    if (r < 0) {
        kvm_gmem_close(g);
    }
    return r;
}

static void discard(struct kvm_gmem *g, uint64_t offset, uint64_t length)
{
    struct softkvm_memory_change c;
    char *at = g->at + offset;
    int r = softkvm_memory_begin(g->s, &c, SOFTKVM_CHANGE_DISCARD, at, length, 0);

    madvise(at, length, MADV_DONTNEED);
    if (r == 0) {
        softkvm_memory_end(&c, true);
    } else {
        (void)!softkvm_memory_discarded(g->s, at, length);
    }
}

static void gmem_put(struct kvm_gmem *g)
{
    if (atomic_fetch_sub_explicit(&g->refs, 1, memory_order_acq_rel) == 1) {
        (void)!softkvm_memory_unmapped(g->s, g->at, g->size);
        munmap(g->at, g->size);
        free(g);
    }
}

void kvm_gmem_open(struct kvm_gmem *g)
{
    atomic_fetch_add_explicit(&g->opens, 1, memory_order_relaxed);
}

void kvm_gmem_close(struct kvm_gmem *g)
{
    struct kvm_vm *vm = g->vm;

    if (atomic_fetch_sub_explicit(&g->opens, 1, memory_order_acq_rel) != 1) {
        return;
    }
    atomic_store(&g->is_open, false);
    pthread_rwlock_wrlock(&vm->mmu.lock);
    atomic_fetch_add(&vm->mmu.inv_seq, 1);
    pthread_rwlock_unlock(&vm->mmu.lock);
    discard(g, 0, g->size);
    gmem_put(g);
    kvm_vm_put(vm);
}

bool kvm_gmem_is_open(const struct kvm_gmem *g)
{
    return atomic_load(&g->is_open);
}

/* One that user space can map holds shared pages as well. */
static bool serves_all(const struct kvm_gmem *g)
{
    return g->flags & GUEST_MEMFD_FLAG_MMAP;
}

const struct kvm_memslot *kvm_slot_half(const struct kvm_vm *vm, const struct kvm_memslot *slot, gfn_t f)
{
    bool is_private;

    if (likely(!slot->gmem)) {
        return slot;
    }
    is_private = kvm_vm_has_shared_bit(vm) ? !(f.v & KVM_SHARED_GFN_BIT) : kvm_page_is_private(vm, f);
    return is_private || serves_all(slot->gmem) ? slot->priv : slot;
}

/* ---- binding ---- */

static bool is_bound(const struct kvm_gmem *g, uint64_t offset, uint64_t size)
{
    for (const struct kvm_memslot *s = g->bound; s; s = s->gmem_next) {
        if (offset < s->gmem_offset + (s->npages << PAGE_SHIFT) && s->gmem_offset < offset + size) {
            return true;
        }
    }
    return false;
}

static int make_twin(struct kvm_gmem *g, struct kvm_memslot *slot, uint64_t offset)
{
    struct kvm_memslot *twin = kvm_alloc(g->s, sizeof(*twin));

    if (!twin) {
        return -ENOMEM;
    }
    twin->base_gfn = slot->base_gfn;
    twin->npages = slot->npages;
    twin->hva = (uintptr_t)g->at + offset;
    twin->flags = slot->flags;
    twin->id = slot->id;
    twin->as_id = slot->as_id;
    twin->prio = slot->prio;
    twin->lpage = kvm_lpage_new(g->s, twin);
    if (!twin->lpage) {
        free(twin);
        return -ENOMEM;
    }
    slot->priv = twin;
    return 0;
}

static int bind(struct kvm_gmem *g, struct kvm_memslot *slot, uint64_t offset)
{
    uint64_t size = slot->npages << PAGE_SHIFT;
    int r;

    if (offset > g->size || size > g->size - offset || is_bound(g, offset, size)) {
        return -EINVAL;
    }
    r = make_twin(g, slot, offset);
    if (r < 0) {
        return r;
    }
    atomic_fetch_add_explicit(&g->refs, 1, memory_order_relaxed);
    slot->gmem = g;
    slot->gmem_offset = offset;
    slot->gmem_next = g->bound;
    g->bound = slot;
    return 0;
}

/*
 * Returns 0; -EBADF (no descriptor); -EINVAL (not a guest_memfd, another VM's, range beyond its end or
 * bound already); -ENOMEM. Lock: slots_lock held. Source: KVM's kvm_gmem_bind().
 */
int kvm_gmem_bind(struct kvm_vm *vm, struct kvm_memslot *slot, int fd, uint64_t offset)
{
    struct kvm_file *f = kvm_file_get(vm->s, fd);
    int r = -EINVAL;

    if (!f) {
        return -EBADF;
    }
    if (f->kind == KVM_FILE_GMEM && ((struct kvm_gmem *)f->object)->vm == vm) {
        r = bind(f->object, slot, offset);
    }
    kvm_file_put(vm->s, f);
    return r;
}

void kvm_gmem_unbind(struct kvm_memslot *slot)
{
    struct kvm_memslot **at;

    if (!slot->gmem) {
        return;
    }
    for (at = &slot->gmem->bound; *at != slot; at = &(*at)->gmem_next) {
    }
    *at = slot->gmem_next;
    gmem_put(slot->gmem);
    slot->gmem = NULL;
    free(slot->priv->lpage);
    free(slot->priv);
    slot->priv = NULL;
}

/* ---- first contents ---- */

static bool has_run(struct kvm_vm *vm)
{
    struct kvm_vcpu *v;
    uint32_t i;
    bool ran = false;

    kvm_for_each_vcpu (i, v, vm) {
        ran |= __atomic_load_n(&v->has_run, __ATOMIC_RELAXED);
    }
    return ran;
}

/* Lock: slots_lock. */
static int populate_page(struct kvm_vm *vm, gfn_t f, const void *source)
{
    struct kvm_memslot *slot = kvm_slots_find(kvm_slots_active(&vm->slots), f);

    if (!slot || !slot->gmem || !kvm_gmem_is_open(slot->gmem)) {
        return -ENOENT;
    }
    if (!kvm_page_is_private(vm, f)) {
        return -EPERM;
    }
    return kvm_user_read(hva_to_ptr(kvm_slot_hva(slot->priv, f)), source, PAGE_SIZE);
}

/* See softkvm/vm_types.h. A vCPU that starts to run meanwhile sees a page old or new. Source: own. */
int kvm_gmem_populate(struct kvm_vm *vm, const void *arg)
{
    struct softkvm_populate u;
    int r = kvm_user_read(&u, arg, sizeof(u));

    if (r < 0) {
        return r;
    }
    if (u.flags || page_offset(u.gpa) || page_offset(u.size) || u.gpa + u.size <= u.gpa) {
        return -EINVAL;
    }
    pthread_mutex_lock(&vm->slots_lock);
    r = has_run(vm) ? -EBUSY : 0;
    for (uint64_t at = 0; r == 0 && at < u.size; at += PAGE_SIZE) {
        r = populate_page(vm, gpa_to_gfn(gpa(u.gpa + at)), (const void *)(uintptr_t)(u.source + at));
    }
    pthread_mutex_unlock(&vm->slots_lock);
    return r;
}

/* ---- as a file ---- */

static int populate(struct kvm_gmem *g, uint64_t offset, uint64_t length)
{
    if (offset + length > g->size) {
        return -EINVAL;
    }
    return madvise(g->at + offset, length, MADV_POPULATE_WRITE) == 0 ? 0 : -errno;
}

/*
 * As fallocate(): FALLOC_FL_KEEP_SIZE, alone or with FALLOC_FL_PUNCH_HOLE. Returns 0; -EOPNOTSUPP (another
 * mode); -EINVAL (unaligned, negative, empty; allocation past the end); -ENOMEM. After a hole was punched no
 * vCPU uses the old pages, and the next use finds zeros. Lock: none held.
 * Source: vfs_fallocate(), kvm_gmem_fallocate().
 */
int kvm_gmem_fallocate(struct kvm_gmem *g, int mode, int64_t offset, int64_t length)
{
    uint64_t at = (uint64_t)offset, n = (uint64_t)length;

    if (offset < 0 || length <= 0) {
        return -EINVAL;
    }
    if (!(mode & FALLOC_FL_KEEP_SIZE) || (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE))) {
        return -EOPNOTSUPP;
    }
    if (offset > INT64_MAX - length) {
        return -EFBIG;
    }
    if (page_offset(at) || page_offset(n)) {
        return -EINVAL;
    }
    if (!(mode & FALLOC_FL_PUNCH_HOLE)) {
        return populate(g, at, n);
    }
    if (at < g->size) {
        discard(g, at, n < g->size - at ? n : g->size - at);
    }
    return 0;
}

/* A place that looks mapped and gives SIGBUS when touched, as private pages do. */
static void *map_nothing(size_t length)
{
    int fd = (int)syscall(SYS_memfd_create, "guest_memfd", 1u /* close on exec */);
    void *p = fd < 0 ? MAP_FAILED : mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (fd >= 0) {
        close(fd);
    }
    return p;
}

/*
 * As mmap(). -ENODEV without GUEST_MEMFD_FLAG_MMAP; -EINVAL (private mapping, unaligned, beyond the end);
 * -ENOMEM. Differs: the kernel maps beyond the end and gives SIGBUS there.
 */
int kvm_gmem_mmap(struct kvm_gmem *g, size_t length, int flags, int64_t offset, void **out, bool *owned)
{
    if (!(g->flags & GUEST_MEMFD_FLAG_MMAP)) {
        return -ENODEV;
    }
    length = (length + PAGE_SIZE - 1) & PAGE_MASK;
    if ((flags & MAP_TYPE) == MAP_PRIVATE || offset < 0 || page_offset((uint64_t)offset) || !length ||
        (uint64_t)offset > g->size || length > g->size - (uint64_t)offset) {
        return -EINVAL;
    }
    *owned = !(g->flags & GUEST_MEMFD_FLAG_INIT_SHARED);
    *out = *owned ? map_nothing(length) : g->at + offset;
    return *out == MAP_FAILED ? -ENOMEM : 0;
}
