/*
 * Chips as a guest sees them: a small guest plays a script of port, MMIO and MSR accesses, takes the
 * interrupts that come, and logs what it read and which vectors it was given. The same scripts run on the
 * software engine and, where there is one, on /dev/kvm; the logs must be the same.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>
#include <linux/kvm.h>

#include "accel/endpoint.h"

/* Guest-physical layout. */
#define CODE   0x1000u
#define GDT    0x2000u
#define IDT    0x3000u
#define STUBS  0x4000u
#define SCRIPT 0x8000u
#define LOG    0xc000u
#define STACK  0x7ff0u
#define RAM    0x10000u

enum { END, OUT, IN, WRITE, READ, WRMSR, RDMSR, WINDOW, HALT, HOST, KICK_HALT, SPIN };

struct step {
    uint32_t op, addr, value, result;
};

/*
 * The guest, 32-bit and flat. ESI walks the script, EDI the log. An interrupt's stub pushes its vector;
 * #GP (of an MSR access) is logged and its two-byte instruction skipped. They return without IRET, which
 * a KVM that interprets its guests does not have in protected mode, and with IF clear: so a window takes one
 * interrupt.
 */
extern const char guest_code[], guest_irq[], guest_gp[], guest_end[];
__asm__(".pushsection .rodata\n"
        ".code32\n"
        "guest_code:\n"
        "next: mov (%esi), %eax\n"
        "  mov 4(%esi), %edx\n"
        "  mov 8(%esi), %ebx\n"
        "  cmp $0, %eax; je op_end\n"
        "  cmp $1, %eax; je op_out\n"
        "  cmp $2, %eax; je op_in\n"
        "  cmp $3, %eax; je op_write\n"
        "  cmp $4, %eax; je op_read\n"
        "  cmp $5, %eax; je op_wrmsr\n"
        "  cmp $6, %eax; je op_rdmsr\n"
        "  cmp $7, %eax; je op_window\n"
        "  cmp $8, %eax; je op_halt\n"
        "  cmp $9, %eax; je op_host\n"
        "  cmp $10, %eax; je op_kick\n"
        "  mov %ebx, %ecx\n"
        "1: dec %ecx; jnz 1b\n"
        "done: add $16, %esi; jmp next\n"
        "op_end: mov $0, %al; out %al, $0xf4; jmp op_end\n"
        "op_out: mov %ebx, %eax; out %al, %dx; jmp done\n"
        "op_in: xor %eax, %eax; in %dx, %al; mov %eax, 12(%esi); jmp done\n"
        "op_write: mov %ebx, (%edx); jmp done\n"
        "op_read: mov (%edx), %eax; mov %eax, 12(%esi); jmp done\n"
        "op_wrmsr: mov %edx, %ecx; mov 12(%esi), %edx; mov %ebx, %eax; wrmsr; jmp done\n"
        "op_rdmsr: mov %edx, %ecx; xor %eax, %eax; rdmsr; mov %eax, 12(%esi); jmp done\n"
        "op_window: mov $2000, %ecx; sti\n"
        "2: nop; dec %ecx; jnz 2b; cli; jmp done\n"
        "op_halt: sti; hlt; cli; jmp done\n"
        /* KVM_HC_KICK_CPU of itself, then a halt that nothing else could end. */
        "op_kick: mov $5, %eax; xor %ebx, %ebx; xor %ecx, %ecx; vmcall; mov %eax, 12(%esi); cli; hlt; jmp done\n"
        "op_host: mov %ebx, %eax; out %al, $0xf5; jmp done\n"
        "guest_irq: push %eax; mov 4(%esp), %eax; mov %esi, (%edi); mov %eax, 4(%edi)\n"
        "  add $8, %edi; pop %eax; add $4, %esp; jmp back\n"
        "guest_gp: addl $2, 4(%esp); mov %esi, (%edi); movl $13, 4(%edi)\n"
        "  add $8, %edi; add $4, %esp\n"
        "back: pushl 8(%esp); andl $~0x200, (%esp); popf; ret $8\n"
        "guest_end:\n"
        ".code64\n"
        ".popsection\n");

struct run {
    struct accel_endpoint *ep;
    int sys, vm, vcpu;
    struct kvm_run *run;
    size_t run_size;
    unsigned char *ram;
    char text[32768];
    size_t len;
};

static void put(struct run *r, uint32_t at, const void *data, size_t len)
{
    memcpy(r->ram + at, data, len);
}

