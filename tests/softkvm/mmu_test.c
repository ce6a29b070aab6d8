/*
 * The second stage against its definition: after every kind of fault, zap, protection and change of
 * host pages, a walk written here from the manual's words (and sharing no code with src) must find for
 * each guest page either nothing, or the very host page that its slot names, with no more rights than
 * slot and dirty log allow. Then the same in a storm of threads. All of it on EPT and NPT, 4 and 5 levels.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "fake_cpu.h"
#include "softkvm/inspect.h"
#include "softkvm/inspect_impl.h"
#include "softkvm/mmu_entry.h"
#include "softkvm/softkvm.h"
#include "softkvm/vcpu.h"

#define MB (UINT64_C(1) << 20)
#define RAM_BYTES (32 * MB)

struct world {
    struct softkvm *s;
    int kvm, vm_fd, vcpu_fd[4];
    struct kvm_vm *vm;
    struct kvm_vcpu *vcpu[4];
    unsigned nr_vcpus;
    char *ram;
};

/* The kinds of second stage that every test is run on. */
struct kind {
    enum softkvm_mmu mmu;
    unsigned levels;
};

static const struct kind kinds[] = {{SOFTKVM_MMU_EPT, 4}, {SOFTKVM_MMU_NPT, 4}, {SOFTKVM_MMU_EPT, 5},
                                    {SOFTKVM_MMU_NPT, 5}};

static struct world *world_new(void **state, unsigned vcpus, unsigned max_level)
{
    const struct kind *kind = *state;
    struct softkvm_options o = {.size = sizeof(o), .max_page_level = max_level,
                                .host_memory = 1024 * MB, .mmu = kind->mmu, .ept_levels = kind->levels};
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
    w->nr_vcpus = vcpus;
    for (unsigned i = 0; i < vcpus; i++) {
        w->vcpu_fd[i] = softkvm_ioctl(w->s, w->vm_fd, KVM_CREATE_VCPU, (void *)(uintptr_t)i);
        assert_true(w->vcpu_fd[i] >= 0);
        w->vcpu[i] = kvm_vm_vcpu(w->vm, i);
    }
    w->ram = mmap(NULL, RAM_BYTES + 2 * MB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(w->ram != MAP_FAILED);
    w->ram = (char *)(((uintptr_t)w->ram + 2 * MB - 1) & ~(uintptr_t)(2 * MB - 1));
    return w;
}

static void world_free(struct world *w)
{
    softkvm_free(w->s);
    free(w);
}

static int set_slot(struct world *w, struct kvm_userspace_memory_region m)
{
    return softkvm_ioctl(w->s, w->vm_fd, KVM_SET_USER_MEMORY_REGION, &m);
}

static enum kvm_fault_result fault(struct world *w, unsigned vcpu, uint64_t addr, uint32_t access)
{
    struct kvm_vcpu *v = w->vcpu[vcpu];
    enum kvm_fault_result r;
    int error = 0;

    kvm_read_begin(v);
    r = kvm_mmu_fault(v, gpa(addr), access, &error);
    kvm_read_end(v);
    return r;
}

/* ---- the walk by definition ---- */

struct found {
    bool present, mmio;
    unsigned rights; /* bit 0 read, 1 write, 2 execute */
    unsigned shift;  /* log2 of the page size */
    uint64_t hpa;
};

/* Entry i of the table at physical address t: 8 little-endian bytes at t + 8 i. */
static uint64_t entry_of(struct world *w, uint64_t t, unsigned i)
{
    const char *p = (const char *)host_hpa_to_ptr(w->s->hm, hpa(t));

    assert_non_null(p);
    return __atomic_load_n((const uint64_t *)(const void *)(p + 8 * i), __ATOMIC_ACQUIRE);
}

/* The rights of one of AMD's entries: present, user's, writable, not no-execute. */
static unsigned npt_rights(uint64_t e)
{
    return e & 4 ? 1 | (unsigned)(e & 2) | (e >> 63 ? 0 : 4) : 0;
}

static struct found define_walk(struct world *w, uint64_t addr)
{
    bool npt = w->vm->s->options.mmu == SOFTKVM_MMU_NPT;
    uint64_t eptp = w->vm->mmu.eptp, table = eptp & 0xffffffffff000;
    unsigned shift = npt ? 3 + 9 * w->vm->mmu.levels : 12 + 9 * (unsigned)(eptp >> 3 & 7), rights = 7;

