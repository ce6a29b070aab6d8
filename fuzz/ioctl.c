/*
 * Sequences of ioctls on the soft engine, made from the fuzzer's bytes: any request in any order on
 * any descriptor, with arguments that are plausible, garbage, or bad pointers; slots in and out, guest
 * code of random bytes. Nothing may crash, hang or trip a sanitizer; every slot and table invariant
 * must hold at the end.
 *
 * A slot's userspace_addr is always forced into an arena of ours: to let a guest write over the
 * process is the caller's mistake, not the library's.
 */
#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "softkvm/inspect.h"
#include "softkvm/slots.h"
#include "softkvm/vm_types.h"
#include "softkvm/kvm_abi.h"
#include "softkvm/softkvm.h"

#define ARENA   (UINT64_C(8) << 20)
#define MAX_FDS 24
#define BUFFER  65536 /* more than the longest list that a count in an argument can ask for */

static struct softkvm *engines[3]; /* one for each kind of MMU */
static struct softkvm *engine;     /* the input's */
static char *arena;
static int running = -1;

struct input {
    const uint8_t *data;
    size_t size;
};

static uint64_t take(struct input *in, unsigned bytes)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < bytes && in->size; i++) {
        v |= (uint64_t)*in->data++ << (8 * i);
        in->size--;
    }
    return v;
}

static const unsigned long requests[] = {
    KVM_GET_API_VERSION, KVM_CREATE_VM, KVM_CHECK_EXTENSION, KVM_GET_VCPU_MMAP_SIZE,
    KVM_GET_SUPPORTED_CPUID, KVM_GET_MSR_INDEX_LIST, KVM_GET_MSR_FEATURE_INDEX_LIST, KVM_GET_MSRS,
    KVM_SET_MSRS, KVM_CREATE_VCPU, KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG, KVM_ENABLE_CAP,
    KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR, KVM_SET_NR_MMU_PAGES, KVM_SET_BOOT_CPU_ID,
    KVM_CREATE_IRQCHIP, KVM_IRQ_LINE, KVM_IRQ_LINE_STATUS, KVM_GET_IRQCHIP, KVM_SET_IRQCHIP,
    KVM_CREATE_PIT2, KVM_GET_PIT2, KVM_SET_PIT2, KVM_SET_GSI_ROUTING, KVM_SIGNAL_MSI,
    KVM_REGISTER_COALESCED_MMIO, KVM_UNREGISTER_COALESCED_MMIO, KVM_GET_CLOCK, KVM_SET_CLOCK,
    KVM_GET_REGS, KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS, KVM_GET_SREGS2, KVM_SET_SREGS2,
    KVM_GET_FPU, KVM_SET_FPU, KVM_GET_XSAVE, KVM_SET_XSAVE, KVM_GET_XCRS, KVM_SET_XCRS,
    KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS,
    KVM_GET_MP_STATE, KVM_SET_MP_STATE, KVM_SET_GUEST_DEBUG, KVM_TRANSLATE, KVM_INTERRUPT, KVM_NMI,
    KVM_SET_SIGNAL_MASK, KVM_SET_CPUID2, KVM_GET_CPUID2, KVM_GET_LAPIC, KVM_SET_LAPIC,
    KVM_SET_TSC_KHZ, KVM_GET_TSC_KHZ, KVM_X86_SETUP_MCE, KVM_GET_STATS_FD, KVM_KVMCLOCK_CTRL,
    KVM_RESET_DIRTY_RINGS, KVM_X86_SET_MSR_FILTER, KVM_SET_MEMORY_ATTRIBUTES, KVM_CREATE_GUEST_MEMFD,
    KVM_PRE_FAULT_MEMORY, SOFTKVM_EXPLAIN_GVA, SOFTKVM_EXPLAIN_GPA, SOFTKVM_EXPLAIN_HVA, SOFTKVM_SLOTS, SOFTKVM_EPT,
    SOFTKVM_FRAME, SOFTKVM_COUNTERS, SOFTKVM_CHECK,
};

/* Ends any KVM_RUN that goes on for long. */
static void *ticker(void *opaque)
{
    for (;;) {
        int fd = __atomic_load_n(&running, __ATOMIC_RELAXED);

        usleep(2000);
        if (fd >= 0) {
            softkvm_interrupt(__atomic_load_n(&engine, __ATOMIC_RELAXED), fd);
        }
    }
    return opaque;
}

