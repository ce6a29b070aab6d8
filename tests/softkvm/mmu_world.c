/* The world of the second-stage tests; see mmu_world.h. */
#include "mmu_world.h"

#include <stdlib.h>
#include <sys/mman.h>

const struct kind kinds[NR_KINDS] = {
    {SOFTKVM_MMU_EPT, 4, 0},
    {SOFTKVM_MMU_NPT, 4, 0},
    {SOFTKVM_MMU_EPT, 5, 0},
    {SOFTKVM_MMU_NPT, 5, 0},
    {SOFTKVM_MMU_EPT, 4, SOFTKVM_STAGE2_NO_AD},
    {SOFTKVM_MMU_EPT, 4, SOFTKVM_STAGE2_PML},
};

struct world *world_new_with(const struct kind *kind, struct world_options wo)
{
    struct softkvm_options o = {.size = sizeof(o), .max_page_level = wo.max_level, .mmu = kind->mmu,
                                .host_memory = wo.host_bytes ? wo.host_bytes : 1024 * MB,
                                .ept_levels = kind->levels, .stage2 = kind->stage2 | wo.stage2,
                                .nx_recovery_period = wo.nx_period, .nx_recovery_ratio = wo.nx_ratio};
    uint64_t align = wo.max_level > 2 ? UINT64_C(1) << 30 : 2 * MB;
    struct world *w = calloc(1, sizeof(*w));
    struct kvm_file *f;
    char err[128];

    w->s = softkvm_new(&o, err, sizeof(err));
    assert_non_null(w->s);
    w->kvm = softkvm_open_system(w->s);
    w->vm_fd = softkvm_ioctl(w->s, w->kvm, KVM_CREATE_VM, 0);
    assert_true(w->vm_fd >= 0);
    f = kvm_file_get(w->s, w->vm_fd);
    w->vm = f->object;
    kvm_file_put(w->s, f);
    w->nr_vcpus = wo.vcpus;
    for (unsigned i = 0; i < wo.vcpus; i++) {
        w->vcpu_fd[i] = softkvm_ioctl(w->s, w->vm_fd, KVM_CREATE_VCPU, (void *)(uintptr_t)i);
        assert_true(w->vcpu_fd[i] >= 0);
        w->vcpu[i] = kvm_vm_vcpu(w->vm, i);
    }
    w->ram_bytes = wo.ram_bytes ? wo.ram_bytes : RAM_BYTES;
    w->ram = mmap(NULL, w->ram_bytes + align, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(w->ram != MAP_FAILED);
    w->ram = (char *)(((uintptr_t)w->ram + align - 1) & ~(uintptr_t)(align - 1));
    return w;
}

struct world *world_new(void **state, unsigned vcpus, unsigned max_level)
{
    return world_new_with(*state, (struct world_options){.vcpus = vcpus, .max_level = max_level});
}

void world_free(struct world *w)
{
    softkvm_free(w->s);
    free(w);
}

int set_slot(struct world *w, struct kvm_userspace_memory_region m)
{
    return softkvm_ioctl(w->s, w->vm_fd, KVM_SET_USER_MEMORY_REGION, &m);
}

/* Entry i of the table at physical address t: 8 little-endian bytes at t + 8 i. */
static uint64_t *entry_of(struct world *w, uint64_t t, unsigned i)
{
    char *p = (char *)host_hpa_to_ptr(w->s->hm, hpa(t));

    assert_non_null(p);
    return (uint64_t *)(uintptr_t)(p + 8 * i);
}

/* The rights of one of AMD's entries: present, user's, writable, not no-execute. */
static unsigned npt_rights(uint64_t e)
{
    return e & 4 ? 1 | (unsigned)(e & 2) | (e >> 63 ? 0 : 4) : 0;
}

struct found define_walk(struct world *w, uint64_t addr)
{
    bool npt = w->vm->s->options.mmu == SOFTKVM_MMU_NPT;
    uint64_t eptp = w->vm->mmu.eptp, table = eptp & 0xffffffffff000;
    unsigned shift = npt ? 3 + 9 * w->vm->mmu.levels : 12 + 9 * (unsigned)(eptp >> 3 & 7), rights = 7;

