/*
 * Interrupts across threads: two vCPUs that wake each other out of HLT by IPIs, while host threads drive
 * lines, send MSIs, tick eventfds, and change routes, eventfds and zones under them. A lost wake-up ends
 * in a time-out; a race is for the thread sanitizer to find. Prints what a round trip costs.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <linux/kvm.h>

#include "base/addr.h"
#include "softkvm/softkvm.h"

#define CODE   0x1000u
#define GDT    0x2000u
#define IDT    0x3000u
#define VARS   0x5000u
#define RAM    0x10000u
#define VAR_GOT     0
#define VAR_ROUNDS  1
#define VAR_DEVICE  2 /* interrupts of devices taken, by vCPU */
#define VAR_WRITES  4

extern const char st_code[], st_main0[], st_main1[], st_isr_ask[], st_isr_answer[], st_isrdev[], st_end[];
__asm__(".pushsection .rodata\n"
        ".code32\n"
        "st_code:\n"
        /* One that asks: an IPI, then HLT until the answer has come. Two writes for host threads to catch. */
        "st_main0: mov $0xfee00000, %ebp; movl $0x1ff, 0xf0(%ebp)\n"
        "ready: pause; cmpl $0, 0x5014; je ready\n"
        "again: movl $0, 0x5000\n"
        "  movl $0x1000000, 0x310(%ebp); movl $0xe0, 0x300(%ebp)\n"
        "  mov 0x5010, %eax; test %eax, %eax; jz wait\n"
        "  mov %eax, 0xe0000000; mov %eax, 0xe0000100\n"
        "wait: cli; cmpl $0, 0x5000; jne ok; sti; hlt; jmp wait\n"
        "ok: sti; decl 0x5004; jnz again\n"
        "stop: out %al, $0xf4; jmp stop\n"
        /* One that answers. */
        "st_main1: mov $0xfee00000, %ebp; movl $0x1ff, 0xf0(%ebp); movl $1, 0x5014\n"
        "idle: sti; hlt; cmpl $0, 0x5004; jne idle; jmp stop\n"
        "st_isr_ask: movl $0, 0xb0(%ebp); movl $0, 0x310(%ebp); movl $0xe1, 0x300(%ebp); iretl\n"
        "st_isr_answer: movl $1, 0x5000; movl $0, 0xb0(%ebp); iretl\n"
        "st_isrdev: push %eax; mov 0x20(%ebp), %eax; shr $24, %eax; lock incl 0x5008(,%eax,4)\n"
        "  movl $0, 0xb0(%ebp); pop %eax; iretl\n"
        "st_end:\n"
        ".code64\n"
        ".popsection\n");

struct vm {
    struct softkvm *s;
    int sys, vm, vcpu[2];
    struct kvm_run *run[2];
    unsigned char *ram;
    _Atomic bool stop;
    _Atomic unsigned mmio_exits;
};

static int ioc(struct vm *m, int fd, unsigned long request, void *arg)
{
    return softkvm_ioctl(m->s, fd, request, arg);
}

static volatile uint32_t *var(struct vm *m, unsigned i)
{
    return (volatile uint32_t *)(m->ram + VARS) + i;
}

static uint32_t get_var(struct vm *m, unsigned i)
{
    return __atomic_load_n(var(m, i), __ATOMIC_RELAXED);
}

static void gate(struct vm *m, unsigned vector, const char *isr)
{
    uint32_t target = CODE + (uint32_t)(isr - st_code);
    uint32_t g[2] = {0x80000u | target, 0x8e00u};

    memcpy(m->ram + IDT + vector * 8, g, 8);
}

static void set_flat(struct kvm_segment *s, unsigned sel, unsigned type)
{
    *s = (struct kvm_segment){.limit = 0xffffffff, .selector = (uint16_t)sel, .type = (uint8_t)type,
                              .present = 1, .db = 1, .s = 1, .g = 1};
}

