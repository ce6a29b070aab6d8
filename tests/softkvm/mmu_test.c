/*
 * The second stage against its definition: after every kind of fault, zap, protection and change of
 * host pages, a walk written here from the manual's words (and sharing no code with src) must find for
 * each guest page either nothing, or the very host page that its slot names, with no more rights than
 * slot and dirty log allow. Then the same in a storm of threads. All of it on EPT and NPT, 4 and 5
 * levels, with and without accessed and dirty bits, with a log of modified pages.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "mmu_world.h"

/* ---- tests ---- */

static void read_and_write_faults(void **state)
{
    struct world *w = world_new_with(*state, (struct world_options){.vcpus = 1, .max_level = 1,
                                     .stage2 = SOFTKVM_STAGE2_NO_PREFETCH});
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
    struct world *w = world_new_with(*state, (struct world_options){.vcpus = 1, .max_level = 2,
                                     .stage2 = SOFTKVM_STAGE2_NO_PREFETCH});
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

static void dirty_log(void **state)
{
    struct world *w = world_new(state, 1, 2);
    struct kvm_userspace_memory_region m = {1, 0, 2 * MB, 4 * MB, (uintptr_t)w->ram};
    uint64_t map[16], fast;
    struct kvm_dirty_log log = {.slot = 1, .dirty_bitmap = map};

    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_GET_DIRTY_LOG, &log), -ENOENT);
    assert_int_equal(fault(w, 0, 2 * MB, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    m.flags = KVM_MEM_LOG_DIRTY_PAGES;
    assert_int_equal(set_slot(w, m), 0);
    assert_false(define_walk(w, 2 * MB).rights & 2);
    /* The huge page was split; a write opens its own page alone. */
    assert_int_equal(fault(w, 0, 2 * MB + 7 * 4096, EPT_VIOL_WRITE),
                     w->vm->mmu.pml ? KVM_FAULT_SPURIOUS : KVM_FAULT_FIXED);
    assert_int_equal(define_walk(w, 2 * MB + 7 * 4096).shift, 12);
    assert_true(define_walk(w, 2 * MB + 7 * 4096).rights & 2);
    assert_false(define_walk(w, 2 * MB + 8 * 4096).rights & 2);
    assert_int_equal(verify_slot(w, &m, true), 512);
    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_GET_DIRTY_LOG, &log), 0);
    assert_int_equal(bits_in(map, 16), 1);
    assert_int_equal(map[0], 1u << 7);
    assert_false(define_walk(w, 2 * MB + 7 * 4096).rights & 2);
    /* Now the fast path serves the write; or none is needed, as the processor logs it. */
    fast = w->vcpu[0]->counters.faults_fast;
    assert_int_equal(fault(w, 0, 2 * MB + 7 * 4096, EPT_VIOL_WRITE),
                     w->vm->mmu.pml ? KVM_FAULT_SPURIOUS : KVM_FAULT_FIXED);
    assert_int_equal(w->vcpu[0]->counters.faults_fast, fast + !w->vm->mmu.pml);
    /* A page only read is not dirty. */
    assert_int_equal(fault(w, 0, 4 * MB, EPT_VIOL_READ), KVM_FAULT_FIXED);
    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_GET_DIRTY_LOG, &log), 0);
    assert_int_equal(bits_in(map, 16), 1);
    m.flags = 0;
    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(fault(w, 0, 2 * MB + 4096, EPT_VIOL_WRITE), KVM_FAULT_SPURIOUS); /* huge again, in place */
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
        if (i % 100 == 0) {
            check_world(w);
        }
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < 3; i++) {
        pthread_join(t[i], NULL);
    }
    check_world(w);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_ALL_KINDS(read_and_write_faults), ON_ALL_KINDS(huge_page_rules), ON_ALL_KINDS(mmio_entries),
        ON_ALL_KINDS(readonly_slot),         ON_ALL_KINDS(dirty_log),       ON_ALL_KINDS(manual_protect),
        ON_ALL_KINDS(host_takes_pages_away), ON_ALL_KINDS(storm),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