static void build_tables(struct run *r)
{
    const uint64_t gdt[] = {0, 0x00cf9a000000ffffull, 0x00cf92000000ffffull};
    uint32_t irq = CODE + (uint32_t)(guest_irq - guest_code), gp = CODE + (uint32_t)(guest_gp - guest_code);

    put(r, CODE, guest_code, (size_t)(guest_end - guest_code));
    put(r, GDT, gdt, sizeof(gdt));
    for (uint32_t v = 0; v < 256; v++) {
        uint32_t stub = STUBS + v * 16, target = v == 13 ? gp : stub;
        uint32_t gate[2] = {0x80000u | (target & 0xffff), (target & 0xffff0000u) | 0x8e00u};
        uint8_t code[10] = {0x68, (uint8_t)v, 0, 0, 0, 0xe9};
        uint32_t rel = irq - (stub + 10);

        memcpy(code + 6, &rel, 4);
        put(r, stub, code, sizeof(code));
        put(r, IDT + v * 8, gate, sizeof(gate));
    }
}

static void set_flat(struct kvm_segment *s, unsigned sel, unsigned type)
{
    *s = (struct kvm_segment){.limit = 0xffffffff, .selector = (uint16_t)sel, .type = (uint8_t)type,
                              .present = 1, .db = 1, .s = 1, .g = 1};
}

static void set_registers(struct run *r)
{
    struct kvm_sregs s;
    struct kvm_regs g = {.rip = CODE, .rsp = STACK, .rsi = SCRIPT, .rdi = LOG, .rflags = 2};

    assert_int_equal(accel_ioctl_ptr(r->ep, r->vcpu, KVM_GET_SREGS, &s), 0);
    set_flat(&s.cs, 8, 11);
    set_flat(&s.ds, 16, 3);
    s.es = s.ss = s.fs = s.gs = s.ds;
    s.gdt.base = GDT;
    s.gdt.limit = 23;
    s.idt.base = IDT;
    s.idt.limit = 2047;
    s.cr0 = 0x11;
    assert_int_equal(accel_ioctl_ptr(r->ep, r->vcpu, KVM_SET_SREGS, &s), 0);
    assert_int_equal(accel_ioctl_ptr(r->ep, r->vcpu, KVM_SET_REGS, &g), 0);
}

static void set_cpuid(struct run *r)
{
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entry[3];
    } c = {.head.nent = 3};

    c.entry[0] = (struct kvm_cpuid_entry2){.function = 0, .eax = 1};
    c.entry[1] = (struct kvm_cpuid_entry2){.function = 1, .ecx = 1u << 21 | 1u << 24, .edx = 1u << 9 | 1u << 5};
    c.entry[2] = (struct kvm_cpuid_entry2){.function = 0x80000008, .eax = 0x3028};
    assert_int_equal(accel_ioctl_ptr(r->ep, r->vcpu, KVM_SET_CPUID2, &c), 0);
}

static void make_vm(struct run *r)
{
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    struct kvm_userspace_memory_region slot = {.memory_size = RAM};
    int err;

    r->vm = accel_ioctl(r->ep, r->sys, KVM_CREATE_VM, 0);
    assert_true(r->vm >= 0);
    accel_ioctl(r->ep, r->vm, KVM_SET_TSS_ADDR, 0xfffbd000);
    assert_int_equal(accel_ioctl(r->ep, r->vm, KVM_CREATE_IRQCHIP, 0), 0);
    assert_int_equal(accel_ioctl_ptr(r->ep, r->vm, KVM_CREATE_PIT2, &pit), 0);
    r->ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(r->ram != MAP_FAILED);
    slot.userspace_addr = (uintptr_t)r->ram;
    assert_int_equal(accel_ioctl_ptr(r->ep, r->vm, KVM_SET_USER_MEMORY_REGION, &slot), 0);
    r->vcpu = accel_ioctl(r->ep, r->vm, KVM_CREATE_VCPU, 0);
    assert_true(r->vcpu >= 0);
    r->run_size = (size_t)accel_ioctl(r->ep, r->sys, KVM_GET_VCPU_MMAP_SIZE, 0);
    r->run = r->ep->ops->mmap(r->ep, r->vcpu, r->run_size, 0, &err);
    assert_non_null(r->run);
    set_cpuid(r);
}

/* Values 0 to 31 raise that GSI, 32 to 63 lower it, 64 up send that vector as an MSI. */
static void host_action(struct run *r, uint8_t what)
{
    struct kvm_irq_level l = {.irq = what & 31, .level = what < 32};
    struct kvm_msi m = {.address_lo = 0xfee00000, .data = what};

    if (what < 64) {
        accel_ioctl_ptr(r->ep, r->vm, KVM_IRQ_LINE, &l);
    } else {
        accel_ioctl_ptr(r->ep, r->vm, KVM_SIGNAL_MSI, &m);
    }
}