static void set_registers(struct vm *m, unsigned cpu, const char *entry)
{
    struct kvm_mp_state state = {KVM_MP_STATE_RUNNABLE};
    struct kvm_regs g = {.rip = CODE + (uint64_t)(entry - st_code), .rsp = 0x7000 + cpu * 0x1000, .rflags = 2};
    struct kvm_sregs s;

    assert_int_equal(ioc(m, m->vcpu[cpu], KVM_GET_SREGS, &s), 0);
    set_flat(&s.cs, 8, 11);
    set_flat(&s.ds, 16, 3);
    s.es = s.ss = s.fs = s.gs = s.ds;
    s.gdt.base = GDT;
    s.gdt.limit = 23;
    s.idt.base = IDT;
    s.idt.limit = 2047;
    s.cr0 = 0x11;
    assert_int_equal(ioc(m, m->vcpu[cpu], KVM_SET_SREGS, &s), 0);
    assert_int_equal(ioc(m, m->vcpu[cpu], KVM_SET_REGS, &g), 0);
    assert_int_equal(ioc(m, m->vcpu[cpu], KVM_SET_MP_STATE, &state), 0);
}

static void fill_ram(struct vm *m)
{
    const uint64_t gdt[] = {0, 0x00cf9a000000ffffull, 0x00cf92000000ffffull};

    memcpy(m->ram + CODE, st_code, (size_t)(st_end - st_code));
    memcpy(m->ram + GDT, gdt, sizeof(gdt));
    for (unsigned v = 0x20; v < 256; v++) {
        gate(m, v, st_isrdev);
    }
    gate(m, 0xe0, st_isr_ask);
    gate(m, 0xe1, st_isr_answer);
}

static void open_vm(struct vm *m)
{
    struct kvm_userspace_memory_region slot = {.memory_size = RAM};
    struct kvm_pit_config pit = {.flags = 0};
    int e;

    memset(m, 0, sizeof(*m));
    m->s = softkvm_new(NULL, NULL, 0);
    assert_non_null(m->s);
    m->sys = softkvm_open_system(m->s);
    m->vm = ioc(m, m->sys, KVM_CREATE_VM, NULL);
    assert_int_equal(ioc(m, m->vm, KVM_CREATE_IRQCHIP, NULL), 0);
    assert_int_equal(ioc(m, m->vm, KVM_CREATE_PIT2, &pit), 0);
    for (unsigned i = 0; i < 2; i++) {
        struct kvm_irqchip c = {.chip_id = i};

        c.chip.pic.imr = 0xff; /* all goes through the IOAPIC */
        assert_int_equal(ioc(m, m->vm, KVM_SET_IRQCHIP, &c), 0);
    }
    m->ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    slot.userspace_addr = (uintptr_t)m->ram;
    assert_int_equal(ioc(m, m->vm, KVM_SET_USER_MEMORY_REGION, &slot), 0);
    fill_ram(m);
    for (unsigned i = 0; i < 2; i++) {
        m->vcpu[i] = ioc(m, m->vm, KVM_CREATE_VCPU, (void *)(uintptr_t)i);
        assert_true(m->vcpu[i] >= 0);
        m->run[i] = softkvm_mmap(m->s, m->vcpu[i], 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 0, &e);
        assert_non_null(m->run[i]);
        set_registers(m, i, i ? st_main1 : st_main0);
    }
}

static void close_vm(struct vm *m)
{
    for (unsigned i = 0; i < 2; i++) {
        softkvm_munmap(m->s, m->run[i], 3 * 4096);
        softkvm_close(m->s, m->vcpu[i]);
    }
    softkvm_close(m->s, m->vm);
    softkvm_close(m->s, m->sys);
    softkvm_free(m->s);
    munmap(m->ram, RAM);
}

struct vcpu_thread {
    struct vm *m;
    unsigned index;
};