    for (;; shift -= 9) {
        uint64_t e = entry_of(w, table, addr >> shift & 511);

        if (!(e & (npt ? 1 : 7))) {
            return (struct found){0};
        }
        if (npt ? e >> 51 & 1 : (e & 3) == 2) { /* reserved bit; writable but not readable: misconfigured */
            return (struct found){.mmio = true};
        }
        rights &= npt ? npt_rights(e) : e & 7;
        if (shift == 12 || (e & 128)) {
            uint64_t size = UINT64_C(1) << shift;

            assert_true(npt ? !(e & 0x18) : (e >> 3 & 7) == 6); /* write-back */
            return (struct found){true, false, rights, shift,
                                  (e & 0xffffffffff000 & ~(size - 1)) + (addr & (size - 1))};
        }
        table = e & 0xffffffffff000;
    }
}

/* Every page of a slot: nothing, or the right host page. Returns how many are mapped. */
static unsigned verify_slot(struct world *w, const struct kvm_userspace_memory_region *m, bool logging)
{
    unsigned mapped = 0;
    char text[200];

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
    if (kvm_check_vm(w->vm, text, sizeof(text)) < 0) {
        fail_msg("check: %s", text);
    }
    return mapped;
}

/* ---- tests ---- */

static void read_and_write_faults(void **state)
{
    struct world *w = world_new(state, 1, 1);
    struct kvm_userspace_memory_region m = {1, 0, 0x100000, 4 * MB, (uintptr_t)w->ram};

    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(fault(w, 0, 0x100000, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    assert_int_equal(fault(w, 0, 0x100000, EPT_VIOL_WRITE), KVM_FAULT_SPURIOUS);
    assert_int_equal(fault(w, 0, 0x100fff, EPT_VIOL_READ), KVM_FAULT_SPURIOUS);
    assert_int_equal(verify_slot(w, &m, false), 1);
    assert_true(define_walk(w, 0x100000).rights & 2);
    for (uint64_t a = 0; a < 4 * MB; a += 4096) {
        enum kvm_fault_result r = fault(w, 0, 0x100000 + a, a & 4096 ? EPT_VIOL_READ : EPT_VIOL_FETCH);

        assert_true(r == KVM_FAULT_FIXED || r == KVM_FAULT_SPURIOUS);
    }
    assert_int_equal(verify_slot(w, &m, false), 1024);
    assert_int_equal(atomic_load(&w->vm->mmu.pages[1]), 1024);
    m.memory_size = 0;
    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(atomic_load(&w->vm->mmu.pages[1]), 0);
    assert_false(define_walk(w, 0x100000).present);
    world_free(w);
}

static void huge_page_rules(void **state)
{
    struct world *w = world_new(state, 1, 2);
    struct kvm_userspace_memory_region aligned = {1, 0, 2 * MB, 4 * MB, (uintptr_t)w->ram};
    struct kvm_userspace_memory_region skewed = {2, 0, 32 * MB, 4 * MB, (uintptr_t)w->ram + 8 * MB + 4096};
    struct kvm_userspace_memory_region edge = {3, 0, 64 * MB + 4096, 4 * MB, (uintptr_t)w->ram + 16 * MB + 4096};

    assert_int_equal(set_slot(w, aligned), 0);
    assert_int_equal(set_slot(w, skewed), 0);
    assert_int_equal(set_slot(w, edge), 0);
    assert_int_equal(fault(w, 0, 3 * MB, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    assert_int_equal(define_walk(w, 3 * MB).shift, 21);
    assert_int_equal(verify_slot(w, &aligned, false), 512);
    assert_int_equal(fault(w, 0, 34 * MB, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    assert_int_equal(define_walk(w, 34 * MB).shift, 12);
    assert_int_equal(verify_slot(w, &skewed, false), 1);
    /* The first 2 MiB of the slot begin below it: small; the next lie inside: huge. */
    assert_int_equal(fault(w, 0, 64 * MB + 4096, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    assert_int_equal(define_walk(w, 64 * MB + 4096).shift, 12);
    assert_int_equal(fault(w, 0, 66 * MB, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    assert_int_equal(define_walk(w, 66 * MB).shift, 21);
    assert_int_equal(verify_slot(w, &edge, false), 513);
    world_free(w);
}

static void mmio_entries(void **state)
{
    struct world *w = world_new(state, 1, 2);
    struct kvm_userspace_memory_region m = {1, 0, 0, 2 * MB, (uintptr_t)w->ram};
    uint64_t device = 0xfee00000;

    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(fault(w, 0, device, EPT_VIOL_READ), KVM_FAULT_EMULATE);
    assert_true(define_walk(w, device).mmio);
    assert_true(kvm_mmu_mmio_is_fresh(w->vcpu[0], gpa(device)));
    m.slot = 2;
    m.guest_phys_addr = device & ~(2 * MB - 1);
    assert_int_equal(set_slot(w, m), 0);
    assert_false(kvm_mmu_mmio_is_fresh(w->vcpu[0], gpa(device)));
    assert_int_equal(fault(w, 0, device, EPT_VIOL_READ), KVM_FAULT_FIXED);
    assert_true(define_walk(w, device).present);
    assert_int_equal(atomic_load(&w->vm->mmu.pages[0]), 0);
    m.memory_size = 0;
    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(fault(w, 0, device, EPT_VIOL_WRITE), KVM_FAULT_EMULATE);
    assert_int_equal(atomic_load(&w->vm->mmu.pages[0]), 1);
    world_free(w);
}

static void readonly_slot(void **state)
{
    struct world *w = world_new(state, 1, 2);
    struct kvm_userspace_memory_region m = {1, KVM_MEM_READONLY, 0, 2 * MB, (uintptr_t)w->ram};

    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(fault(w, 0, 4096, EPT_VIOL_READ), KVM_FAULT_FIXED);
    assert_int_equal(fault(w, 0, 4096, EPT_VIOL_WRITE), KVM_FAULT_WRITE_RO);
    assert_true(verify_slot(w, &m, false) > 0);
    world_free(w);
}

static uint64_t bits_in(const uint64_t *map, size_t words)
{
    uint64_t n = 0;

    for (size_t i = 0; i < words; i++) {
        n += (uint64_t)__builtin_popcountll(map[i]);
    }
    return n;
}

static void dirty_log(void **state)
{
    struct world *w = world_new(state, 1, 2);
    struct kvm_userspace_memory_region m = {1, 0, 2 * MB, 4 * MB, (uintptr_t)w->ram};
    uint64_t map[16];
    struct kvm_dirty_log log = {.slot = 1, .dirty_bitmap = map};

    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_GET_DIRTY_LOG, &log), -ENOENT);
    assert_int_equal(fault(w, 0, 2 * MB, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    m.flags = KVM_MEM_LOG_DIRTY_PAGES;
    assert_int_equal(set_slot(w, m), 0);
    assert_false(define_walk(w, 2 * MB).rights & 2);
    /* A write splits the huge page; its neighbours stay protected. */
    assert_int_equal(fault(w, 0, 2 * MB + 7 * 4096, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    assert_int_equal(define_walk(w, 2 * MB + 7 * 4096).shift, 12);
    assert_true(define_walk(w, 2 * MB + 7 * 4096).rights & 2);
    assert_false(define_walk(w, 2 * MB + 8 * 4096).rights & 2);
    assert_int_equal(verify_slot(w, &m, true), 512);
    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_GET_DIRTY_LOG, &log), 0);
    assert_int_equal(bits_in(map, 16), 1);
    assert_int_equal(map[0], 1u << 7);
    assert_false(define_walk(w, 2 * MB + 7 * 4096).rights & 2);
    /* Now the fast path serves the write. */
    assert_int_equal(fault(w, 0, 2 * MB + 7 * 4096, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    assert_int_equal(w->vcpu[0]->counters.faults_fast, 1);
    /* A page only read is not dirty. */
    assert_int_equal(fault(w, 0, 4 * MB, EPT_VIOL_READ), KVM_FAULT_FIXED);
    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_GET_DIRTY_LOG, &log), 0);
    assert_int_equal(bits_in(map, 16), 1);
    m.flags = 0;
    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(fault(w, 0, 2 * MB + 4096, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    assert_int_equal(define_walk(w, 2 * MB).shift, 21);
    verify_slot(w, &m, false);
    world_free(w);
}

static void manual_protect(void **state)
{
    struct world *w = world_new(state, 1, 2);
    struct kvm_enable_cap cap = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = {1}};
    struct kvm_userspace_memory_region m = {1, KVM_MEM_LOG_DIRTY_PAGES, 0, 100 * 4096, (uintptr_t)w->ram};
    uint64_t map[2];
    struct kvm_dirty_log log = {.slot = 1, .dirty_bitmap = map};
    struct kvm_clear_dirty_log clear = {.slot = 1, .num_pages = 64, .dirty_bitmap = map};

    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_ENABLE_CAP, &cap), 0);
    assert_int_equal(set_slot(w, m), 0);
    fault(w, 0, 5 * 4096, EPT_VIOL_WRITE);
    fault(w, 0, 70 * 4096, EPT_VIOL_WRITE);
    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_GET_DIRTY_LOG, &log), 0);
    assert_int_equal(map[0], 1u << 5);
    assert_int_equal(map[1], 1u << 6);
    assert_true(define_walk(w, 5 * 4096).rights & 2);
    clear.first_page = 3;
    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_CLEAR_DIRTY_LOG, &clear), -EINVAL);
    clear.first_page = 0;
    clear.num_pages = 65;
    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_CLEAR_DIRTY_LOG, &clear), -EINVAL);
    clear.num_pages = 64;
    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_CLEAR_DIRTY_LOG, &clear), 0);
    assert_false(define_walk(w, 5 * 4096).rights & 2);
    assert_true(define_walk(w, 70 * 4096).rights & 2);
    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_GET_DIRTY_LOG, &log), 0);
    assert_int_equal(map[0], 0);
    assert_int_equal(map[1], 1u << 6);
    clear.first_page = 64;
    clear.num_pages = 36;
    map[0] = map[1];
    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_CLEAR_DIRTY_LOG, &clear), 0);
    assert_false(define_walk(w, 70 * 4096).rights & 2);
    verify_slot(w, &m, true);
    world_free(w);
}

