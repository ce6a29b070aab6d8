/*
 * Virtual processors: creation, end, and what other threads do to them. The run loop is run.c, the
 * ioctls are vcpu_ioctl.c.
 */
#include "softkvm/vcpu.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/guard.h"
#include "cpu/regs.h"
#include "cpu/run.h"
#include "softkvm/cpuid.h"
#include "softkvm/msr.h"
#include "softkvm/state.h"
#include "softkvm/tsc.h"

static int alloc_pages(struct kvm_vcpu *v)
{
    void *p;

    if (v->vm->s->options.fail_alloc && v->vm->s->options.fail_alloc(v->vm->s->options.fail_opaque)) {
        return -ENOMEM;
    }
    p = mmap(NULL, KVM_VCPU_RUN_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        return -ENOMEM;
    }
    v->run = p;
    return 0;
}

/* Everything of a vCPU but the chips' part. */
static int vcpu_init(struct kvm_vcpu *v)
{
    int r = alloc_pages(v);

    if (r < 0) {
        return r;
    }
    r = kvm_ring_init(v);
    if (r < 0) {
        return r;
    }
    v->cpu = cpu_new(v->vm->s->hm, v->vm->peers, v->index);
    if (!v->cpu) {
        return -ENOMEM;
    }
    v->cpu->maxphyaddr = KVM_GUEST_PHYS_BITS;
    if (v->vm->s->guarded) {
        v->cpu->host_ram = &v->vm->host_ram;
        base_guard_refresh(); /* the program may have set its handlers since */
    }
    v->tsc_khz = v->vm->tsc_khz;
    v->cpu->tsc_ratio = ((uint64_t)v->tsc_khz << 32) / v->vm->s->tsc_khz;
    kvm_tsc_synchronize(v, 0);
    v->extint_vector = -1;
    v->mmio_gfn = UINT64_MAX;
    r = kvm_mmu_vcpu_init(v);
    if (r < 0) {
        return r;
    }
    kvm_vcpu_reset(v, false);
    kvm_cpuid_changed(v);
    return 0;
}

void kvm_vcpu_free(struct kvm_vcpu *v)
{
    kvm_mmu_vcpu_fini(v);
    if (v->cpu) {
        cpu_free(v->cpu);
    }
    if (v->run) {
        munmap(v->run, KVM_VCPU_RUN_PAGES * PAGE_SIZE);
    }
    kvm_ring_fini(v);
    free(v->cpuid);
    pthread_mutex_destroy(&v->lock);
    free(v);
}

/* Make a vCPU that nobody sees yet. Lock: vm->lock. */
static int vcpu_new(struct kvm_vm *vm, uint32_t id, struct kvm_vcpu **out)
{
    struct kvm_vcpu *v = kvm_alloc(vm->s, sizeof(*v));
    int r;

    if (!v) {
        return -ENOMEM;
    }
    v->vm = vm;
    v->id = id;
    v->index = kvm_vm_nr_vcpus(vm);
    atomic_store(&v->refs, 1);
    atomic_store(&v->requests, KVM_REQUEST_MSR_FILTER);
    pthread_mutex_init(&v->lock, NULL);
    base_lock_set_rank(&v->lock, BASE_RANK_VCPU);
    r = vcpu_init(v);
    if (r == 0) {
        r = vm->irq->vcpu_init(v);
        if (r < 0) {
            vm->irq->vcpu_fini(v);
        }
    }
    if (r < 0) {
        kvm_vcpu_free(v);
        return r;
    }
    *out = v;
    return 0;
}