    for (;; shift -= 9) {
        uint64_t e = __atomic_load_n(entry_of(w, table, addr >> shift & 511), __ATOMIC_ACQUIRE);

        if (!(e & (npt ? 1 : 7))) {
            return (struct found){0};
        }
        if (npt ? e >> 51 & 1 : (e & 3) == 2) { /* reserved bit; writable but not readable: misconfigured */
            return (struct found){.mmio = true};
        }
        rights &= npt ? npt_rights(e) : e & 7;
        if (shift == 12 || (e & 128)) {
            uint64_t size = UINT64_C(1) << shift;

            if ((w->vm->s->options.stage2 & SOFTKVM_STAGE2_PML) && !(e >> 9 & 1)) {
                rights &= ~2u; /* clean: the write would be logged first */
            }
            assert_true(npt ? !(e & 0x18) : (e >> 3 & 7) == 6); /* write-back */
            return (struct found){true, false, rights, shift, e >> (npt ? 5 : 8) & 1,
                                  (e & 0xffffffffff000 & ~(size - 1)) + (addr & (size - 1))};
        }
        table = e & 0xffffffffff000;
    }
}

/* Every page of a slot: nothing, or the right host page. Returns how many are mapped. */
unsigned verify_slot(struct world *w, const struct kvm_userspace_memory_region *m, bool logging)
{
    unsigned mapped = 0;

    for (uint64_t off = 0; off < m->memory_size; off += 4096) {
        struct found f = define_walk(w, m->guest_phys_addr + off);

        assert_false(f.mmio);
        if (!f.present) {
            continue;
        }
        mapped++;
        assert_ptr_equal(host_hpa_to_ptr(w->s->hm, hpa(f.hpa)), (char *)m->userspace_addr + off);
        assert_true(!(m->flags & KVM_MEM_READONLY) || !(f.rights & 2));
        assert_true(!logging || !(f.rights & 2) || f.shift == 12);
    }
    check_world(w);
    return mapped;
}

void check_world(struct world *w)
{
    char text[200];

    if (kvm_check_vm(w->vm, text, sizeof(text)) < 0) {
        fail_msg("check: %s", text);
    }
}

/* As the processor: a write to a writable clean page sets the dirty bit and logs the page. Under the lock, as this
 * processor does not answer when it is asked to forget tables. */
static void log_write(struct world *w, struct kvm_vcpu *v, uint64_t addr)
{
    uint64_t table = w->vm->mmu.root.v;

    for (unsigned shift = 3 + 9 * w->vm->mmu.levels;; shift -= 9) {
        uint64_t *e = entry_of(w, table, addr >> shift & 511), old = __atomic_load_n(e, __ATOMIC_ACQUIRE);

        if (!(old & 1) || !(old & 2)) {
            return;
        }
        if (shift == 12 || (old & 128)) {
            if (!(old >> 9 & 1) &&
                __atomic_compare_exchange_n(e, &old, old | 1 << 9, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
                v->pml[v->cpu->pml_index--] = addr & ~UINT64_C(4095);
                kvm_mmu_pml_drain(v);
            }
            return;
        }
        table = old & 0xffffffffff000;
    }
}

enum kvm_fault_result fault(struct world *w, unsigned vcpu, uint64_t addr, uint32_t access)
{
    struct kvm_vcpu *v = w->vcpu[vcpu];
    enum kvm_fault_result r;
    int error = 0;

    kvm_read_begin(v);
    r = kvm_mmu_fault(v, gpa(addr), access, &error);
    if (v->pml && (access & EPT_VIOL_WRITE)) {
        pthread_rwlock_rdlock(&w->vm->mmu.lock);
        log_write(w, v, addr);
        pthread_rwlock_unlock(&w->vm->mmu.lock);
    }
    kvm_read_end(v);
    return r;
}

uint64_t bits_in(const uint64_t *map, size_t words)
{
    uint64_t n = 0;

    for (size_t i = 0; i < words; i++) {
        n += (uint64_t)__builtin_popcountll(map[i]);
    }
    return n;
}
