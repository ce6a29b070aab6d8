/*
 * The same short programs on the software processor and on /dev/kvm, from the same registers and memory: registers, segments
 * and memory must agree afterwards. Skipped where there is no /dev/kvm that may be opened; a program that the kernel's KVM
 * cannot run (its emulator gives up) is counted, not failed.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include <cmocka.h>

#include "arch/regs.h"
#include "sys_guest.h"

#define FLAGS_SEEN 0x3f7fd7u

struct kvm_guest {
    int kvm, vm, vcpu;
    uint8_t *ram;
    struct kvm_run *run;
    size_t run_size;
};

static struct kvm_guest real = {.kvm = -1, .vm = -1, .vcpu = -1};

struct program {
    const char *name;
    enum sg_mode mode;
    unsigned level, len;
    uint32_t undefined; /* flags that the manuals leave undefined */
    uint8_t code[40];
};

/* Byte strings are instructions; what they do is in the name. Each ends in the HLT that is put behind it. */
#define P(name, mode, level, undef, bytes) {name, mode, level, sizeof(bytes) - 1, undef, bytes}

static const struct program programs[] = {
    P("real: mov ds, ax; mov ax, [0]", SG_REAL, 0, 0, "\xb8\x00\x10\x8e\xd8\xa1\x00\x00"),
    P("real: int 0x21", SG_REAL, 0, 0, "\xb8\x34\x12\xcd\x21"),
    P("real: div by zero", SG_REAL, 0, 0, "\x31\xc9\xf7\xf1"),
    P("real: pushf; popf of all ones", SG_REAL, 0, 0, "\x68\xff\x7e\x9d\x9c\x58"),
    P("real: push all segments", SG_REAL, 0, 0, "\x06\x0e\x16\x1e\x0f\xa0\x0f\xa8"),
    P("real: rep stosw down", SG_REAL, 0, 0, "\xfd\xb9\x05\x00\xbf\x00\xa0\xf3\xab"),
    P("real: far call and retf", SG_REAL, 0, 0, "\x9a\x08\x80\x00\x00\xeb\x05\x90\xb8\x99\x00\xcb"),
    P("real: 32-bit push and pop", SG_REAL, 0, 0, "\x66\x68\x78\x56\x34\x12\x66\x58"),
    P("real: les", SG_REAL, 0, 0, "\xc7\x06\x00\xa0\x34\x12\xc7\x06\x02\xa0\x00\x20\xc4\x3e\x00\xa0"),
    P("real: lmsw, smsw", SG_REAL, 0, 0, "\x0f\x01\xe0\x83\xc8\x02\x0f\x01\xf0\x0f\x01\xe3"),
    P("real: enter protected mode by far jump", SG_REAL, 0, 0,
      "\x0f\x20\xc0\x66\x83\xc8\x01\x0f\x22\xc0\xea\x0f\x80\x08\x00\xb8\x10\x00\x00\x00\x8e\xd8\x8e\xd0"),
    P("32: load all data segments", SG_PM32, 0, 0, "\xb8\x10\x00\x00\x00\x8e\xd8\x8e\xc0\x8e\xe0\x8e\xe8"),
    P("32: load ds beyond the table", SG_PM32, 0, 0, "\xb8\xf8\xff\x00\x00\x8e\xd8"),
    P("32: load ss with code", SG_PM32, 0, 0, "\xb8\x08\x00\x00\x00\x8e\xd0"),
    P("32: int 0x40", SG_PM32, 0, 0, "\xcd\x40"),
    P("32: into without overflow, then with", SG_PM32, 0, 0, "\x31\xc0\xce\xb0\x7f\xfe\xc0\xce"),
    P("32: ud2", SG_PM32, 0, 0, "\x0f\x0b"),
    P("32: div by zero from level 3", SG_PM32, 3, 0, "\x31\xc9\xf7\xf1"),
    P("32: int 0x40 from level 3", SG_PM32, 3, 0, "\xcd\x40"),
    P("32: cli from level 3", SG_PM32, 3, 0, "\xfa"),
    P("32: hlt from level 3", SG_PM32, 3, 0, "\x90"),
    P("32: popf of ones from level 3", SG_PM32, 3, X86_AC, "\x68\xff\xfe\x3f\x00\x9d"),
    P("32: iret to level 3", SG_PM32, 0, 0, "\x6a\x40\x68\x00\xd0\x00\x00\x6a\x02\x6a\x3b\x68\x15\x80\x00\x00\xcf"),
    P("32: retf to level 3", SG_PM32, 0, 0, "\x6a\x40\x68\x00\xd0\x00\x00\x6a\x3b\x68\x15\x80\x00\x00\xcb"),
    P("32: lar, lsl, verr, verw", SG_PM32, 0, 0,
      "\xb8\x38\x00\x00\x00\x0f\x02\xd8\x0f\x03\xc8\x0f\x00\xe0\x9c\x0f\x00\xe8\x9c"),
    P("32: sgdt, sidt, sldt, str, smsw", SG_PM32, 0, 0,
      "\x0f\x01\x05\x00\xa0\x00\x00\x0f\x01\x0d\x10\xa0\x00\x00\x0f\x00\xc3\x0f\x00\xc9\x0f\x01\xe2"),
    P("32: arpl", SG_PM32, 0, 0, "\x66\xb8\x08\x00\x66\xbb\x0b\x00\x63\xd8"),
    P("32: bound out of range", SG_PM32, 0, 0,
      "\xc7\x05\x00\xa0\x00\x00\x05\x00\x00\x00\xb8\x09\x00\x00\x00\x62\x05\x00\xa0\x00\x00"),
    P("32: repe cmpsb", SG_PM32, 0, 0, "\xbe\x00\xa0\x00\x00\xbf\x00\xb0\x00\x00\xb9\x20\x00\x00\x00\xf3\xa6"),
    P("32: repne scasb", SG_PM32, 0, 0, "\xb8\x01\x00\x00\x00\xbf\x00\xb0\x00\x00\xb9\x20\x00\x00\x00\xf2\xae"),
    P("32: pusha, popa", SG_PM32, 0, 0, "\xb8\x11\x00\x00\x00\x60\x31\xc0\x61"),
    P("32: enter, leave", SG_PM32, 0, 0, "\xbd\x00\xa8\x00\x00\xc8\x20\x00\x02\xc9"),
    P("32: daa, das, aaa, aas", SG_PM32, 0, 0x8d4, "\xb8\x9a\x00\x00\x00\x27\x9c\x2f\x9c\x37\x3f"),
    P("64: int 0x40", SG_LONG, 0, 0, "\xcd\x40"),
    P("64: int 0x40 from level 3", SG_LONG, 3, 0, "\xcd\x40"),
    P("64: page fault", SG_LONG, 0, 0, "\x48\xb8\x00\x00\x00\x40\x00\x00\x00\x00\x8b\x18"),
    P("64: non-canonical", SG_LONG, 0, 0, "\x48\xb8\x00\x00\x00\x40\x00\x80\x00\x00\x8b\x18"),
    P("64: non-canonical through rbp", SG_LONG, 0, 0, "\x48\xbd\x00\x00\x00\x40\x00\x80\x00\x00\x48\x8b\x45\x00"),
    P("64: null ss", SG_LONG, 0, 0, "\x31\xc0\x8e\xd0"),
    P("64: swapgs twice and rdmsr", SG_LONG, 0, 0,
      "\xb9\x02\x01\x00\xc0\xb8\x78\x56\x34\x12\x31\xd2\x0f\x30\x0f\x01\xf8\xb9\x01\x01\x00\xc0\x0f\x32"),
    P("64: mov to cr4 of a reserved bit", SG_LONG, 0, 0, "\x0f\x20\xe0\x0d\x00\x00\x00\x80\x0f\x22\xe0"),
    P("64: clear cr0.pg", SG_LONG, 0, 0, "\x0f\x20\xc0\x25\xff\xff\xff\x7f\x0f\x22\xc0"),
    P("64: retfq to compatibility mode", SG_LONG, 0, 0, "\x6a\x08\x68\x0a\x80\x00\x00\x48\xcb\x90\xb8\x01\x00\x00\x00"),
    P("64: iretq to itself", SG_LONG, 0, 0,
      "\x6a\x10\x68\x00\xaf\x00\x00\x9c\x6a\x48\x68\x11\x80\x00\x00\x48\xcf"),
    P("64: movs with 32-bit addresses and no count", SG_LONG, 0, 0, "\x31\xc9\x48\xc7\xc6\xff\xff\xff\xff\x67\xf3\xa4"),
    P("64: sldt, str, smsw at 64 bits", SG_LONG, 0, 0, "\x48\x0f\x00\xc3\x48\x0f\x00\xc9\x48\x0f\x01\xe2"),
    P("64: lar of a system descriptor", SG_LONG, 0, 0, "\xb8\x58\x00\x00\x00\x0f\x02\xd8\x0f\x03\xc8"),
    P("64: mov from dr6, dr7", SG_LONG, 0, 0, "\x0f\x21\xf0\x0f\x21\xfb"),
};

