/*
 * The public functions, and the ioctls of the system descriptor. Everything of a VM or vCPU goes on to
 * kvm_vm_ioctl() and kvm_vcpu_ioctl().
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "softkvm/cap.h"
#include "softkvm/cpuid.h"
#include "softkvm/engine.h"
#include "softkvm/gmem.h"
#include "softkvm/inspect.h"
#include "softkvm/inspect_impl.h"
#include "softkvm/msr.h"
#include "softkvm/stats.h"
#include "softkvm/user.h"
#include "softkvm/vcpu.h"
#include "softkvm/vm.h"

#ifndef SOFTKVM_VERSION
#define SOFTKVM_VERSION "0.1.0"
#endif

const char *softkvm_version(void)
{
    return SOFTKVM_VERSION;
}

int softkvm_open_system(struct softkvm *s)
{
    return kvm_file_open(s, KVM_FILE_SYSTEM, NULL);
}

/* ---- system ioctls ---- */

static int create_vm(struct softkvm *s, unsigned long type)
{
    struct kvm_vm *vm;
    int r = kvm_vm_new(s, type, &vm);

    if (r < 0) {
        return r;
    }
    r = kvm_file_open(s, KVM_FILE_VM, vm);
    if (r < 0) {
        kvm_vm_put(vm);
    }
    return r;
}

/* KVM_GET_SUPPORTED_CPUID: entries into the caller's room; -E2BIG when it is too small. */
static int get_cpuid(struct softkvm *s, struct kvm_cpuid2 *user, bool emulated)
{
    struct kvm_cpuid_entry2 entries[KVM_MAX_CPUID_ENTRIES];
    struct kvm_cpuid2 head;
    unsigned n = kvm_cpuid_supported(s, entries);
    int r = kvm_user_read(&head, user, sizeof(head));

    if (r < 0) {
        return r;
    }
    if (emulated) {
        n = 0; /* nothing is emulated that is not supported: an empty list, but into some room */
    }
    if (head.nent < n || !head.nent) {
        return -E2BIG;
    }
    head.nent = n;
    r = kvm_user_write(user, &head, sizeof(head));
    return r < 0 ? r : kvm_user_write(user->entries, entries, n * sizeof(entries[0]));
}

static int get_msr_list(struct kvm_msr_list *user, bool features)
{
    uint32_t list[KVM_MSR_LIST_MAX];
    struct kvm_msr_list head;
    unsigned n = features ? kvm_msr_feature_list(list) : kvm_msr_list(list);
    uint32_t room;
    int r = kvm_user_read(&head, user, sizeof(head));

    if (r < 0) {
        return r;
    }
    room = head.nmsrs;
    head.nmsrs = n;
    r = kvm_user_write(user, &head, sizeof(head));
    if (r < 0) {
        return r;
    }
    return room < n ? -E2BIG : kvm_user_write(user->indices, list, n * sizeof(list[0]));
}

/* KVM_GET_MSRS of the system: feature registers; stops at the first that is none. */
static int get_feature_msrs(struct kvm_msrs *user)
{
    struct kvm_msrs head;
    uint32_t i;
    int r = kvm_user_read(&head, user, sizeof(head));

    if (r < 0) {
        return r;
    }
    if (head.nmsrs >= 256) {
        return -E2BIG;
    }
    for (i = 0; i < head.nmsrs; i++) {
        struct kvm_msr_entry e;
        uint64_t value = 0;

        r = kvm_user_read(&e, &user->entries[i], sizeof(e));
        if (r < 0) {
            return r;
        }
        if (kvm_msr_feature(e.index, &value) < 0) {
            break;
        }
        e.data = value;
        r = kvm_user_write(&user->entries[i], &e, sizeof(e));
        if (r < 0) {
            return r;
        }
    }
    return (int)i;
}

static int get_mce_cap(uint64_t *user)
{
    uint64_t cap = (UINT64_C(1) << 8) | (UINT64_C(1) << 24);

    return kvm_user_write(user, &cap, sizeof(cap));
}

