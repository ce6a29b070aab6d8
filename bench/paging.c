/*
 * What a guest's own paging costs on each kind of MMU: process switches with and without PCIDs, changed entries, whole
 * tables that come and go, and plain TLB misses; and how many table entries one translation reads. The guest is
 * real code in long mode, compiled here and copied there. Figures are processor time per operation, medians of
 * rounds, the kinds in turns. Usage: bench_paging [--json FILE]
 */
#include <linux/kvm.h>
#include <stdint.h>
#include <sys/mman.h>

#include "measure.h"
#include "softkvm/inspect.h"
#include "softkvm/softkvm.h"

#define RAM    (UINT64_C(64) << 20)
#define CODE   0x10000u
#define ARG    0x20000u
#define STACK  0x3f000u
#define LOW    0x80000u  /* tables of the lower memory, one to one */
#define OWN    0x100000u /* a process's tables: 16 pages each */
#define DATA   0x2000000u
#define SPACES 3u
#define LA     UINT64_C(0x8000000000) /* a process's own memory */
#define KINDS  3

/* What the guest's code works on. */
struct guest_arg {
    uint64_t times, what;
    uint64_t root[SPACES], pd, pt, spare;
    uint64_t sum;
};

enum { SWITCH, CHANGE, TABLES, MISS };

#define GUEST_CODE                                                                                                     \
    __attribute__((section("guest_code"), noinline, used,                                                              \
                   optimize("no-stack-protector", "no-jump-tables", "no-tree-loop-distribute-patterns")))

static inline __attribute__((always_inline)) uint64_t guest_load(uint64_t la)
{
    return *(volatile uint64_t *)la;
}

static inline __attribute__((always_inline)) void guest_cr3(uint64_t v)
{
    __asm__ volatile("mov %0, %%cr3" ::"r"(v) : "memory");
}

/* Load CR3 in turns and touch 8 pages of each process. */
static inline __attribute__((always_inline)) uint64_t guest_switch(struct guest_arg *a)
{
    uint64_t sum = 0;

    for (uint64_t i = 0; i < a->times; i++) {
        guest_cr3(a->root[i % SPACES]);
        for (uint64_t page = 0; page < 8; page++) {
            sum += guest_load(LA + page * 4096);
        }
    }
    return sum;
}

/* Point an entry elsewhere, invalidate it, use it. */
static inline __attribute__((always_inline)) uint64_t guest_change(struct guest_arg *a)
{
    uint64_t sum = 0;

    for (uint64_t i = 0; i < a->times; i++) {
        uint64_t la = LA + i % 64 * 4096;

        *(volatile uint64_t *)(a->pt + i % 64 * 8) = (DATA + i % 512 * 4096) | 0x63;
        __asm__ volatile("invlpg (%0)" ::"r"(la) : "memory");
        sum += guest_load(la);
    }
    return sum;
}

/* As fork, exec and exit: a new table is filled and linked, 16 of its pages are used, and it is unlinked. */
static inline __attribute__((always_inline)) uint64_t guest_tables(struct guest_arg *a)
{
    uint64_t sum = 0;

    for (uint64_t i = 0; i < a->times; i++) {
        volatile uint64_t *t = (volatile uint64_t *)(a->spare + i % 4 * 4096);

        for (uint64_t k = 0; k < 512; k++) {
            t[k] = (DATA + (i + k) % 512 * 4096) | 0x63;
        }
        *(volatile uint64_t *)(a->pd + 8) = (uint64_t)t | 0x63;
        for (uint64_t k = 0; k < 16; k++) {
            sum += guest_load(LA + 0x200000 + k * 0x7000);
        }
        *(volatile uint64_t *)(a->pd + 8) = 0;
        guest_cr3(a->root[0]);
    }
    return sum;
}

/* 4,000 pages one after the other: more than the TLB holds. */
static inline __attribute__((always_inline)) uint64_t guest_miss(struct guest_arg *a)
{
    uint64_t sum = 0;

    for (uint64_t i = 0; i < a->times; i++) {
        sum += guest_load(LA + UINT64_C(0x40000000) + i % 4000 * 4096);
    }
    return sum;
}