/* ---- the kernel's side ---- */

static void seg_to_kvm(const struct cpu_seg *s, struct kvm_segment *k)
{
    *k = (struct kvm_segment){.base = s->base, .limit = s->limit, .selector = s->sel, .type = s->type, .present = s->p,
                              .dpl = s->dpl, .db = s->db, .s = s->s, .l = s->l, .g = s->g, .avl = s->avl,
                              .unusable = s->unusable};
}

static int kvm_load(const struct cpu_sregs *s, const struct cpu_regs *r)
{
    struct kvm_sregs k;
    struct kvm_regs kr = {.rax = r->gpr[0], .rcx = r->gpr[1], .rdx = r->gpr[2], .rbx = r->gpr[3], .rsp = r->gpr[4],
                          .rbp = r->gpr[5], .rsi = r->gpr[6], .rdi = r->gpr[7], .rip = r->rip, .rflags = r->rflags};

    if (ioctl(real.vcpu, KVM_GET_SREGS, &k) < 0) {
        return -errno;
    }
    seg_to_kvm(&s->seg[CPU_ES], &k.es);
    seg_to_kvm(&s->seg[CPU_CS], &k.cs);
    seg_to_kvm(&s->seg[CPU_SS], &k.ss);
    seg_to_kvm(&s->seg[CPU_DS], &k.ds);
    seg_to_kvm(&s->seg[CPU_FS], &k.fs);
    seg_to_kvm(&s->seg[CPU_GS], &k.gs);
    seg_to_kvm(&s->ldtr, &k.ldt);
    seg_to_kvm(&s->tr, &k.tr);
    k.gdt = (struct kvm_dtable){.base = s->gdtr.base, .limit = s->gdtr.limit};
    k.idt = (struct kvm_dtable){.base = s->idtr.base, .limit = s->idtr.limit};
    k.cr0 = s->cr0;
    k.cr2 = s->cr2;
    k.cr3 = s->cr3;
    k.cr4 = s->cr4;
    k.cr8 = 0;
    k.efer = s->efer;
    return ioctl(real.vcpu, KVM_SET_SREGS, &k) < 0 || ioctl(real.vcpu, KVM_SET_REGS, &kr) < 0 ? -errno : 0;
}