static void run_guest(struct run *r)
{
    for (;;) {
        int ret = accel_ioctl(r->ep, r->vcpu, KVM_RUN, 0);
        uint8_t value;

        if (ret != 0) {
            fail_msg("%s: KVM_RUN %d", r->ep->ops->name, ret);
        }
        if (r->run->exit_reason != KVM_EXIT_IO) {
            fail_msg("%s: exit %u suberror %u data %llx %llx", r->ep->ops->name, r->run->exit_reason, r->run->internal.suberror, (unsigned long long)r->run->internal.data[0], (unsigned long long)r->run->internal.data[1]);
        }
        value = *((uint8_t *)r->run + r->run->io.data_offset);
        if (r->run->io.port == 0xf4) {
            return;
        }
        assert_int_equal(r->run->io.port, 0xf5);
        host_action(r, value);
    }
}

static void write_log(struct run *r, size_t n)
{
    const struct step *s = (const struct step *)(r->ram + SCRIPT);
    const uint32_t *log = (const uint32_t *)(r->ram + LOG);

    for (size_t i = 0; i < n; i++) {
        if (s[i].op == IN || s[i].op == READ || s[i].op == RDMSR) {
            r->len += (size_t)snprintf(r->text + r->len, sizeof(r->text) - r->len, "step %zu: %x = %x\n", i,
                                       s[i].addr, s[i].result);
        }
    }
    for (; log[1] != 0; log += 2) {
        r->len += (size_t)snprintf(r->text + r->len, sizeof(r->text) - r->len, "vector %02x at step %u\n",
                                   log[1], (log[0] - SCRIPT) / 16);
    }
}

static bool play(struct run *r, struct accel_endpoint *ep, const struct step *script, size_t n)
{
    memset(r, 0, sizeof(*r));
    r->ep = ep;
    r->sys = ep->ops->open_system(ep);
    if (r->sys < 0) {
        return false;
    }
    make_vm(r);
    build_tables(r);
    put(r, SCRIPT, script, n * sizeof(*script));
    set_registers(r);
    run_guest(r);
    write_log(r, n);
    ep->ops->munmap(ep, r->run, r->run_size);
    ep->ops->close(ep, r->vcpu);
    ep->ops->close(ep, r->vm);
    ep->ops->close(ep, r->sys);
    munmap(r->ram, RAM);
    return true;
}

static struct run soft, kernel;

/* Print the lines that differ. */
static void differ(const char *a, const char *b)
{
    while (*a || *b) {
        size_t la = strcspn(a, "\n"), lb = strcspn(b, "\n");

        if (la != lb || memcmp(a, b, la) != 0) {
            print_error("kernel: %.*s\nsoft:   %.*s\n", (int)la, a, (int)lb, b);
        }
        a += la + (a[la] != 0);
        b += lb + (b[lb] != 0);
    }
}

#define APIC(off) (0xfee00000u + (off))

/*
 * A KVM that interprets its guests has been seen to forget what is in service in the LAPIC; what depends
 * on that is compared only with one that does not.
 */
static bool keeps_service(struct accel_endpoint *k)
{
    static const struct step probe[] = {
        {WRITE, APIC(0xf0), 0x1ff, 0}, {HOST, 0, 0x41, 0}, {WINDOW, 0, 0, 0}, {READ, APIC(0x120), 0, 0}, {END, 0, 0, 0},
    };

    return play(&kernel, k, probe, sizeof(probe) / sizeof(probe[0])) &&
           strstr(kernel.text, "step 3: fee00120 = 2\n") != NULL;
}

static void both(const struct step *script, size_t n, bool in_service)
{
    struct accel_endpoint *s = accel_endpoint_soft_new(NULL, NULL), *k = accel_endpoint_kernel_new();

    assert_non_null(s);
    assert_true(play(&soft, s, script, n));
    s->ops->free(s);
    if (k && (!in_service || keeps_service(k)) && play(&kernel, k, script, n) && strcmp(kernel.text, soft.text) != 0) {
        differ(kernel.text, soft.text);
        fail_msg("the engine differs from /dev/kvm");
    }
    if (k) {
        k->ops->free(k);
    }
}

#define PLAY(script)            both(script, sizeof(script) / sizeof(script[0]), false)
#define PLAY_IN_SERVICE(script) both(script, sizeof(script) / sizeof(script[0]), true)