GUEST_CODE static void guest_main(struct guest_arg *a)
{
    guest_cr3(a->root[0]);
    if (a->what == SWITCH) {
        a->sum = guest_switch(a);
    } else if (a->what == CHANGE) {
        a->sum = guest_change(a);
    } else if (a->what == TABLES) {
        a->sum = guest_tables(a);
    } else {
        a->sum = guest_miss(a);
    }
    __asm__ volatile("hlt");
}

extern const char __start_guest_code[], __stop_guest_code[];

struct machine {
    struct softkvm *s;
    int kvm, vm, vcpu;
    struct kvm_run *run;
    uint8_t *ram;
    struct guest_arg *arg;
};

static void must(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "bench_paging: %s\n", what);
        exit(1);
    }
}

static void put(struct machine *m, uint64_t at, uint64_t entry)
{
    memcpy(m->ram + at, &entry, 8);
}

/* One process: the lower memory, a table of its own, and 8 tables for the misses. */
static void make_process(struct machine *m, unsigned i)
{
    uint64_t own = OWN + i * 0x20000;

    put(m, own, LOW | 0x63);
    put(m, own + 8, (own + 0x1000) | 0x63);
    put(m, own + 0x1000, (own + 0x2000) | 0x63);
    put(m, own + 0x1000 + 8, (own + 0x3000) | 0x63);
    put(m, own + 0x2000, (own + 0x4000) | 0x63);
    for (unsigned k = 0; k < 512; k++) {
        put(m, own + 0x4000 + k * 8, (DATA + k * 4096) | 0x63);
    }
    for (unsigned t = 0; t < 8; t++) {
        put(m, own + 0x3000 + t * 8, (own + 0x8000 + t * 0x1000) | 0x63);
        for (unsigned k = 0; k < 512; k++) {
            put(m, own + 0x8000 + t * 0x1000 + k * 8, (DATA + (t * 512 + k) * 4096) | 0x63);
        }
    }
}

static void make_memory(struct machine *m)
{
    memcpy(m->ram + CODE, __start_guest_code, (size_t)(__stop_guest_code - __start_guest_code));
    put(m, LOW, (LOW + 0x1000) | 0x63);
    for (uint64_t k = 0; k < RAM >> 21; k++) {
        put(m, LOW + 0x1000 + k * 8, k << 21 | 0xe3);
    }
    for (unsigned i = 0; i < SPACES; i++) {
        make_process(m, i);
    }
    m->arg = (struct guest_arg *)(void *)(m->ram + ARG);
    m->arg->pd = OWN + 0x2000;
    m->arg->pt = OWN + 0x4000;
    m->arg->spare = OWN + 0x80000;
}

static void set_state(struct machine *m)
{
    struct kvm_segment code = {.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .g = 1, .l = 1};
    struct kvm_segment data = {.limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .s = 1, .g = 1, .db = 1};
    struct kvm_sregs r;

    must(softkvm_ioctl(m->s, m->vcpu, KVM_GET_SREGS, &r) == 0, "sregs");
    r.cs = code;
    r.ds = r.es = r.fs = r.gs = r.ss = data;
    r.cr0 = 0x80010033;
    r.cr3 = OWN;
    r.cr4 = 0x20220;
    r.efer = 0xd00;
    must(softkvm_ioctl(m->s, m->vcpu, KVM_SET_SREGS, &r) == 0, "sregs");
}

