/*
 * The rules of the second stage one by one: huge pages up to 1 GiB and what forbids them, the NX mitigation and its
 * recovery, eager splitting, huge pages coming back in place, prefetch, aging with and without accessed bits, MMIO
 * generations coming round, the log of modified pages, faults in parallel. On every kind.
 */
#include <errno.h>
#include <linux/capability.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mmu_world.h"
#include "softkvm/lpage.h"

#define GB (UINT64_C(1) << 30)

static const struct kind *kind_of(void **state)
{
    return *state;
}

static unsigned shift_at(struct world *w, uint64_t addr)
{
    return define_walk(w, addr).shift;
}

static uint64_t counter(struct world *w, const char *name)
{
    struct softkvm_counter c[160];
    struct softkvm_counters all = {.size = sizeof(all), .count = 160, .counters = (uintptr_t)c};

    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, SOFTKVM_COUNTERS, &all), 0);
    for (uint32_t i = 0; i < all.count && i < 160; i++) {
        if (strcmp(c[i].name, name) == 0) {
            return c[i].value;
        }
    }
    fail_msg("no counter %s", name);
    return 0;
}

/* The host keeps to 4 KiB in the first `bytes` of RAM. */
static void no_huge_pages(struct world *w, uint64_t bytes)
{
    struct host_vma vma;

    assert_int_equal(host_mm_find_vma(w->s->mm, hva((uintptr_t)w->ram), &vma), 0);
    assert_int_equal(host_mm_advise(w->s->mm, hva((uintptr_t)w->ram), hva((uintptr_t)w->ram + bytes),
                                    HOST_VMA_NOHUGEPAGE, 0), 0);
}

/* ---- huge pages ---- */