/* In the soft engine's log, in this order. */
static void expect(const char *const *lines, size_t n)
{
    const char *at = soft.text;

    for (size_t i = 0; i < n; i++) {
        const char *found = strstr(at, lines[i]);

        if (!found) {
            fail_msg("no \"%s\" in\n%s", lines[i], at);
        }
        at = found + strlen(lines[i]);
    }
}

#define EXPECT(...)                                                                                \
    do {                                                                                           \
        static const char *const lines_[] = {__VA_ARGS__};                                         \
        expect(lines_, sizeof(lines_) / sizeof(lines_[0]));                                        \
    } while (0)
#define RAISE(gsi)   {HOST, 0, gsi, 0}
#define LOWER(gsi)   {HOST, 0, 32 + (gsi), 0}
#define PULSE(gsi)   RAISE(gsi), LOWER(gsi)
#define PIC_SETUP                                                                                  \
    {OUT, 0x20, 0x11, 0}, {OUT, 0x21, 0x20, 0}, {OUT, 0x21, 4, 0}, {OUT, 0x21, 1, 0},              \
        {OUT, 0xa0, 0x11, 0}, {OUT, 0xa1, 0x28, 0}, {OUT, 0xa1, 2, 0}, {OUT, 0xa1, 1, 0}
#define PIC_LOOK {OUT, 0x20, 0x0a, 0}, {IN, 0x20, 0, 0}, {OUT, 0x20, 0x0b, 0}, {IN, 0x20, 0, 0}, \
        {IN, 0x21, 0, 0}, {OUT, 0xa0, 0x0a, 0}, {IN, 0xa0, 0, 0}, {OUT, 0xa0, 0x0b, 0}, {IN, 0xa0, 0, 0}
#define EOI {WRITE, APIC(0xb0), 0, 0}

static void test_pic(void **state)
{
    static const struct step script[] = {
        PIC_SETUP, PIC_LOOK, PULSE(1), PULSE(4), PULSE(9), PULSE(14), PIC_LOOK, {WINDOW, 0, 0, 0}, PIC_LOOK,
        {WINDOW, 0, 0, 0}, {OUT, 0x20, 0x20, 0}, {WINDOW, 0, 0, 0}, PIC_LOOK, {OUT, 0xa0, 0x20, 0},
        {OUT, 0x20, 0x20, 0}, {WINDOW, 0, 0, 0}, {OUT, 0xa0, 0x20, 0}, {OUT, 0x20, 0x62, 0},
        {WINDOW, 0, 0, 0}, {OUT, 0x20, 0x20, 0}, PIC_LOOK,
        /* masks and level */
        {OUT, 0x21, 0x10, 0}, PULSE(4), {WINDOW, 0, 0, 0}, {OUT, 0x21, 0, 0}, {WINDOW, 0, 0, 0},
        {OUT, 0x20, 0x64, 0}, {OUT, 0x4d0, 0xff, 0}, {IN, 0x4d0, 0, 0}, {OUT, 0x4d1, 0xff, 0},
        {IN, 0x4d1, 0, 0}, RAISE(5), {WINDOW, 0, 0, 0}, {OUT, 0x20, 0x65, 0}, {WINDOW, 0, 0, 0},
        LOWER(5), {OUT, 0x20, 0x65, 0}, {WINDOW, 0, 0, 0}, PIC_LOOK,
        /* rotation, poll, automatic end */
        {OUT, 0x20, 0xc4, 0}, RAISE(7), RAISE(3), {WINDOW, 0, 0, 0}, LOWER(7), {OUT, 0x20, 0xa0, 0}, {WINDOW, 0, 0, 0},
        LOWER(3), {OUT, 0x20, 0x20, 0}, PIC_LOOK, {OUT, 0x20, 0x0c, 0}, {IN, 0x20, 0, 0}, PULSE(1),
        {OUT, 0x20, 0x0c, 0}, {IN, 0x20, 0, 0}, PIC_LOOK, {OUT, 0x4d0, 0, 0}, {OUT, 0x20, 0x11, 0},
        {OUT, 0x21, 0x20, 0}, {OUT, 0x21, 4, 0}, {OUT, 0x21, 3, 0}, PULSE(3), PULSE(4), {WINDOW, 0, 0, 0},
        {WINDOW, 0, 0, 0}, PIC_LOOK, {END, 0, 0, 0},
    };

    (void)state;
    PLAY(script);
    assert_non_null(strstr(soft.text, "vector 21 at step"));
    assert_non_null(strstr(soft.text, "vector 29 at step"));
}