static void host_takes_pages_away(void **state)
{
    struct world *w = world_new(state, 1, 2);
    struct kvm_userspace_memory_region m = {1, 0, 0, 4 * MB, (uintptr_t)w->ram};

    assert_int_equal(set_slot(w, m), 0);
    fault(w, 0, 0, EPT_VIOL_WRITE);
    fault(w, 0, 2 * MB, EPT_VIOL_WRITE);
    assert_true(define_walk(w, 4096).present);
    assert_int_equal(softkvm_memory_discarded(w->s, w->ram + 4096, 4096), 0);
    assert_false(define_walk(w, 4096).present);
    assert_true(define_walk(w, 3 * MB).present);
    verify_slot(w, &m, false);
    assert_int_equal(fault(w, 0, 4096, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    verify_slot(w, &m, false);
    assert_int_equal(softkvm_memory_unmapped(w->s, w->ram, 4 * MB), 0);
    assert_int_equal(verify_slot(w, &m, false), 0);
    world_free(w);
}

/* ---- storm ---- */

struct storm {
    struct world *w;
    unsigned vcpu;
    unsigned *stop;
};

static void *storm_faults(void *opaque)
{
    struct storm *s = opaque;
    unsigned seed = s->vcpu + 1;

    while (!__atomic_load_n(s->stop, __ATOMIC_RELAXED)) {
        uint64_t addr = (uint64_t)rand_r(&seed) % (RAM_BYTES + 4 * MB);

        fault(s->w, s->vcpu, addr & ~UINT64_C(4095), rand_r(&seed) & 1 ? EPT_VIOL_WRITE : EPT_VIOL_READ);
    }
    return NULL;
}

static void storm_change(struct world *w, unsigned *seed)
{
    struct kvm_userspace_memory_region m = {(uint32_t)rand_r(seed) % 4, 0, 0, 8 * MB, 0};
    uint64_t map[32];
    struct kvm_dirty_log log = {.slot = m.slot, .dirty_bitmap = map};

    m.guest_phys_addr = m.slot * 8 * MB;
    m.userspace_addr = (uintptr_t)w->ram + m.slot * 8 * MB;
    switch (rand_r(seed) % 6) {
    case 0:
        m.memory_size = 0;
        set_slot(w, m);
        break;
    case 1:
        m.flags = KVM_MEM_LOG_DIRTY_PAGES;
        set_slot(w, m);
        break;
    case 2:
        softkvm_ioctl(w->s, w->vm_fd, KVM_GET_DIRTY_LOG, &log);
        break;
    case 3:
        softkvm_memory_discarded(w->s, w->ram + (uint64_t)rand_r(seed) % (RAM_BYTES - 64 * 4096) / 4096 * 4096,
                                 64 * 4096);
        break;
    default:
        set_slot(w, m);
        break;
    }
}

static void storm(void **state)
{
    struct world *w = world_new(state, 3, 2);
    unsigned stop = 0, seed = 99;
    struct storm s[3];
    pthread_t t[3];
    char text[200];

    for (unsigned i = 0; i < 4; i++) {
        struct kvm_userspace_memory_region m = {i, 0, i * 8 * MB, 8 * MB, (uintptr_t)w->ram + i * 8 * MB};

        assert_int_equal(set_slot(w, m), 0);
    }
    for (unsigned i = 0; i < 3; i++) {
        s[i] = (struct storm){w, i, &stop};
        pthread_create(&t[i], NULL, storm_faults, &s[i]);
    }
    for (int i = 0; i < 500; i++) {
        storm_change(w, &seed);
        if (i % 100 == 0 && kvm_check_vm(w->vm, text, sizeof(text)) < 0) {
            fail_msg("check: %s", text);
        }
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < 3; i++) {
        pthread_join(t[i], NULL);
    }
    if (kvm_check_vm(w->vm, text, sizeof(text)) < 0) {
        fail_msg("check: %s", text);
    }
    world_free(w);
}

#define ON_ALL_KINDS(f)                                                                            \
    cmocka_unit_test_prestate(f, (void *)&kinds[0]), cmocka_unit_test_prestate(f, (void *)&kinds[1]), \
        cmocka_unit_test_prestate(f, (void *)&kinds[2]), cmocka_unit_test_prestate(f, (void *)&kinds[3])

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_ALL_KINDS(read_and_write_faults), ON_ALL_KINDS(huge_page_rules), ON_ALL_KINDS(mmio_entries),
        ON_ALL_KINDS(readonly_slot),         ON_ALL_KINDS(dirty_log),       ON_ALL_KINDS(manual_protect),
        ON_ALL_KINDS(host_takes_pages_away), ON_ALL_KINDS(storm),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
