/*
 * KVM_X86_SET_MSR_FILTER: which MSRs a guest may read and write.
 *
 * A filter is up to 16 ranges of numbers, each with a bitmap (1: allowed) for reads, writes or both, and
 * what holds for all other numbers. The first range of the access's kind that has the number decides.
 * x2APIC numbers are never filtered. User space's own accesses are not the filter's business.
 *
 * Lock: vCPUs read the filter in their read section; a new one is published by exchange and the old one
 * freed after the readers have left.
 */
#include "softkvm/msr_filter.h"

#include <errno.h>
#include <stdlib.h>

#include "arch/regs.h"
#include "cpu/regs.h"
#include "softkvm/user.h"
#include "softkvm/vcpu.h"

#define BITMAP_WORDS(n) (((uint64_t)(n) + 63) / 64)

struct range {
    uint32_t flags, first, count;
    uint64_t *bitmap;
};

struct kvm_msr_policy {
    bool default_allow;
    unsigned count;
    struct range range[KVM_MSR_FILTER_MAX_RANGES];
};

void kvm_msr_filter_free(struct kvm_msr_policy *f)
{
    for (unsigned i = 0; f && i < f->count; i++) {
        free(f->range[i].bitmap);
    }
    free(f);
}

/* Take one range of the caller's in; an empty one is left out. */
static int add_range(struct softkvm *s, struct kvm_msr_policy *f, const struct kvm_msr_filter_range *u)
{
    struct range *r = &f->range[f->count];
    size_t bytes = BITMAP_WORDS(u->nmsrs) * 8;

    if (!u->nmsrs) {
        return 0;
    }
    if (!u->flags || (u->flags & ~(uint32_t)(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE)) ||
        bytes > KVM_MSR_FILTER_MAX_BITMAP_SIZE) {
        return -EINVAL;
    }
    r->bitmap = kvm_alloc(s, bytes);
    if (!r->bitmap) {
        return -ENOMEM;
    }
    f->count++;
    r->flags = u->flags;
    r->first = u->base;
    r->count = u->nmsrs;
    return kvm_user_read(r->bitmap, u->bitmap, bytes);
}

static int make_filter(struct softkvm *s, const struct kvm_msr_filter *u,
                       struct kvm_msr_policy **out)
{
    struct kvm_msr_policy *f = kvm_alloc(s, sizeof(*f));
    int r = f ? 0 : -ENOMEM;

    if (f) {
        f->default_allow = !(u->flags & KVM_MSR_FILTER_DEFAULT_DENY);
    }
    for (unsigned i = 0; r == 0 && i < KVM_MSR_FILTER_MAX_RANGES; i++) {
        r = add_range(s, f, &u->ranges[i]);
    }
    if (r < 0) {
        kvm_msr_filter_free(f);
        return r;
    }
    *out = f;
    return 0;
}

/*
 * KVM_X86_SET_MSR_FILTER. A filter without ranges lifts whatever was set. Returns 0; -EFAULT (argument, a
 * bitmap); -EINVAL (unknown flag, all denied without a range, a range that is neither for reads nor for
 * writes, a bitmap above 0x600 bytes), -ENOMEM, with the old filter in force.
 * Lock: none held; not from a read section. Source: KVM's kvm_vm_ioctl_set_msr_filter().
 */
int kvm_msr_filter_set(struct kvm_vm *vm, const void *arg)
{
    struct kvm_msr_filter u;
    struct kvm_msr_policy *new = NULL;
    bool is_empty = true;
    int r = kvm_user_read(&u, arg, sizeof(u));

    if (r < 0) {
        return r;
    }
    if (u.flags & ~(uint32_t)KVM_MSR_FILTER_DEFAULT_DENY) {
        return -EINVAL;
    }
    for (unsigned i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++) {
        is_empty &= !u.ranges[i].nmsrs;
    }
    if (is_empty && (u.flags & KVM_MSR_FILTER_DEFAULT_DENY)) {
        return -EINVAL;
    }
    r = make_filter(vm->s, &u, &new);
    if (r < 0) {
        return r;
    }
    new = atomic_exchange(&vm->msr_filter, new);
    kvm_vm_request_all(vm, KVM_REQUEST_MSR_FILTER);
    kvm_readers_wait(vm);
    kvm_msr_filter_free(new);
    return 0;
}

/* May the guest do this access? In the vCPU's read section. Source: KVM's kvm_msr_allowed(). */
bool kvm_msr_filter_allows(struct kvm_vm *vm, uint32_t index, bool is_write)
{
    const struct kvm_msr_policy *f = atomic_load_explicit(&vm->msr_filter, memory_order_acquire);
    uint32_t kind = is_write ? KVM_MSR_FILTER_WRITE : KVM_MSR_FILTER_READ;

    if (likely(!f) || (index >= X86_MSR_X2APIC_FIRST && index <= X86_MSR_X2APIC_LAST)) {
        return true;
    }
    for (unsigned i = 0; i < f->count; i++) {
        const struct range *r = &f->range[i];
        uint32_t at = index - r->first;

        if (index >= r->first && at < r->count && (r->flags & kind)) {
            return r->bitmap[at / 64] >> (at % 64) & 1;
        }
    }
    return f->default_allow;
}

/*
 * Take the filter into use: accesses to the processor's own registers have to exit if it forbids one of
 * them. As on silicon only two ranges of numbers can be the processor's own (its MSR bitmap has no others).
 */
void kvm_msr_filter_load(struct kvm_vcpu *v)
{
    static const uint32_t first[] = {0, 0xc0000000};
    uint64_t value;
    bool must_exit = false;

    if (atomic_load_explicit(&v->vm->msr_filter, memory_order_acquire)) {
        for (uint32_t i = 0; i < 2 * 0x2000 && !must_exit; i++) {
            uint32_t index = first[i / 0x2000] + i % 0x2000;

            must_exit = cpu_get_msr(v->cpu, index, &value) == 0 &&
                        !(kvm_msr_filter_allows(v->vm, index, false) &&
                          kvm_msr_filter_allows(v->vm, index, true));
        }
    }
    v->cpu->exit_msrs = must_exit;
}