static void test_service(void **state)
{
    static const struct step script[] = {
        {WRITE, APIC(0xf0), 0x1ff, 0}, {HOST, 0, 0x41, 0}, {HOST, 0, 0x51, 0}, {HOST, 0, 0x52, 0}, {READ, APIC(0x220), 0, 0},
        {WINDOW, 0, 0, 0}, {READ, APIC(0x120), 0, 0}, {READ, APIC(0xa0), 0, 0}, {READ, APIC(0x220), 0, 0},
        {HOST, 0, 0x61, 0}, {WINDOW, 0, 0, 0}, {READ, APIC(0xa0), 0, 0}, EOI, {READ, APIC(0xa0), 0, 0}, {WINDOW, 0, 0, 0}, EOI,
        {WINDOW, 0, 0, 0}, EOI, {WINDOW, 0, 0, 0}, EOI, {READ, APIC(0xa0), 0, 0}, EOI,
        /* self, all, others; destination; NMI is not maskable */
        {WRITE, APIC(0x300), 0x40045, 0}, {WRITE, APIC(0x300), 0x80046, 0}, {WRITE, APIC(0x300), 0xc0047, 0},
        {WRITE, APIC(0x300), 0x48, 0}, {WRITE, APIC(0x310), 0x1000000, 0}, {WRITE, APIC(0x300), 0x49, 0}, {WRITE, APIC(0x310), 0, 0},
        {WRITE, APIC(0x300), 0x400, 0}, {SPIN, 0, 10, 0}, {WINDOW, 0, 0, 0}, EOI, {WINDOW, 0, 0, 0}, EOI, {WINDOW, 0, 0, 0}, EOI,
        {WINDOW, 0, 0, 0}, EOI, {READ, APIC(0x220), 0, 0}, {END, 0, 0, 0},
    };

    (void)state;
    PLAY_IN_SERVICE(script);
    EXPECT("step 4: fee00220 = 60002\n", "step 6: fee00120 = 40000\n", "step 7: fee000a0 = 50\n",
           "step 8: fee00220 = 20002\n", "step 11: fee000a0 = 60\n", "step 13: fee000a0 = 50\n",
           "step 20: fee000a0 = 0\n", "step 39: fee00220 = 0\n", "vector 52 at step 5\nvector 61 at step 10\n"
           "vector 51 at step 16\nvector 41 at step 18\nvector 02 at step 29\n"
           "vector 48 at step 31\nvector 46 at step 33\nvector 45 at step 35\n");
}