static void set_up(void)
{
    pthread_t t;

    for (unsigned i = 0; i < 3; i++) {
        struct softkvm_options o = {.size = sizeof(o), .mmu = (enum softkvm_mmu)i};

        engines[i] = softkvm_new(&o, NULL, 0);
        if (!engines[i]) {
            abort();
        }
    }
    arena = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (arena == MAP_FAILED || pthread_create(&t, NULL, ticker, NULL)) {
        abort();
    }
}

static void set_slot(struct input *in, int vm)
{
    struct kvm_userspace_memory_region m = {
        .slot = (uint32_t)take(in, 1) % 8 | (uint32_t)take(in, 1) % 2 << 16,
        .flags = (uint32_t)take(in, 1) % 6,
        .guest_phys_addr = take(in, 2) % 64 << 16,
        .memory_size = take(in, 2) % 64 << 14,
    };

    m.userspace_addr = (uintptr_t)arena + (take(in, 2) * 4096) % (ARENA / 2);
    if (m.memory_size > ARENA / 2) {
        m.memory_size = ARENA / 2;
    }
    softkvm_ioctl(engine, vm, KVM_SET_USER_MEMORY_REGION, &m);
}

/* What a slot may be asked to become, memory in the arena, perhaps with a private half. */
static struct kvm_userspace_memory_region2 any_region(struct input *in, const int *fds, unsigned n)
{
    struct kvm_userspace_memory_region2 m = {
        .slot = (uint32_t)take(in, 1) % 8,
        .flags = (uint32_t)take(in, 1) % 8,
        .guest_phys_addr = take(in, 1) % 64 << 16,
        .memory_size = take(in, 1) % 64 << 14,
        .guest_memfd = (uint32_t)fds[take(in, 1) % n],
        .guest_memfd_offset = take(in, 1) << 12,
    };

    m.userspace_addr = (uintptr_t)arena + (take(in, 2) * 4096) % (ARENA / 2);
    return m;
}

static void set_slots(struct input *in, int vm, const int *fds, unsigned n)
{
    struct kvm_userspace_memory_region2 m[6];
    struct softkvm_slot_transaction t = {.size = sizeof(t), .count = (uint32_t)take(in, 1) % 7};

    for (unsigned i = 0; i < 6 && i < t.count + 1; i++) {
        m[i] = any_region(in, fds, n);
    }
    t.changes = (uintptr_t)m;
    if (t.count) {
        softkvm_ioctl(engine, vm, SOFTKVM_SLOT_TRANSACTION, &t);
    } else {
        softkvm_ioctl(engine, vm, KVM_SET_USER_MEMORY_REGION2, m);
    }
}

/* Private memory of small sizes and places: what random bytes hardly ever hit. */
static int private_memory(struct input *in, int fd)
{
    struct kvm_create_guest_memfd g = {.size = (1 + take(in, 1)) << 12, .flags = take(in, 1) % 4};
    uint64_t first = take(in, 1) << 14, size = take(in, 1) << 12;
    struct kvm_memory_attributes a = {first, size, take(in, 1) & 8, 0};
    struct kvm_pre_fault_memory p = {.gpa = first, .size = size};
    struct softkvm_populate s = {first, size, (uintptr_t)arena, 0};

    switch (take(in, 1) % 5) {
    case 0:
        return softkvm_ioctl(engine, fd, KVM_CREATE_GUEST_MEMFD, &g);
    case 1:
        return softkvm_ioctl(engine, fd, KVM_SET_MEMORY_ATTRIBUTES, &a);
    case 2:
        return softkvm_ioctl(engine, fd, KVM_PRE_FAULT_MEMORY, &p);
    case 3:
        return softkvm_ioctl(engine, fd, SOFTKVM_POPULATE_PRIVATE, &s);
    default:
        return softkvm_fallocate(engine, fd, (int)(take(in, 1) % 4), (int64_t)first, (int64_t)size);
    }
}