/* Guest and host have 1 GiB of the same alignment; the host gives what it has. */
static void one_gigabyte_leaves(void **state)
{
    struct world *w = world_new_with(kind_of(state), (struct world_options){.vcpus = 1, .max_level = 3,
                                     .ram_bytes = 3 * GB, .host_bytes = 8 * GB});
    struct kvm_userspace_memory_region m = {1, 0, 4 * GB, 2 * GB, (uintptr_t)w->ram};
    struct host_vma vma = {hva((uintptr_t)w->ram), hva((uintptr_t)w->ram + 2 * GB),
                           HOST_VMA_READ | HOST_VMA_WRITE | HOST_VMA_HUGETLB, 30, 0, 0, 0, 0};

    assert_int_equal(host_mm_map(w->s->mm, &vma), 0);
    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(fault(w, 0, 4 * GB + 12345678, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    assert_int_equal(shift_at(w, 4 * GB), 30);
    assert_int_equal(define_walk(w, 4 * GB + 5 * MB).rights, 7);
    assert_ptr_equal(host_hpa_to_ptr(w->s->hm, hpa(define_walk(w, 4 * GB + 777 * 4096).hpa)), w->ram + 777 * 4096);
    assert_int_equal(atomic_load(&w->vm->mmu.pages[3]), 1);
    check_world(w);
    /* Logging splits it down to pages; without it they come together again. */
    m.flags = KVM_MEM_LOG_DIRTY_PAGES;
    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(shift_at(w, 4 * GB + 5 * MB), 12);
    assert_false(define_walk(w, 4 * GB + 5 * MB).rights & 2);
    assert_int_equal(atomic_load(&w->vm->mmu.pages[1]), 512 * 512);
    check_world(w);
    m.flags = 0;
    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(shift_at(w, 4 * GB + 5 * MB), 30);
    assert_int_equal(define_walk(w, 4 * GB + 5 * MB).rights, 7);
    assert_int_equal(atomic_load(&w->vm->mmu.pages[1]), 0);
    check_world(w);
    world_free(w);
}

/* Each reason against a huge leaf, alone: then none is made; taken back: one is. */
static void reasons_against_huge(void **state)
{
    struct world *w = world_new(state, 1, 2);
    struct kvm_userspace_memory_region m = {1, 0, 2 * MB, 8 * MB, (uintptr_t)w->ram};
    struct kvm_memslot *slot;

    assert_int_equal(set_slot(w, m), 0);
    slot = kvm_slots_find(kvm_slots_active(&w->vm->slots), gfn(512));
    kvm_lpage_disallow(slot, gfn(512 + 7), 1);
    assert_int_equal(fault(w, 0, 2 * MB, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    assert_int_equal(shift_at(w, 2 * MB), 12);
    kvm_lpage_disallow(slot, gfn(512 + 7), -1);
    kvm_lpage_set_mixed(slot, gfn(1024), 2, true);
    assert_int_equal(fault(w, 0, 4 * MB, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    assert_int_equal(shift_at(w, 4 * MB), 12);
    kvm_lpage_set_mixed(slot, gfn(1024), 2, false);
    assert_int_equal(fault(w, 0, 6 * MB, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    assert_int_equal(shift_at(w, 6 * MB), 21);
    kvm_mmu_zap_range(w->vm, gfn(512), 1024);
    assert_int_equal(fault(w, 0, 2 * MB, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    assert_int_equal(fault(w, 0, 4 * MB, EPT_VIOL_READ), KVM_FAULT_FIXED);
    assert_int_equal(shift_at(w, 2 * MB), 21);
    assert_int_equal(shift_at(w, 4 * MB), 21);
    verify_slot(w, &m, false);
    /* Counts survive a change of flags, and the slot's shape gives them anew after a move. */
    kvm_lpage_disallow(slot, gfn(512), 1);
    m.flags = KVM_MEM_LOG_DIRTY_PAGES;
    assert_int_equal(set_slot(w, m), 0);
    slot = kvm_slots_find(kvm_slots_active(&w->vm->slots), gfn(512));
    assert_int_equal(kvm_lpage_reasons(slot, gfn(512), 2), 1);
    kvm_lpage_disallow(slot, gfn(512), -1);
    m.guest_phys_addr = 20 * MB + 4096;
    assert_int_equal(set_slot(w, m), 0);
    slot = kvm_slots_find(kvm_slots_active(&w->vm->slots), gfn(5121));
    assert_false(kvm_lpage_allowed(slot, gfn(5632), 2)); /* not congruent any more */
    assert_int_equal(kvm_lpage_reasons(slot, gfn(5121), 2), 1);
    check_world(w);
    world_free(w);
}

static void small_host_pages_stay_small(void **state)
{
    struct world *w = world_new(state, 1, 2);
    struct kvm_userspace_memory_region m = {1, 0, 2 * MB, 4 * MB, (uintptr_t)w->ram};

    no_huge_pages(w, 4 * MB);
    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(fault(w, 0, 2 * MB, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    assert_int_equal(shift_at(w, 2 * MB), 12);
    verify_slot(w, &m, false);
    world_free(w);
}

/* ---- the NX mitigation ---- */

static void nx_huge_pages(void **state)
{
    struct world *w = world_new_with(kind_of(state), (struct world_options){.vcpus = 1, .max_level = 2,
                                     .stage2 = SOFTKVM_STAGE2_NX_HUGE});
    struct kvm_userspace_memory_region m = {1, 0, 2 * MB, 8 * MB, (uintptr_t)w->ram};

    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(fault(w, 0, 2 * MB, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    assert_int_equal(shift_at(w, 2 * MB), 21);
    assert_int_equal(define_walk(w, 2 * MB).rights & 5, 1);
    /* Code there: small pages, all of them executable; written data of before stays writable. */
    assert_int_equal(fault(w, 0, 2 * MB + 4096, EPT_VIOL_FETCH), KVM_FAULT_FIXED);
    assert_int_equal(shift_at(w, 2 * MB + 4096), 12);
    assert_int_equal(define_walk(w, 2 * MB + 4096).rights & 5, 5);
    assert_int_equal(define_walk(w, 2 * MB + 8192).rights & 5, 5);
    assert_int_equal(atomic_load(&w->vm->mmu.nx_split), 1);
    assert_int_equal(counter(w, "nx_lpage_splits"), 1);
    /* A data fault beside does not bring the huge page back. */
    assert_int_equal(fault(w, 0, 2 * MB + 12288, EPT_VIOL_WRITE), KVM_FAULT_SPURIOUS);
    /* Code first, in a region where nothing is mapped: small at once. */
    assert_int_equal(fault(w, 0, 4 * MB, EPT_VIOL_FETCH), KVM_FAULT_FIXED);
    assert_int_equal(shift_at(w, 4 * MB), 12);
    assert_int_equal(atomic_load(&w->vm->mmu.nx_split), 2);
    verify_slot(w, &m, false);
    assert_int_equal(kvm_mmu_nx_recover(w->vm, 1), 1);
    assert_int_equal(atomic_load(&w->vm->mmu.nx_split), 1);
    assert_int_equal(kvm_mmu_nx_recover(w->vm, 5), 1);
    assert_int_equal(atomic_load(&w->vm->mmu.nx_split), 0);
    assert_int_equal(fault(w, 0, 2 * MB, EPT_VIOL_READ), KVM_FAULT_FIXED);
    assert_int_equal(shift_at(w, 2 * MB), 21);
    verify_slot(w, &m, false);
    world_free(w);
}

/* The worker gives them back by itself. */
static void nx_worker(void **state)
{
    struct world *w = world_new_with(kind_of(state), (struct world_options){.vcpus = 1, .max_level = 2,
                                     .stage2 = SOFTKVM_STAGE2_NX_HUGE, .nx_period = 5, .nx_ratio = 2});
    struct kvm_userspace_memory_region m = {1, 0, 0, 16 * MB, (uintptr_t)w->ram};

    assert_int_equal(set_slot(w, m), 0);
    for (uint64_t a = 0; a < 16 * MB; a += 2 * MB) {
        fault(w, 0, a, EPT_VIOL_FETCH);
    }
    for (int i = 0; i < 2000 && atomic_load(&w->vm->mmu.nx_split); i++) {
        usleep(5000);
    }
    assert_int_equal(atomic_load(&w->vm->mmu.nx_split), 0);
    assert_int_equal(counter(w, "nx_lpage_recovered"), 8);
    check_world(w);
    world_free(w);
}

/* KVM_CAP_VM_DISABLE_NX_HUGE_PAGES: for who may reboot the machine, before the first vCPU. */
static void nx_disabled_for_a_vm(void **state)
{
    struct world *w = world_new_with(kind_of(state), (struct world_options){.max_level = 2,
                                     .stage2 = SOFTKVM_STAGE2_NX_HUGE});
    struct kvm_enable_cap cap = {.cap = KVM_CAP_VM_DISABLE_NX_HUGE_PAGES, .args = {1}};
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct had[2], less[2];
    bool may;

    assert_int_equal(softkvm_ioctl(w->s, w->kvm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_VM_DISABLE_NX_HUGE_PAGES), 1);
    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_ENABLE_CAP, &cap), -EINVAL);
    cap.args[0] = 0;
    assert_int_equal(syscall(SYS_capget, &head, had), 0);
    may = had[0].effective >> CAP_SYS_BOOT & 1;
    memcpy(less, had, sizeof(had));
    less[0].effective &= ~(1u << CAP_SYS_BOOT);
    assert_int_equal(syscall(SYS_capset, &head, less), 0);
    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_ENABLE_CAP, &cap), -EPERM);
    assert_true(w->vm->mmu.nx_huge);
    assert_int_equal(syscall(SYS_capset, &head, had), 0);
    if (may) {
        assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_ENABLE_CAP, &cap), 0);
        assert_false(w->vm->mmu.nx_huge);
        assert_true(softkvm_ioctl(w->s, w->vm_fd, KVM_CREATE_VCPU, 0) >= 0);
        assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_ENABLE_CAP, &cap), -EINVAL);
    }
    world_free(w);
}

/* ---- logging on and off ---- */

static void eager_and_lazy_split(void **state)
{
    for (unsigned lazy = 0; lazy < 2; lazy++) {
        struct world *w = world_new_with(kind_of(state), (struct world_options){.vcpus = 1, .max_level = 2,
                                         .stage2 = lazy ? SOFTKVM_STAGE2_NO_EAGER_SPLIT : 0});
        struct kvm_userspace_memory_region m = {1, 0, 2 * MB, 8 * MB, (uintptr_t)w->ram};

        assert_int_equal(set_slot(w, m), 0);
        for (uint64_t a = 2 * MB; a < 10 * MB; a += 2 * MB) {
            assert_int_equal(fault(w, 0, a, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
        }
        m.flags = KVM_MEM_LOG_DIRTY_PAGES;
        assert_int_equal(set_slot(w, m), 0);
        assert_int_equal(counter(w, "eager_splits"), lazy ? 0 : 4);
        assert_int_equal(shift_at(w, 4 * MB), lazy ? 21 : 12);
        assert_false(define_walk(w, 4 * MB).rights & 2);
        fault(w, 0, 4 * MB + 4096, EPT_VIOL_WRITE);
        assert_int_equal(shift_at(w, 4 * MB), 12);
        assert_true(define_walk(w, 4 * MB + 4096).rights & 2);
        assert_false(define_walk(w, 4 * MB).rights & 2);
        verify_slot(w, &m, true);
        /* Off: huge again, in place and without a fault. */
        m.flags = 0;
        assert_int_equal(set_slot(w, m), 0);
        assert_int_equal(shift_at(w, 4 * MB), 21);
        assert_int_equal(define_walk(w, 4 * MB).rights, 7);
        assert_int_equal(counter(w, "huge_recovered"), lazy ? 1 : 4);
        verify_slot(w, &m, false);
        world_free(w);
    }
}

/* With all bits set at first, huge pages are split by the clearing of their bits. */
static void split_on_clear(void **state)
{
    struct world *w = world_new(state, 1, 2);
    struct kvm_enable_cap cap = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = {3}};
    struct kvm_userspace_memory_region m = {1, 0, 2 * MB, 4 * MB, (uintptr_t)w->ram};
    uint64_t ones[16];
    struct kvm_clear_dirty_log clear = {.slot = 1, .num_pages = 64, .dirty_bitmap = ones};

    memset(ones, 0xff, sizeof(ones));
    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_ENABLE_CAP, &cap), 0);
    assert_int_equal(set_slot(w, m), 0);
    fault(w, 0, 2 * MB, EPT_VIOL_WRITE);
    fault(w, 0, 4 * MB, EPT_VIOL_WRITE);
    m.flags = KVM_MEM_LOG_DIRTY_PAGES;
    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(shift_at(w, 2 * MB), 21);
    assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_CLEAR_DIRTY_LOG, &clear), 0);
    assert_int_equal(shift_at(w, 2 * MB), 12);
    assert_false(define_walk(w, 2 * MB).rights & 2);
    assert_true(define_walk(w, 2 * MB + 64 * 4096).rights & 2);
    assert_int_equal(shift_at(w, 4 * MB), 21);
    world_free(w);
}

/* ---- prefetch ---- */

static void neighbours_are_mapped(void **state)
{
    for (unsigned off = 0; off < 2; off++) {
        struct world *w = world_new_with(kind_of(state), (struct world_options){.vcpus = 1, .max_level = 1,
                                         .stage2 = off ? SOFTKVM_STAGE2_NO_PREFETCH : 0});
        struct kvm_userspace_memory_region m = {1, 0, 0, 4 * MB, (uintptr_t)w->ram};
        bool does = !off && !(kind_of(state)->stage2 & SOFTKVM_STAGE2_NO_AD);

        assert_int_equal(set_slot(w, m), 0);
        /* The host maps 2 MiB at the first touch, so its pages are at hand. */
        assert_int_equal(fault(w, 0, 17 * 4096, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
        assert_int_equal(verify_slot(w, &m, false), does ? 8 : 1);
        assert_int_equal(define_walk(w, 16 * 4096).present, does);
        assert_int_equal(define_walk(w, 23 * 4096).present, does);
        assert_false(define_walk(w, 24 * 4096).present);
        assert_false(define_walk(w, 15 * 4096).present);
        if (does) {
            assert_true(define_walk(w, 17 * 4096).accessed);
            assert_false(define_walk(w, 18 * 4096).accessed);
        }
        assert_int_equal(counter(w, "pf_prefetched"), does ? 7 : 0);
        /* Not where writes are logged. */
        m.flags = KVM_MEM_LOG_DIRTY_PAGES;
        assert_int_equal(set_slot(w, m), 0);
        assert_int_equal(fault(w, 0, 100 * 4096, EPT_VIOL_READ), KVM_FAULT_FIXED);
        assert_false(define_walk(w, 101 * 4096).present);
        verify_slot(w, &m, true);
        world_free(w);
    }
}

/* ---- aging ---- */

static bool young(struct world *w, uint64_t off, bool clear)
{
    struct host_notifier *n = &w->vm->mmu.notifier;
    struct host_mmu_range r = {hva((uintptr_t)w->ram + off), hva((uintptr_t)w->ram + off + 4096), HOST_MMU_CLEAR};

    return clear ? n->ops->clear_young(n, &r) : n->ops->test_young(n, &r);
}

static void aging(void **state)
{
    struct world *w = world_new(state, 1, 1);
    struct kvm_userspace_memory_region m = {1, 0, 0, 4 * MB, (uintptr_t)w->ram};
    bool tracked = (kind_of(state)->stage2 & SOFTKVM_STAGE2_NO_AD) != 0;
    uint64_t untracked;

    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(fault(w, 0, 8 * 4096, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    assert_true(young(w, 8 * 4096, false));
    assert_true(young(w, 8 * 4096, true));
    assert_false(young(w, 8 * 4096, false));
    assert_false(young(w, 8 * 4096, true));
    assert_false(young(w, 99 * 4096, false));
    assert_int_equal(atomic_load(&w->vm->mmu.pages[1]), tracked ? 1 : 8);
    check_world(w);
    if (tracked) {
        /* Without accessed bits the next use faults, and only gives back what was taken. */
        assert_false(define_walk(w, 8 * 4096).present);
        assert_int_equal(fault(w, 0, 8 * 4096, EPT_VIOL_READ), KVM_FAULT_FIXED);
        assert_true(young(w, 8 * 4096, false));
        assert_int_equal(define_walk(w, 8 * 4096).rights, 5);
        assert_int_equal(fault(w, 0, 8 * 4096, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
        assert_int_equal(define_walk(w, 8 * 4096).rights, 7);
        assert_true(young(w, 8 * 4096, true));
        untracked = counter(w, "pf_untracked");
        assert_int_equal(fault(w, 0, 8 * 4096, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
        assert_int_equal(define_walk(w, 8 * 4096).rights, 7);
        assert_int_equal(counter(w, "pf_untracked"), untracked + 1);
        assert_int_equal(w->s->mm ? counter(w, "pf_fast") : 0, 3);
        check_world(w);
    }
    world_free(w);
}

/* A watched page is write-protected with the others: its old writable translation may still be cached. */
static unsigned flushes;

static void count_flush(struct cpu *cpu)
{
    flushes++;
}

static void watched_pages_are_flushed(void **state)
{
    struct world *w = world_new(state, 1, 1);
    struct kvm_userspace_memory_region m = {1, 0, 0, 1 * MB, (uintptr_t)w->ram};

    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(fault(w, 0, 0, EPT_VIOL_WRITE), KVM_FAULT_FIXED);
    young(w, 0, true);
    fake_cpu.flush = count_flush;
    flushes = 0;
    m.flags = KVM_MEM_LOG_DIRTY_PAGES;
    assert_int_equal(set_slot(w, m), 0);
    assert_true(flushes > 0);
    fake_cpu.flush = NULL;
    check_world(w);
    world_free(w);
}

/* The processor uses a page: accessed bit, or a fault where there is none. */
static void use(struct world *w, uint64_t addr)
{
    unsigned level;

    fault(w, 0, addr, EPT_VIOL_READ);
    __atomic_fetch_or(kvm_pte_find_leaf(w->vm, gpa_to_gfn(gpa(addr)), &level), w->vm->mmu.fmt->accessed,
                      __ATOMIC_SEQ_CST);
}

/* The host's own reclaim asks through the notifier: of a file's pages those go that the guest has not used. */
static void reclaim_spares_what_is_used(void **state)
{
    struct world *w = world_new(state, 1, 1);
    int fd = memfd_create("ram", 0);
    struct kvm_userspace_memory_region m = {1, 0, 0, 1 * MB, 0};
    struct host_mm_stats before, after;
    unsigned used;

    assert_int_equal(ftruncate(fd, 1 * MB), 0);
    w->ram = mmap(NULL, 1 * MB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    m.userspace_addr = (uintptr_t)w->ram;
    assert_int_equal(set_slot(w, m), 0);
    for (uint64_t a = 0; a < 1 * MB; a += 4096) {
        fault(w, 0, a, EPT_VIOL_WRITE);
        use(w, a);
    }
    assert_int_equal(atomic_load(&w->vm->mmu.pages[1]), 256);
    host_mm_get_stats(w->s->mm, &before);
    host_mm_reclaim(w->s->mm, 1); /* everything was used a moment ago: forgotten, and hardly anything goes */
    host_mm_get_stats(w->s->mm, &after);
    assert_true(after.reclaim_young - before.reclaim_young >= 256);
    for (uint64_t a = 0; a < 1 * MB; a += 8192) {
        use(w, a);
    }
    host_mm_reclaim(w->s->mm, 64);
    used = 0;
    for (uint64_t a = 0; a < 1 * MB; a += 8192) {
        used += host_mapping_level(w->s->mm, hva((uintptr_t)w->ram + a)) == 1;
    }
    assert_int_equal(used, 128);
    assert_true(atomic_load(&w->vm->mmu.pages[1]) <= 256 - 64);
    verify_slot(w, &m, false);
    close(fd);
    world_free(w);
}

/* ---- MMIO generations ---- */

static void generation_comes_round(void **state)
{
    struct world *w = world_new(state, 1, 2);
    struct kvm_userspace_memory_region m = {1, 0, 0, 2 * MB, (uintptr_t)w->ram};
    uint64_t device = 0xfee00000, gen;

    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(fault(w, 0, device, EPT_VIOL_READ), KVM_FAULT_EMULATE);
    assert_int_equal(fault(w, 0, UINT64_C(0x3fff00000000), EPT_VIOL_READ), KVM_FAULT_EMULATE);
    check_world(w);
    gen = atomic_load(&w->vm->slots.generation);
    /* One round less one change: the entry of now would look fresh after it, so it must be gone. */
    atomic_store(&w->vm->slots.generation, (gen | KVM_MMIO_GEN_MASK) - 1);
    m.flags = KVM_MEM_LOG_DIRTY_PAGES;
    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(atomic_load(&w->vm->mmu.pages[0]), 2);
    assert_false(kvm_mmu_mmio_is_fresh(w->vcpu[0], gpa(device)));
    m.flags = 0;
    assert_int_equal(set_slot(w, m), 0);
    assert_int_equal(atomic_load(&w->vm->slots.generation) & KVM_MMIO_GEN_MASK, 0);
    assert_int_equal(atomic_load(&w->vm->mmu.pages[0]), 0);
    assert_false(define_walk(w, device).mmio);
    assert_int_equal(fault(w, 0, device, EPT_VIOL_READ), KVM_FAULT_EMULATE);
    assert_true(kvm_mmu_mmio_is_fresh(w->vcpu[0], gpa(device)));
    check_world(w);
    world_free(w);
}

/* Every generation and frame can be told back, and no MMIO entry is a page or names low memory. */
static void mmio_entries_are_exact(void **state)
{
    static const struct kvm_pte_format *const formats[] = {&kvm_pte_ept, &kvm_pte_ept_no_ad, &kvm_pte_npt};

    for (unsigned i = 0; i < 3; i++) {
        for (unsigned k = 0; k < 20000; k++) {
            uint64_t g = k * UINT64_C(2654435761) & KVM_MMIO_GEN_MASK;
            uint64_t f = k * UINT64_C(0x9e3779b97f4a7c15) >> (64 - KVM_GUEST_PHYS_BITS + 12);
            uint64_t e = kvm_pte_mmio(formats[i], gfn(f), g);

            assert_true(kvm_pte_is_mmio(formats[i], e));
            assert_false(kvm_pte_in_use(e));
            assert_int_equal(kvm_pte_mmio_generation(e), g);
            assert_int_equal(kvm_pte_mmio_gfn(e).v, f);
            assert_true((e & EPT_ADDR_MASK & ((UINT64_C(1) << KVM_GUEST_PHYS_BITS) - 1)) >= KVM_MMIO_MOVED);
        }
    }
}

/* ---- many at once ---- */

struct racer {
    struct world *w;
    unsigned vcpu;
    uint64_t pages;
};

static void *race(void *opaque)
{
    struct racer *r = opaque;

    for (uint64_t i = 0; i < r->pages; i++) {
        uint64_t page = r->vcpu & 1 ? r->pages - 1 - i : i;

        while (fault(r->w, r->vcpu, page * 4096, EPT_VIOL_WRITE) == KVM_FAULT_RETRY) {
        }
    }
    return NULL;
}

/* Two vCPUs write all pages of a logging slot, meeting in the middle: each page once mapped, all bits set. */
static void faults_in_parallel(void **state)
{
    struct world *w = world_new(state, 2, 1);
    struct kvm_userspace_memory_region m = {1, KVM_MEM_LOG_DIRTY_PAGES, 0, 16 * MB, (uintptr_t)w->ram};
    uint64_t map[64];
    struct kvm_dirty_log log = {.slot = 1, .dirty_bitmap = map};

    assert_int_equal(set_slot(w, m), 0);
    for (unsigned round = 0; round < 6; round++) {
        struct racer r[2] = {{w, 0, 4096}, {w, 1, 4096}};
        pthread_t t[2];

        for (unsigned i = 0; i < 2; i++) {
            assert_int_equal(pthread_create(&t[i], NULL, race, &r[i]), 0);
        }
        for (unsigned i = 0; i < 2; i++) {
            pthread_join(t[i], NULL);
        }
        assert_int_equal(verify_slot(w, &m, true), 4096);
        assert_int_equal(softkvm_ioctl(w->s, w->vm_fd, KVM_GET_DIRTY_LOG, &log), 0);
        assert_int_equal(bits_in(map, 64), 4096);
    }
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_ALL_KINDS(one_gigabyte_leaves),
        ON_ALL_KINDS(reasons_against_huge),
        ON_ALL_KINDS(small_host_pages_stay_small),
        ON_ALL_KINDS(nx_huge_pages),
        ON_ALL_KINDS(nx_worker),
        ON_ALL_KINDS(nx_disabled_for_a_vm),
        ON_ALL_KINDS(eager_and_lazy_split),
        ON_ALL_KINDS(split_on_clear),
        ON_ALL_KINDS(neighbours_are_mapped),
        ON_ALL_KINDS(aging),
        ON_ALL_KINDS(watched_pages_are_flushed),
        ON_ALL_KINDS(reclaim_spares_what_is_used),
        ON_ALL_KINDS(generation_comes_round),
        cmocka_unit_test(mmio_entries_are_exact),
        ON_ALL_KINDS(faults_in_parallel),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