static void test_lapic(void **state)
{
    static const struct step script[] = {
        {READ, APIC(0x20), 0, 0}, {READ, APIC(0x30), 0, 0}, {READ, APIC(0xf0), 0, 0}, {READ, APIC(0x350), 0, 0},
        {WRITE, APIC(0x320), 0x40, 0}, {READ, APIC(0x320), 0, 0}, {WRITE, APIC(0xf0), 0x1ff, 0},
        {READ, APIC(0xf0), 0, 0}, {HOST, 0, 0x41, 0}, {HOST, 0, 0x51, 0}, {HOST, 0, 0x52, 0}, {READ, APIC(0x220), 0, 0},
        {WINDOW, 0, 0, 0}, EOI, {WINDOW, 0, 0, 0}, EOI, {WINDOW, 0, 0, 0}, EOI,
        /* TPR */
        {WRITE, APIC(0x80), 0x60, 0}, {HOST, 0, 0x6f, 0}, {WINDOW, 0, 0, 0}, {READ, APIC(0xa0), 0, 0},
        {WRITE, APIC(0x80), 0x5f, 0}, {WINDOW, 0, 0, 0}, EOI, {WRITE, APIC(0x80), 0, 0},
        /* self, all, others; destination */
        {WRITE, APIC(0x300), 0x40045, 0}, {WRITE, APIC(0x300), 0x80046, 0}, {WRITE, APIC(0x300), 0xc0047, 0},
        {WRITE, APIC(0x310), 0, 0}, {WRITE, APIC(0x300), 0x48, 0}, {WRITE, APIC(0x310), 0x1000000, 0},
        {WRITE, APIC(0x300), 0x49, 0}, {READ, APIC(0x310), 0, 0}, {READ, APIC(0x300), 0, 0}, {READ, APIC(0x220), 0, 0},
        {WINDOW, 0, 0, 0}, EOI, {WINDOW, 0, 0, 0}, EOI, {WINDOW, 0, 0, 0}, EOI, {READ, APIC(0x220), 0, 0},
        /* logical destinations */
        {WRITE, APIC(0xd0), 0xff123456, 0}, {READ, APIC(0xd0), 0, 0}, {WRITE, APIC(0xe0), 0x0, 0}, {READ, APIC(0xe0), 0, 0},
        {WRITE, APIC(0xe0), 0xffffffff, 0}, {WRITE, APIC(0x310), 0x2000000, 0}, {WRITE, APIC(0x300), 0x84a, 0},
        {WRITE, APIC(0x300), 0x94b, 0}, {WRITE, APIC(0xd0), 0x1000000, 0}, {WRITE, APIC(0x300), 0x84c, 0},
        {READ, APIC(0x220), 0, 0}, {WINDOW, 0, 0, 0}, EOI, {WINDOW, 0, 0, 0}, EOI,
        /* registers that keep only what they have, and what is not there */
        {WRITE, APIC(0x330), 0xffffffff, 0}, {READ, APIC(0x330), 0, 0}, {WRITE, APIC(0x340), 0xffffffff, 0},
        {READ, APIC(0x340), 0, 0}, {WRITE, APIC(0x350), 0xffffffff, 0}, {READ, APIC(0x350), 0, 0}, {WRITE, APIC(0x360), 0xffffffff, 0},
        {READ, APIC(0x360), 0, 0}, {WRITE, APIC(0x370), 0xffffffff, 0}, {READ, APIC(0x370), 0, 0}, {WRITE, APIC(0x280), 0, 0},
        {READ, APIC(0x280), 0, 0}, {WRITE, APIC(0x20), 0x7000000, 0}, {READ, APIC(0x20), 0, 0}, {WRITE, APIC(0x20), 0, 0},
        {WRITE, APIC(0xf0), 0xff, 0}, {READ, APIC(0x370), 0, 0}, {READ, APIC(0x320), 0, 0}, {HOST, 0, 0x4d, 0},
        {READ, APIC(0x220), 0, 0}, {END, 0, 0, 0},
    };

    (void)state;
    PLAY(script);
    EXPECT("vector 52 at step 12\nvector 51 at step 14\nvector 41 at step 16\nvector 6f at step 23\n");
}

#define IOA(reg, value) {WRITE, 0xfec00000, reg, 0}, {WRITE, 0xfec00010, value, 0}
#define IOR(reg)        {WRITE, 0xfec00000, reg, 0}, {READ, 0xfec00010, 0, 0}

static void test_ioapic(void **state)
{
    static const struct step script[] = {
        {OUT, 0x21, 0xff, 0}, {OUT, 0xa1, 0xff, 0}, {WRITE, APIC(0xf0), 0x1ff, 0}, IOR(0), IOR(1), IOR(2), IOR(0x10),
        IOR(0x40), IOR(0xff), IOA(0, 0x5000000), IOR(0), IOR(2), {READ, 0xfec00000, 0, 0}, {READ, 0xfec00020, 0, 0},
        IOA(0x18, 0x34), IOR(0x18), IOA(0x1a, 0xffffffff), IOR(0x1a), IOA(0x1b, 0xffffffff), IOR(0x1b), IOA(0x1b, 0),
        IOA(0x1a, 0x8035), IOR(0x1a), PULSE(4), {WINDOW, 0, 0, 0}, EOI,
        /* an edge while masked is lost */
        IOA(0x18, 0x10034), RAISE(4), {WINDOW, 0, 0, 0}, IOA(0x18, 0x34), {WINDOW, 0, 0, 0}, LOWER(4), PULSE(4), {WINDOW, 0, 0, 0},
        EOI, {END, 0, 0, 0},
    };

    (void)state;
    PLAY(script);
    EXPECT("vector 34 at step 43\nvector 34 at step 5");
}