static int system_ioctl(struct softkvm *s, unsigned long request, void *arg)
{
    int r;

    switch (request) {
    case KVM_GET_API_VERSION:
        return arg ? -EINVAL : KVM_API_VERSION;
    case KVM_CREATE_VM:
        return create_vm(s, (unsigned long)(uintptr_t)arg);
    case KVM_CHECK_EXTENSION:
        return kvm_cap_check(s, NULL, (long)(intptr_t)arg);
    case KVM_GET_VCPU_MMAP_SIZE:
        return arg ? -EINVAL : (int)(KVM_VCPU_RUN_PAGES * PAGE_SIZE);
    case KVM_GET_SUPPORTED_CPUID:
        return get_cpuid(s, arg, false);
    case KVM_GET_EMULATED_CPUID:
        return get_cpuid(s, arg, true);
    case KVM_GET_MSR_INDEX_LIST:
        return get_msr_list(arg, false);
    case KVM_GET_MSR_FEATURE_INDEX_LIST:
        return get_msr_list(arg, true);
    case KVM_GET_MSRS:
        return get_feature_msrs(arg);
    case KVM_X86_GET_MCE_CAP_SUPPORTED:
        return get_mce_cap(arg);
    case KVM_TRACE_ENABLE:
    case KVM_TRACE_PAUSE:
    case KVM_TRACE_DISABLE:
        return -EOPNOTSUPP;
    default:
        r = kvm_inspect_system(s, request, arg);
        return r == -ENOTTY ? -EINVAL : r; /* as the kernel answers here */
    }
}

int softkvm_ioctl(struct softkvm *s, int fd, unsigned long request, void *arg)
{
    struct kvm_file *f = kvm_file_get(s, fd);
    int r = -ENOTTY;

    if (!f) {
        return -EBADF;
    }
    request = (uint32_t)request;
    switch (f->kind) {
    case KVM_FILE_VCPU:
        r = kvm_vcpu_ioctl(f->object, request, arg);
        break;
    case KVM_FILE_VM:
        r = kvm_vm_ioctl(f->object, request, arg);
        break;
    case KVM_FILE_SYSTEM:
        r = system_ioctl(s, request, arg);
        break;
    case KVM_FILE_STATS:
    case KVM_FILE_GMEM:
    case KVM_FILE_NONE:
        break;
    }
    kvm_file_put(s, f);
    return r;
}

/* ---- mappings ---- */

static void object_get(struct kvm_file *f)
{
    switch (f->kind) {
    case KVM_FILE_VM:
        kvm_vm_get(f->object);
        break;
    case KVM_FILE_VCPU:
        kvm_vcpu_get(f->object);
        break;
    case KVM_FILE_STATS:
        kvm_stats_get(f->object);
        break;
    case KVM_FILE_GMEM:
        kvm_gmem_open(f->object);
        break;
    case KVM_FILE_SYSTEM:
    case KVM_FILE_NONE:
        break;
    }
}

/* The place behind [at, at + length) of a vCPU's descriptor: its run pages, or its ring. Null: none. */
static char *vcpu_place(struct kvm_vcpu *v, size_t at, size_t length)
{
    const size_t ring = KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE;
    size_t size = KVM_VCPU_RUN_PAGES * PAGE_SIZE;
    char *base = (char *)v->run;

    if (at >= ring) {
        at -= ring;
        base = (char *)v->ring.entries;
        size = v->ring.size * sizeof(struct kvm_dirty_gfn);
    }
    return !page_offset(at) && length && at < size && length <= size - at ? base + at : NULL;
}

static int find_vcpu_place(struct kvm_vcpu *v, struct kvm_mapping *m, int64_t offset)
{
    m->addr = vcpu_place(v, (size_t)offset, m->length);
    return m->addr ? 0 : -EINVAL;
}

/* Where a descriptor's mapping lies. -ENODEV for a kind that has none. */
static int find_place(struct kvm_file *f, struct kvm_mapping *m, int prot, int flags, int64_t offset)
{
    const int64_t ring = KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE;

    if (f->kind == KVM_FILE_GMEM) {
        return kvm_gmem_mmap(f->object, m->length, flags, offset, &m->addr, &m->owned);
    }
    if (f->kind != KVM_FILE_VCPU) {
        return -ENODEV;
    }
    if (offset < 0 || (flags & MAP_TYPE) == MAP_PRIVATE || (offset >= ring && (prot & PROT_EXEC))) {
        return -EINVAL;
    }
    return find_vcpu_place(f->object, m, offset);
}

static void map_file(struct softkvm *s, struct kvm_file *f, struct kvm_mapping *m)
{
    object_get(f);
    m->kind = f->kind;
    m->object = f->object;
    pthread_mutex_lock(&s->lock);
    list_add_tail(&s->mappings, &m->node);
    pthread_mutex_unlock(&s->lock);
}