static int kvm_open(void)
{
    struct kvm_userspace_memory_region slot = {.memory_size = SG_RAM};
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entries[128];
    } cpuid = {.head.nent = 128};

    real.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (real.kvm < 0) {
        return -1;
    }
    real.ram = mmap(NULL, SG_RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    slot.userspace_addr = (uintptr_t)real.ram;
    real.vm = ioctl(real.kvm, KVM_CREATE_VM, 0);
    if (real.vm < 0 || ioctl(real.vm, KVM_SET_USER_MEMORY_REGION, &slot) < 0) {
        return -1;
    }
    (void)ioctl(real.vm, KVM_SET_TSS_ADDR, 0xfffbd000);
    real.vcpu = ioctl(real.vm, KVM_CREATE_VCPU, 0);
    real.run_size = (size_t)ioctl(real.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    real.run = mmap(NULL, real.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, real.vcpu, 0);
    if (real.vcpu < 0 || real.run == MAP_FAILED || ioctl(real.kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) < 0) {
        return -1;
    }
    return ioctl(real.vcpu, KVM_SET_CPUID2, &cpuid);
}

/* ---- comparing ---- */

static void prepare(const struct program *p)
{
    unsigned v, i;

    sg_reset(&guest, p->mode, p->level);
    for (v = 0; v < 256; v++) {
        sg_put(&guest, SG_HANDLER + v * 16, "\xf4", 1);
    }
    for (i = 0; i < 64; i++) {
        guest.ram[0xa000 + i] = (uint8_t)(i & 7);
        guest.ram[0xb000 + i] = (uint8_t)(i < 20 ? i & 7 : 9);
    }
    sg_put(&guest, SG_CODE, p->code, p->len);
    sg_put(&guest, SG_CODE + p->len, "\xf4", 1);
}

/* A null SS is shown as usable by some KVMs: then the selector alone counts. */
static bool seg_equal(const struct cpu_seg *a, const struct kvm_segment *b)
{
    if (a->sel < 4 && a->unusable) {
        return a->sel == b->selector;
    }
    return a->sel == b->selector && (a->unusable || b->unusable ? a->unusable == b->unusable
                                                                : a->base == b->base && a->dpl == b->dpl);
}

static int differ(const struct program *p, const char *what, uint64_t ours, uint64_t theirs)
{
    if (ours == theirs) {
        return 0;
    }
    print_message("# %s: %s is %llx, KVM has %llx\n", p->name, what, (unsigned long long)ours, (unsigned long long)theirs);
    return 1;
}

static int compare(const struct program *p, const struct sg_outcome *out)
{
    struct kvm_regs k;
    struct kvm_sregs s;
    uint32_t flags = FLAGS_SEEN & ~p->undefined;
    int bad = 0;

    assert_int_equal(ioctl(real.vcpu, KVM_GET_REGS, &k), 0);
    assert_int_equal(ioctl(real.vcpu, KVM_GET_SREGS, &s), 0);
    bad += differ(p, "rip", out->regs.rip, k.rip);
    bad += differ(p, "rflags", out->regs.rflags & flags, k.rflags & flags);
    bad += differ(p, "rax", out->regs.gpr[CPU_RAX], k.rax);
    bad += differ(p, "rbx", out->regs.gpr[CPU_RBX], k.rbx);
    bad += differ(p, "rcx", out->regs.gpr[CPU_RCX], k.rcx);
    bad += differ(p, "rdx", out->regs.gpr[CPU_RDX], k.rdx);
    bad += differ(p, "rsi", out->regs.gpr[CPU_RSI], k.rsi);
    bad += differ(p, "rdi", out->regs.gpr[CPU_RDI], k.rdi);
    bad += differ(p, "rsp", out->regs.gpr[CPU_RSP], k.rsp);
    bad += differ(p, "rbp", out->regs.gpr[CPU_RBP], k.rbp);
    bad += differ(p, "cr0", out->sregs.cr0, s.cr0);
    bad += differ(p, "cr2", out->sregs.cr2, s.cr2);
    bad += differ(p, "cr4", out->sregs.cr4, s.cr4);
    bad += differ(p, "cs agrees", seg_equal(&out->sregs.seg[CPU_CS], &s.cs), 1);
    bad += differ(p, "ss agrees", seg_equal(&out->sregs.seg[CPU_SS], &s.ss), 1);
    bad += differ(p, "ds agrees", seg_equal(&out->sregs.seg[CPU_DS], &s.ds), 1);
    bad += differ(p, "es agrees", seg_equal(&out->sregs.seg[CPU_ES], &s.es), 1);
    /* Stacks and data; tables have accessed bits, which an emulating KVM may leave alone. */
    bad += differ(p, "memory agrees", memcmp(guest.ram + 0x9000, real.ram + 0x9000, SG_RAM - 0x9000) == 0, 1);
    return bad;
}

static void on_alarm(int sig)
{
    (void)sig;
    real.run->immediate_exit = 1;
}

/* One KVM_RUN of at most two seconds: a KVM that makes something else of a program may never come to its HLT. */
static int run_bounded(void)
{
    const struct itimerval limit = {.it_value.tv_sec = 2, .it_interval.tv_usec = 100000}, off = {0};
    int r;

    real.run->immediate_exit = 0;
    (void)setitimer(ITIMER_REAL, &limit, NULL);
    r = ioctl(real.vcpu, KVM_RUN, 0);
    (void)setitimer(ITIMER_REAL, &off, NULL);
    return r;
}

/* A KVM that interprets says #UD to what its emulator does not know. */
static bool is_beyond_kvm(const struct sg_outcome *out)
{
    struct kvm_regs k;

    return ioctl(real.vcpu, KVM_GET_REGS, &k) < 0 ||
           (k.rip == SG_HANDLER + 6 * 16 + 1 && out->regs.rip != k.rip);
}

static void same_as_kvm(void **state)
{
    unsigned i, bad = 0, unable = 0;

    if (real.vcpu < 0) {
        skip();
    }
    for (i = 0; i < ARRAY_LEN(programs); i++) {
        const struct program *p = &programs[i];
        struct sg_outcome out;
        struct cpu_sregs s;
        struct cpu_regs r;

        prepare(p);
        cpu_get_sregs(guest.cpu, &s);
        cpu_get_regs(guest.cpu, &r);
        memcpy(real.ram, guest.ram, SG_RAM);
        assert_int_equal(kvm_load(&s, &r), 0);
        sg_run(&guest, &out);
        if (out.reason != CPU_EXIT_HLT) {
            print_message("# %s: exit %d at %llx\n", p->name, out.reason, (unsigned long long)out.regs.rip);
            bad++;
            continue;
        }
        if (run_bounded() < 0 || real.run->exit_reason != KVM_EXIT_HLT ||
            is_beyond_kvm(&out)) {
            print_message("# %s: not on this KVM (exit %u)\n", p->name, real.run->exit_reason);
            unable++;
            continue;
        }
        bad += compare(p, &out) != 0;
    }
    print_message("# %u programs, %u differ, %u not on this KVM\n", (unsigned)ARRAY_LEN(programs), bad, unable);
    assert_int_equal(bad, 0);
}

static int setup(void **state)
{
    struct sigaction alarm = {.sa_handler = on_alarm}; /* no SA_RESTART: KVM_RUN must come back */

    (void)sigaction(SIGALRM, &alarm, NULL);
    sg_open(&guest);
    if (kvm_open() < 0) {
        real.vcpu = -1;
    }
    return 0;
}

static int teardown(void **state)
{
    sg_close(&guest);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_as_kvm),
    };

    return cmocka_run_group_tests_name("cpu/kvm", tests, setup, teardown);
}