static int create_locked(struct kvm_vm *vm, uint32_t id)
{
    struct kvm_vcpu *v;
    uint32_t n = kvm_vm_nr_vcpus(vm);
    int fd, r;

    if (n >= KVM_VM_MAX_VCPUS) {
        return -EINVAL;
    }
    if (kvm_vm_find_vcpu(vm, id)) {
        return -EEXIST;
    }
    r = vcpu_new(vm, id, &v);
    if (r < 0) {
        return r;
    }
    atomic_store(&v->mp_state, id == vm->bsp_id || !v->lapic ? KVM_MP_STATE_RUNNABLE
                                                             : KVM_MP_STATE_UNINITIALIZED);
    fd = kvm_file_open(vm->s, KVM_FILE_VCPU, v);
    if (fd < 0) {
        vm->irq->vcpu_fini(v);
        kvm_vcpu_free(v);
        return fd;
    }
    kvm_vm_get(vm);
    atomic_store_explicit(&vm->vcpus[n], v, memory_order_relaxed);
    atomic_store_explicit(&vm->nr_vcpus, n + 1, memory_order_release);
    return fd;
}

/*
 * KVM_CREATE_VCPU. id: APIC id, < KVM_VM_MAX_VCPUS. Returns its descriptor; -EINVAL, -EEXIST, -ENOMEM,
 * -EMFILE. Lock: takes vm->lock.
 */
int kvm_vcpu_create(struct kvm_vm *vm, unsigned long id)
{
    int r;

    if (id >= (vm->max_vcpu_id ? vm->max_vcpu_id : KVM_VM_MAX_VCPUS)) {
        return -EINVAL;
    }
    pthread_mutex_lock(&vm->lock);
    r = create_locked(vm, (uint32_t)id);
    pthread_mutex_unlock(&vm->lock);
    return r;
}

void kvm_vcpu_get(struct kvm_vcpu *v)
{
    atomic_fetch_add_explicit(&v->refs, 1, memory_order_relaxed);
}

void kvm_vcpu_put(struct kvm_vcpu *v)
{
    if (atomic_fetch_sub_explicit(&v->refs, 1, memory_order_acq_rel) == 1) {
        kvm_vm_put(v->vm);
    }
}

/* ---- from other threads ---- */

/*
 *   waker                               vCPU about to sleep
 *   requests |= bits                    blocked = 1
 *   wake++                              seen = wake (read before looking)
 *   blocked? futex wake                 nothing to do? futex wait while wake == seen
 */
void kvm_vcpu_kick(struct kvm_vcpu *v)
{
    atomic_fetch_add(&v->wake, 1);
    if (atomic_load(&v->blocked)) {
        syscall(SYS_futex, &v->wake, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
    if (atomic_load(&v->in_guest)) {
        cpu_kick(v->cpu);
    }
}

void kvm_vcpu_request(struct kvm_vcpu *v, uint32_t bits)
{
    uint32_t old = atomic_fetch_or(&v->requests, bits);

    /* What is set already has been followed by a kick, and the vCPU has not looked since. */
    if ((old & bits) != bits) {
        kvm_vcpu_kick(v);
    }
}

void kvm_vcpu_post_nmi(struct kvm_vcpu *v)
{
    uint32_t n = atomic_load(&v->nmi_queued);

    while (n < 2 && !atomic_compare_exchange_weak(&v->nmi_queued, &n, n + 1)) {
    }
    kvm_vcpu_request(v, KVM_REQUEST_NMI);
}

void kvm_vcpu_post_init(struct kvm_vcpu *v)
{
    kvm_vcpu_request(v, KVM_REQUEST_INIT);
}

void kvm_vcpu_post_sipi(struct kvm_vcpu *v, uint8_t vector)
{
    atomic_store(&v->sipi_vector, vector);
    kvm_vcpu_request(v, KVM_REQUEST_SIPI);
}

/* ---- time ---- */

uint64_t kvm_vcpu_tsc(const struct kvm_vcpu *v)
{
    return cpu_read_tsc(v->cpu);
}

uint64_t kvm_vcpu_tsc_to_ns(const struct kvm_vcpu *v, uint64_t deadline)
{
    uint64_t now = kvm_vcpu_tsc(v);

    if ((int64_t)(deadline - now) <= 0) {
        return 0;
    }
    return (uint64_t)((unsigned __int128)(deadline - now) * 1000000 / v->tsc_khz);
}