/* An ioctl with an argument of one of several kinds. */
static int any_ioctl(struct input *in, int fd, unsigned long request)
{
    static _Alignas(16) uint8_t buffer[BUFFER];
    unsigned kind = (unsigned)take(in, 1) % 8, n = (unsigned)take(in, 1) * 4;

    if (kind == 0) {
        return softkvm_ioctl(engine, fd, request, NULL);
    }
    if (kind == 1) {
        return softkvm_ioctl(engine, fd, request, (void *)(uintptr_t)(take(in, 2)));
    }
    if (kind == 2) {
        return softkvm_ioctl(engine, fd, request, (void *)(uintptr_t)(0xdead0000u + take(in, 2)));
    }
    memset(buffer, 0, sizeof(buffer));
    if (kind < 5) {
        /* Change some of what the matching GET says. */
        softkvm_ioctl(engine, fd, request - 1, buffer);
        for (unsigned i = 0; i < n / 16; i++) {
            buffer[take(in, 2) % 512] = (uint8_t)take(in, 1);
        }
    } else {
        for (unsigned i = 0; i < n; i++) {
            buffer[i] = (uint8_t)take(in, 1);
        }
    }
    return softkvm_ioctl(engine, fd, request, buffer);
}

static void run(struct input *in, int vcpu)
{
    unsigned rounds = 1 + (unsigned)take(in, 1) % 16;

    for (uint64_t i = take(in, 1); i; i--) {
        arena[take(in, 2) % 0x4000] = (char)take(in, 1);
    }
    __atomic_store_n(&running, vcpu, __ATOMIC_RELAXED);
    while (rounds--) {
        if (softkvm_ioctl(engine, vcpu, KVM_RUN, NULL) < 0) {
            break;
        }
    }
    __atomic_store_n(&running, -1, __ATOMIC_RELAXED);
}

static void check_invariants(int vm)
{
    struct softkvm_check c = {.size = sizeof(c)};

    if (softkvm_ioctl(engine, vm, SOFTKVM_CHECK, &c) == -117 /* EUCLEAN */) {
        fprintf(stderr, "invariant: %s\n", c.text);
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    int fds[MAX_FDS], n = 0, vm;
    static const uintptr_t types[] = {0, 0, KVM_X86_SW_PROTECTED_VM, SOFTKVM_X86_CONFIDENTIAL_VM};
    struct kvm_enable_cap ring = {.cap = KVM_CAP_DIRTY_LOG_RING, .args = {4096}};
    unsigned first = (unsigned)take(&in, 1);

    if (!engines[0]) {
        set_up();
    }
    __atomic_store_n(&engine, engines[(first >> 1) % 3], __ATOMIC_RELAXED);
    fds[n++] = softkvm_open_system(engine);
    fds[n++] = vm = softkvm_ioctl(engine, fds[0], KVM_CREATE_VM, (void *)types[(first >> 4) % 4]);
    if (vm < 0) {
        fds[1] = vm = softkvm_ioctl(engine, fds[0], KVM_CREATE_VM, NULL);
    }
    if (first & 0x40) {
        softkvm_ioctl(engine, vm, KVM_ENABLE_CAP, &ring);
    }
    if (first & 1) {
        softkvm_ioctl(engine, vm, KVM_CREATE_IRQCHIP, NULL);
    }
    fds[n++] = softkvm_ioctl(engine, vm, KVM_CREATE_VCPU, NULL);
    for (unsigned steps = 0; in.size && steps < 64; steps++) {
        int fd = fds[take(&in, 1) % (unsigned)n], r = -1;
        unsigned what = (unsigned)take(&in, 1);

        if (what < 48) {
            set_slot(&in, fd);
        } else if (what < 64) {
            run(&in, fd);
        } else if (what < 68) {
            softkvm_memory_discarded(engine, arena + take(&in, 2) % 512 * 4096, take(&in, 1) * 4096);
        } else if (what < 76) {
            set_slots(&in, fd, fds, (unsigned)n);
        } else if (what < 84) {
            r = private_memory(&in, fd);
        } else {
            r = any_ioctl(&in, fd, requests[what % (sizeof(requests) / sizeof(requests[0]))]);
        }
        if (r > 0 && n < MAX_FDS && r < 4096 && what >= 76 && r != fd) {
            unsigned long q = requests[what % (sizeof(requests) / sizeof(requests[0]))];

            if (what < 84 || q == KVM_CREATE_GUEST_MEMFD || q == KVM_CREATE_VM || q == KVM_CREATE_VCPU || q == KVM_GET_STATS_FD) {
                fds[n++] = r;
            }
        }
    }
    check_invariants(vm);
    while (n) {
        softkvm_close(engine, fds[--n]);
    }
    return 0;
}