static void *run_vcpu(void *opaque)
{
    struct vcpu_thread *t = opaque;
    struct vm *m = t->m;
    struct kvm_run *run = m->run[t->index];

    while (!atomic_load(&m->stop)) {
        int ret = ioc(m, m->vcpu[t->index], KVM_RUN, NULL);

        if (ret == -EINTR) {
            continue;
        }
        if (ret != 0 || (run->exit_reason != KVM_EXIT_MMIO && run->exit_reason != KVM_EXIT_IO)) {
            fprintf(stderr, "vcpu %u: ret %d exit %u\n", t->index, ret, run->exit_reason);
            break;
        }
        if (run->exit_reason == KVM_EXIT_IO && run->io.port == 0xf4) {
            break;
        }
        atomic_fetch_add(&m->mmio_exits, 1);
    }
    return NULL;
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Wait for the asking vCPU. False: no round trip has ended for 30 s. After 10 s it is asked to finish: a
 * busy machine or a sanitizer makes rounds slow, not wrong. */
static bool wait_rounds(struct vm *m, pthread_t id)
{
    uint32_t last = get_var(m, VAR_ROUNDS), left;

    for (unsigned seconds = 0, same = 0; same < 30; seconds++) {
        struct timespec limit;

        clock_gettime(CLOCK_REALTIME, &limit);
        limit.tv_sec++;
        if (pthread_timedjoin_np(id, NULL, &limit) == 0) {
            return true;
        }
        left = get_var(m, VAR_ROUNDS);
        same = left == last ? same + 1 : 0;
        last = left;
        if (seconds == 10) {
            __atomic_store_n(var(m, VAR_ROUNDS), 2, __ATOMIC_RELAXED);
        }
    }
    return false;
}

static void kick(struct vm *m, unsigned cpu)
{
    __atomic_store_n(&m->run[cpu]->immediate_exit, 1, __ATOMIC_RELAXED);
    softkvm_kick(m->s, m->vcpu[cpu]);
}

/* Run both vCPUs for `rounds` round trips; false when they do not come to an end. */
static bool ping_pong(struct vm *m, uint32_t rounds, uint64_t *ns)
{
    struct vcpu_thread t[2] = {{m, 0}, {m, 1}};
    pthread_t id[2];
    uint64_t start = now_ns();
    bool ok;

    *var(m, VAR_ROUNDS) = rounds;
    pthread_create(&id[1], NULL, run_vcpu, &t[1]);
    pthread_create(&id[0], NULL, run_vcpu, &t[0]);
    ok = wait_rounds(m, id[0]);
    *ns = now_ns() - start;
    atomic_store(&m->stop, true);
    if (!ok) {
        kick(m, 0);
        pthread_join(id[0], NULL);
    }
    kick(m, 1);
    pthread_join(id[1], NULL);
    return ok;
}

static void test_ipi(void **state)
{
    struct vm m;
    uint64_t ns;
    uint32_t rounds = 5000;

    (void)state;
    open_vm(&m);
    if (!ping_pong(&m, rounds, &ns)) {
        fail_msg("stuck with %u rounds to go", get_var(&m, VAR_ROUNDS));
    }
    print_message("# IPI to a halted vCPU and back: %llu ns\n", (unsigned long long)(ns / rounds));
    close_vm(&m);
}

/* ---- host threads ---- */

/* Give the guest time to take what was sent: a slow one (sanitizers) would do nothing but that. */
static void let_it_breathe(struct vm *m, unsigned *seen)
{
    for (unsigned i = 0; i < 20 && *seen == get_var(m, VAR_DEVICE) + get_var(m, VAR_DEVICE + 1); i++) {
        usleep(100);
    }
    usleep(*seen % 256);
    *seen = get_var(m, VAR_DEVICE) + get_var(m, VAR_DEVICE + 1);
}

static void *drive_lines(void *opaque)
{
    struct vm *m = opaque;
    struct kvm_irqchip c = {.chip_id = KVM_IRQCHIP_IOAPIC};
    unsigned seen = 0;

    ioc(m, m->vm, KVM_GET_IRQCHIP, &c);
    for (unsigned pin = 5; pin < 12; pin++) {
        c.chip.ioapic.redirtbl[pin].bits = (0x60 + pin) | (uint64_t)(pin & 1) << 56;
    }
    ioc(m, m->vm, KVM_SET_IRQCHIP, &c);
    for (unsigned i = 0; !atomic_load(&m->stop); i++) {
        struct kvm_irq_level l = {.irq = 5 + i / 2 % 7, .level = !(i & 1)};
        struct kvm_msi msi = {.address_lo = 0xfee00000 | (i & 1) << 12, .data = 0x70 + i % 8};

        ioc(m, m->vm, KVM_IRQ_LINE, &l);
        if (i % 16 == 0) {
            ioc(m, m->vm, KVM_SIGNAL_MSI, &msi);
            let_it_breathe(m, &seen);
        }
    }
    return NULL;
}

static void *change_routes(void *opaque)
{
    struct vm *m = opaque;
    struct {
        struct kvm_irq_routing head;
        struct kvm_irq_routing_entry entry[24];
    } t = {.head.nr = 24};

    for (unsigned i = 0; !atomic_load(&m->stop); i++) {
        for (unsigned gsi = 0; gsi < 24; gsi++) {
            t.entry[gsi].gsi = gsi;
            t.entry[gsi].type = KVM_IRQ_ROUTING_IRQCHIP;
            t.entry[gsi].u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
            t.entry[gsi].u.irqchip.pin = i & 1 ? gsi : 23 - gsi;
        }
        assert_int_equal(ioc(m, m->vm, KVM_SET_GSI_ROUTING, &t), 0);
        usleep(200);
    }
    return NULL;
}

static void *change_buses(void *opaque)
{
    struct vm *m = opaque;
    int fd = eventfd(0, EFD_NONBLOCK);

    while (!atomic_load(&m->stop)) {
        struct kvm_ioeventfd e = {.addr = 0xe0000000, .len = 4, .fd = fd};
        struct kvm_coalesced_mmio_zone z = {.addr = 0xe0000100, .size = 4};

        assert_int_equal(ioc(m, m->vm, KVM_IOEVENTFD, &e), 0);
        assert_int_equal(ioc(m, m->vm, KVM_REGISTER_COALESCED_MMIO, &z), 0);
        usleep(100);
        e.flags = KVM_IOEVENTFD_FLAG_DEASSIGN;
        assert_int_equal(ioc(m, m->vm, KVM_IOEVENTFD, &e), 0);
        assert_int_equal(ioc(m, m->vm, KVM_UNREGISTER_COALESCED_MMIO, &z), 0);
        usleep(100);
    }
    close(fd);
    return NULL;
}

static void *tick_irqfds(void *opaque)
{
    struct vm *m = opaque;
    int edge = eventfd(0, 0), level = eventfd(0, 0), resample = eventfd(0, EFD_NONBLOCK);
    struct kvm_irqfd a = {.fd = (uint32_t)edge, .gsi = 8};
    struct kvm_irqfd b = {.fd = (uint32_t)level, .gsi = 20, .flags = KVM_IRQFD_FLAG_RESAMPLE,
                          .resamplefd = (uint32_t)resample};
    uint64_t one = 1, ticks;
    unsigned seen = 0;

    while (!atomic_load(&m->stop)) {
        a.flags = 0;
        b.flags = KVM_IRQFD_FLAG_RESAMPLE;
        assert_int_equal(ioc(m, m->vm, KVM_IRQFD, &a), 0);
        assert_int_equal(ioc(m, m->vm, KVM_IRQFD, &b), 0);
        for (unsigned i = 0; i < 20; i++) {
            (void)!write(edge, &one, 8);
            (void)!write(level, &one, 8);
            (void)!read(resample, &ticks, 8);
            let_it_breathe(m, &seen);
        }
        a.flags = b.flags = KVM_IRQFD_FLAG_DEASSIGN;
        assert_int_equal(ioc(m, m->vm, KVM_IRQFD, &a), 0);
        assert_int_equal(ioc(m, m->vm, KVM_IRQFD, &b), 0);
    }
    close(edge);
    close(level);
    close(resample);
    return NULL;
}

/* User space's side of the ring: empty it. */
static void *drain_ring(void *opaque)
{
    struct vm *m = opaque;
    struct kvm_coalesced_mmio_ring *ring = (void *)((char *)m->run[1] + 2 * 4096);

    while (!atomic_load(&m->stop)) {
        uint32_t last = __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE);

        assert_true(last < KVM_COALESCED_MMIO_MAX);
        __atomic_store_n(&ring->first, last, __ATOMIC_RELEASE);
        usleep(300);
    }
    return NULL;
}

static void test_storm(void **state)
{
    static void *(*const work[])(void *) = {drive_lines, change_routes, change_buses, tick_irqfds, drain_ring};
    enum { WORKERS = sizeof(work) / sizeof(work[0]) };
    pthread_t id[WORKERS];
    struct vm m;
    uint64_t ns;
    bool ok;

    (void)state;
    open_vm(&m);
    *var(&m, VAR_WRITES) = 1;
    for (unsigned i = 0; i < WORKERS; i++) {
        pthread_create(&id[i], NULL, work[i], &m);
    }
    ok = ping_pong(&m, 3000, &ns);
    for (unsigned i = 0; i < WORKERS; i++) {
        pthread_join(id[i], NULL);
    }
    if (!ok) {
        fail_msg("stuck with %u rounds to go", get_var(&m, VAR_ROUNDS));
    }
    print_message("# device interrupts taken: %u and %u; writes that left: %u\n", get_var(&m, VAR_DEVICE),
                  get_var(&m, VAR_DEVICE + 1), atomic_load(&m.mmio_exits));
    assert_true(get_var(&m, VAR_DEVICE) > 0 && get_var(&m, VAR_DEVICE + 1) > 0);
    close_vm(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ipi),
        cmocka_unit_test(test_storm),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