void *softkvm_mmap(struct softkvm *s, int fd, size_t length, int prot, int flags, int64_t offset,
                   int *err)
{
    struct kvm_file *f = kvm_file_get(s, fd);
    struct kvm_mapping *m = f ? kvm_alloc(s, sizeof(*m)) : NULL;
    void *addr = NULL;
    int r = f ? -ENOMEM : -EBADF;

    if (m) {
        m->length = (length + PAGE_SIZE - 1) & PAGE_MASK;
        r = find_place(f, m, prot, flags, offset);
        if (r == 0) {
            map_file(s, f, m);
            addr = m->addr;
        } else {
            free(m);
        }
    }
    if (f) {
        kvm_file_put(s, f);
    }
    if (r < 0 && err) {
        *err = -r;
    }
    return addr;
}

int softkvm_munmap(struct softkvm *s, void *addr, size_t length)
{
    struct kvm_mapping *found = NULL;
    struct list *pos;

    length = (length + PAGE_SIZE - 1) & PAGE_MASK;
    pthread_mutex_lock(&s->lock);
    list_for_each (pos, &s->mappings) {
        struct kvm_mapping *m = list_entry(pos, struct kvm_mapping, node);

        if (m->addr == addr && m->length == length) {
            found = m;
            break;
        }
    }
    if (found) {
        list_del(&found->node);
    }
    pthread_mutex_unlock(&s->lock);
    if (!found) {
        return -EINVAL;
    }
    kvm_mapping_free(found);
    return 0;
}

/* ---- the rest ---- */

int64_t softkvm_read(struct softkvm *s, int fd, void *buf, size_t length, uint64_t offset)
{
    struct kvm_file *f = kvm_file_get(s, fd);
    int64_t r;

    if (!f) {
        return -EBADF;
    }
    r = f->kind == KVM_FILE_STATS ? kvm_stats_read(f->object, buf, length, offset) : -EINVAL;
    kvm_file_put(s, f);
    return r;
}

int softkvm_fallocate(struct softkvm *s, int fd, int mode, int64_t offset, int64_t length)
{
    struct kvm_file *f = kvm_file_get(s, fd);
    int r;

    if (!f) {
        return -EBADF;
    }
    r = f->kind == KVM_FILE_GMEM ? kvm_gmem_fallocate(f->object, mode, offset, length) : -ENODEV;
    kvm_file_put(s, f);
    return r;
}

int softkvm_close(struct softkvm *s, int fd)
{
    struct kvm_file *f = kvm_file_get(s, fd);
    bool was_open;

    if (!f) {
        return -EBADF;
    }
    was_open = atomic_exchange(&f->open, 0);
    if (was_open) {
        kvm_file_put(s, f);
    }
    kvm_file_put(s, f);
    return was_open ? 0 : -EBADF;
}

int softkvm_dup(struct softkvm *s, int fd)
{
    struct kvm_file *f = kvm_file_get(s, fd);
    int r;

    if (!f) {
        return -EBADF;
    }
    object_get(f);
    r = kvm_file_open(s, f->kind, f->object);
    if (r < 0) {
        kvm_object_put(f->kind, f->object);
    }
    kvm_file_put(s, f);
    return r;
}

static int request(struct softkvm *s, int vcpu_fd, uint32_t bit)
{
    struct kvm_file *f = kvm_file_get(s, vcpu_fd);
    int r = 0;

    if (!f) {
        return -EBADF;
    }
    if (f->kind == KVM_FILE_VCPU) {
        kvm_vcpu_request(f->object, bit);
    } else {
        r = -EINVAL;
    }
    kvm_file_put(s, f);
    return r;
}

int softkvm_kick(struct softkvm *s, int vcpu_fd)
{
    return request(s, vcpu_fd, KVM_REQUEST_USER);
}

int softkvm_interrupt(struct softkvm *s, int vcpu_fd)
{
    return request(s, vcpu_fd, KVM_REQUEST_SIGNAL);
}

uint64_t softkvm_instructions(struct softkvm *s, int vcpu_fd)
{
    struct kvm_file *f = kvm_file_get(s, vcpu_fd);
    uint64_t n = 0;

    if (!f) {
        return 0;
    }
    if (f->kind == KVM_FILE_VCPU) {
        n = __atomic_load_n(&((struct kvm_vcpu *)f->object)->cpu->icount, __ATOMIC_RELAXED);
    }
    kvm_file_put(s, f);
    return n;
}