static void machine_open(struct machine *m, enum softkvm_mmu mmu)
{
    struct softkvm_options o = {.size = sizeof(o), .mmu = mmu};
    struct kvm_userspace_memory_region slot = {0, 0, 0, RAM, 0};
    char err[120] = "";
    int e;

    m->s = softkvm_new(&o, err, sizeof(err));
    must(m->s != NULL, err);
    m->kvm = softkvm_open_system(m->s);
    m->vm = softkvm_ioctl(m->s, m->kvm, KVM_CREATE_VM, NULL);
    m->ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(m->ram != MAP_FAILED, "memory");
    slot.userspace_addr = (uintptr_t)m->ram;
    must(softkvm_ioctl(m->s, m->vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0, "slot");
    m->vcpu = softkvm_ioctl(m->s, m->vm, KVM_CREATE_VCPU, NULL);
    must(m->vcpu >= 0, "vcpu");
    m->run = softkvm_mmap(m->s, m->vcpu, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 0, &e);
    make_memory(m);
    set_state(m);
}

static void machine_close(struct machine *m)
{
    softkvm_free(m->s);
    munmap(m->ram, RAM);
}

/* Run one of the guest's loops. keep: CR3 values with PCIDs of their own and bit 63. */
static void run(struct machine *m, unsigned what, uint64_t times, int keep)
{
    struct kvm_regs r = {.rip = CODE + (uintptr_t)((const char *)guest_main - __start_guest_code), .rflags = 2,
                         .rsp = STACK - 8, .rdi = ARG};

    for (unsigned i = 0; i < SPACES; i++) {
        m->arg->root[i] = (OWN + i * 0x20000) | (keep ? UINT64_C(1) << 63 | (i + 1) : 0);
    }
    m->arg->what = what;
    m->arg->times = times;
    must(softkvm_ioctl(m->s, m->vcpu, KVM_SET_REGS, &r) == 0, "regs");
    must(softkvm_ioctl(m->s, m->vcpu, KVM_RUN, NULL) == 0, "run");
    must(m->run->exit_reason == KVM_EXIT_HLT, "the guest did not halt");
}

static const struct figure {
    const char *what;
    unsigned loop;
    uint64_t times;
    int keep;
} figures[] = {
    {"process switch, 8 pages used", SWITCH, 6000, 0},
    {"the same with PCIDs kept", SWITCH, 6000, 1},
    {"entry changed, INVLPG, used", CHANGE, 6000, 0},
    {"table of 512 made, 16 pages used, dropped", TABLES, 200, 0},
    {"load that misses the TLB", MISS, 60000, 0},
};

static void measure_figure(struct measure *out, const struct figure *f, struct machine *m)
{
    double took[KINDS][MEASURE_ROUNDS], value[4];

    for (int round = 0; round < MEASURE_ROUNDS; round++) {
        for (int k = 0; k < KINDS; k++) {
            double start;

            run(&m[k], f->loop, f->times / 10, f->keep);
            start = measure_now();
            run(&m[k], f->loop, f->times, f->keep);
            took[k][round] = (measure_now() - start) / (double)f->times;
        }
    }
    for (int k = 0; k < KINDS; k++) {
        qsort(took[k], MEASURE_ROUNDS, sizeof(double), measure_by_value);
        value[k] = took[k][MEASURE_ROUNDS / 2];
    }
    value[3] = -1;
    measure_row_peers(out, f->what, "ns", value);
}

/* Entries that one translation of la reads when nothing is cached, counted on the tables as they are: with a second
 * stage each of the guest's tables is looked up there first, and the page at the end; shadow tables are as deep as
 * the guest's and nothing more. */
static double references(struct machine *m, int shadow, uint64_t la)
{
    struct softkvm_explain x = {.size = sizeof(x), .gva = la}, g;
    unsigned n;

    must(softkvm_ioctl(m->s, m->vcpu, SOFTKVM_EXPLAIN_GVA, &x) == 0, "explain");
    n = x.nr_guest + (shadow ? 0 : x.nr_ept);
    for (unsigned i = 0; !shadow && i < x.nr_guest; i++) {
        g = (struct softkvm_explain){.size = sizeof(g), .gpa = x.guest[i].table};
        must(softkvm_ioctl(m->s, m->vm, SOFTKVM_EXPLAIN_GPA, &g) == 0, "explain");
        n += g.nr_ept;
    }
    return n;
}

int main(int argc, char **argv)
{
    static const enum softkvm_mmu kinds[KINDS] = {SOFTKVM_MMU_EPT, SOFTKVM_MMU_NPT, SOFTKVM_MMU_SHADOW};
    static const char *const peers[2] = {"npt", "shadow"};
    struct measure out = measure_open_peers(argc, argv, peers);
    static struct machine m[KINDS];
    double value[4] = {0, 0, 0, -1};

    for (int k = 0; k < KINDS; k++) {
        machine_open(&m[k], kinds[k]);
    }
    for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++) {
        measure_figure(&out, &figures[i], m);
    }
    for (int k = 0; k < KINDS; k++) {
        value[k] = references(&m[k], kinds[k] == SOFTKVM_MMU_SHADOW, LA);
        machine_close(&m[k]);
    }
    measure_row_peers(&out, "entries read by a whole walk", "entries", value);
    measure_close(&out);
    return 0;
}