/* A level line comes again until it falls; an EOI faked by going to edge and back; what ends a halt. */
static void test_level(void **state)
{
    static const struct step script[] = {
        {OUT, 0x21, 0xff, 0}, {OUT, 0xa1, 0xff, 0}, {WRITE, APIC(0xf0), 0x1ff, 0}, IOA(0x18, 0x34), IOA(0x1a, 0x8035),
        RAISE(5), {WINDOW, 0, 0, 0}, IOR(0x1a), EOI, IOR(0x1a), {WINDOW, 0, 0, 0}, LOWER(5), IOR(0x1a), EOI, IOR(0x1a),
        {WINDOW, 0, 0, 0},
        RAISE(5), {WINDOW, 0, 0, 0}, IOR(0x1a), IOA(0x1a, 0x10035), IOR(0x1a), IOA(0x1a, 0x8035), IOR(0x1a), EOI, {WINDOW, 0, 0, 0},
        LOWER(5), EOI, {WINDOW, 0, 0, 0}, EOI,
        /* masked when it rose */
        IOA(0x1a, 0x18035), RAISE(5), {WINDOW, 0, 0, 0}, IOA(0x1a, 0x8035), {WINDOW, 0, 0, 0}, LOWER(5), EOI,
        IOA(0x1c, 0x400), PULSE(6), {SPIN, 0, 10, 0}, PULSE(4), {HALT, 0, 0, 0}, EOI, {END, 0, 0, 0},
    };

    (void)state;
    PLAY_IN_SERVICE(script);
    EXPECT("step 10: fec00010 = c035\n", "step 13: fec00010 = c035\n", "step 17: fec00010 = c035\n",
           "step 20: fec00010 = 8035\n", "step 25: fec00010 = c035\n", "step 29: fec00010 = 10035\n",
           "step 33: fec00010 = c035\n", "vector 35 at step 8\nvector 35 at step 14\nvector 35 at step 23\n"
           "vector 35 at step 35\nvector 35 at step 4", "vector 02 at step", "vector 34 at step");
}

static void test_x2apic(void **state)
{
    static const struct step script[] = {
        {RDMSR, 0x802, 0, 0}, {RDMSR, 0x1b, 0, 0}, {WRMSR, 0x1b, 0xfee00d00, 0}, {RDMSR, 0x1b, 0, 0}, {RDMSR, 0x802, 0, 0},
        {RDMSR, 0x803, 0, 0}, {RDMSR, 0x80d, 0, 0}, {RDMSR, 0x80e, 0, 0}, {WRMSR, 0x80d, 1, 0}, {WRMSR, 0x802, 1, 0},
        {WRMSR, 0x80f, 0x1ff, 0}, {RDMSR, 0x80f, 0, 0}, {WRMSR, 0x80f, 0x1ff, 1}, {WRMSR, 0x828, 1, 0}, {WRMSR, 0x828, 0, 0},
        {RDMSR, 0x809, 0, 0}, {RDMSR, 0x831, 0, 0}, {RDMSR, 0x83f, 0, 0}, {WRMSR, 0x83f, 0x45, 0}, {WRMSR, 0x83f, 0x145, 0},
        {WRMSR, 0x830, 0x46, 0}, {WRMSR, 0x830, 0x47, 5}, {WRMSR, 0x830, 0x848, 1}, {WRMSR, 0x830, 0x49, 0xffffffff},
        {RDMSR, 0x830, 0, 0}, {RDMSR, 0x822, 0, 0}, {WINDOW, 0, 0, 0}, {WRMSR, 0x80b, 0, 0}, {WINDOW, 0, 0, 0},
        {WRMSR, 0x80b, 0, 0}, {WINDOW, 0, 0, 0}, {WRMSR, 0x80b, 0, 0}, {WINDOW, 0, 0, 0}, {WRMSR, 0x80b, 0, 0},
        {READ, APIC(0x20), 0, 0}, {WRITE, APIC(0x80), 0x20, 0}, {RDMSR, 0x808, 0, 0}, {WRMSR, 0x808, 0x120, 0}, {RDMSR, 0x808, 0, 0},
        {WRMSR, 0x1b, 0xfee00900, 0}, {RDMSR, 0x1b, 0, 0}, {WRMSR, 0x1b, 0xfee00100, 0}, {RDMSR, 0x1b, 0, 0},
        {WRMSR, 0x1b, 0xfee00d00, 0}, {RDMSR, 0x1b, 0, 0}, {RDMSR, 0x802, 0, 0}, {WRMSR, 0x1b, 0xfee00900, 0}, {RDMSR, 0x1b, 0, 0},
        {READ, APIC(0x20), 0, 0}, {READ, APIC(0xf0), 0, 0}, {WRMSR, 0x1b, 0xfee00901, 0}, {WRMSR, 0x1b, 0xfee00900, 0x100},
        {END, 0, 0, 0},
    };

    (void)state;
    PLAY(script);
    assert_non_null(strstr(soft.text, "vector 49 at step"));
    assert_non_null(strstr(soft.text, "vector 0d at step 0\n"));
}

static void test_timers(void **state)
{
    static const struct step script[] = {
        {OUT, 0x21, 0xff, 0}, {OUT, 0xa1, 0xff, 0}, {WRITE, APIC(0xf0), 0x1ff, 0}, {WRITE, APIC(0x320), 0x60, 0},
        {READ, APIC(0x390), 0, 0}, {WRITE, APIC(0x3e0), 0xffffffff, 0}, {READ, APIC(0x3e0), 0, 0},
        {WRITE, APIC(0x380), 2000000, 0}, {HALT, 0, 0, 0}, {WRITE, APIC(0xb0), 0, 0}, {READ, APIC(0x390), 0, 0},
        {READ, APIC(0x380), 0, 0}, {WRITE, APIC(0x320), 0x20061, 0}, {WRITE, APIC(0x380), 3000000, 0}, {HALT, 0, 0, 0},
        {WRITE, APIC(0xb0), 0, 0}, {HALT, 0, 0, 0}, {WRITE, APIC(0xb0), 0, 0}, {WRITE, APIC(0x380), 0, 0}, {READ, APIC(0x390), 0, 0},
        /* deadline: passed, and off */
        {WRITE, APIC(0x320), 0x40062, 0}, {READ, APIC(0x380), 0, 0}, {WRITE, APIC(0x380), 500, 0}, {READ, APIC(0x380), 0, 0},
        {WRMSR, 0x6e0, 1, 0}, {HALT, 0, 0, 0}, {WRITE, APIC(0xb0), 0, 0}, {RDMSR, 0x6e0, 0, 0}, {WRMSR, 0x6e0, 0, 0x7fffffff},
        {WINDOW, 0, 0, 0}, {WRMSR, 0x6e0, 0, 0}, {RDMSR, 0x6e0, 0, 0}, {WRITE, APIC(0x320), 0x63, 0}, {WRMSR, 0x6e0, 1, 0},
        {RDMSR, 0x6e0, 0, 0}, {WINDOW, 0, 0, 0},
        /* the 8254 through pin 0 of the IOAPIC */
        {WRITE, 0xfec00000, 0x10, 0}, {WRITE, 0xfec00010, 0x70, 0}, {OUT, 0x43, 0x34, 0}, {OUT, 0x40, 0x00, 0}, {OUT, 0x40, 0x20, 0},
        {HALT, 0, 0, 0}, {WRITE, APIC(0xb0), 0, 0}, {HALT, 0, 0, 0}, {WRITE, APIC(0xb0), 0, 0}, {OUT, 0x43, 0xe2, 0}, {IN, 0x40, 0, 0},
        {WRITE, 0xfec00000, 0x10, 0}, {WRITE, 0xfec00010, 0x10070, 0}, {WINDOW, 0, 0, 0}, {WRITE, APIC(0xb0), 0, 0},
        {OUT, 0x43, 0x30, 0}, {OUT, 0x40, 0, 0}, {OUT, 0x43, 0xe2, 0}, {IN, 0x40, 0, 0},
        /* counter 2 and the speaker port */
        {OUT, 0x61, 0, 0}, {OUT, 0x43, 0xb0, 0}, {OUT, 0x42, 0xff, 0}, {OUT, 0x42, 0xff, 0}, {OUT, 0x61, 3, 0}, {OUT, 0x43, 0xe8, 0},
        {IN, 0x42, 0, 0}, {OUT, 0x61, 0, 0}, {OUT, 0x43, 0xb6, 0}, {OUT, 0x43, 0xe8, 0}, {IN, 0x42, 0, 0}, {END, 0, 0, 0},
    };

    (void)state;
    PLAY(script);
    assert_non_null(strstr(soft.text, "vector 60 at step 8\n"));
    assert_non_null(strstr(soft.text, "vector 61 at step 14\nvector 61 at step 16\nvector 62 at step"));
}

/* A kick that comes before the halt ends it: a paravirtual lock would wait for ever otherwise. */
static void test_kick_before_halt(void **state)
{
    static const struct step script[] = {{KICK_HALT, 0, 0, 0}, {KICK_HALT, 0, 0, 0}, {IN, 0x21, 0, 0}, {END, 0, 0, 0}};
    struct accel_endpoint *s = accel_endpoint_soft_new(NULL, NULL);

    (void)state;
    assert_non_null(s);
    assert_true(play(&soft, s, script, 4));
    s->ops->free(s);
    EXPECT("step 2: 21 = 0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pic),    cmocka_unit_test(test_service), cmocka_unit_test(test_lapic),
        cmocka_unit_test(test_ioapic), cmocka_unit_test(test_level),   cmocka_unit_test(test_x2apic),
        cmocka_unit_test(test_timers), cmocka_unit_test(test_kick_before_halt),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
