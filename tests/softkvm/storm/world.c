/* The VM of a storm: engine, slots, guest code, and one guest operation through all its exits. */
#include "storm.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "softkvm/inspect.h"

/* Routines in the low slot, each ended by an OUT. RBX: address, RAX: value. */
static const struct {
    uint32_t at;
    uint8_t len, code[12];
} routines[NR_OPS] = {
    [OP_LOAD] = {0x1000, 5, {0x48, 0x8b, 0x03, 0xe6, PORT_DONE}},
    [OP_STORE] = {0x1010, 5, {0x48, 0x89, 0x03, 0xe6, PORT_DONE}},
    [OP_XADD] = {0x1020, 7, {0xf0, 0x48, 0x0f, 0xc1, 0x03, 0xe6, PORT_DONE}},
    [OP_MOVS] = {0x1030, 5, {0xf3, 0x48, 0xa5, 0xe6, PORT_DONE}},
    [OP_INVLPG] = {0x1040, 5, {0x0f, 0x01, 0x3b, 0xe6, PORT_DONE}},
    [OP_CR3] = {0x1050, 5, {0x0f, 0x22, 0xd8, 0xe6, PORT_DONE}},
};

/* #PF: pop rax; out. What was pushed is dropped with the registers. */
static const uint8_t handler[] = {0x58, 0xe6, PORT_FAULT};

#define HANDLER_AT 0x1100u
#define IDT_AT     0x2000u
#define GDT_AT     0x3000u
#define STACK_TOP  0x8000u /* minus 0x1000 for the second vCPU */

uint64_t storm_random(struct storm *w, uint64_t below)
{
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return below ? (w->random >> 11) % below : w->random;
}

void storm_say(struct storm *w, const char *fmt, ...)
{
    char *line = w->log[w->logged++ % LOG_LINES];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, LOG_BYTES, fmt, ap);
    va_end(ap);
    if (w->verbose) {
        fprintf(stderr, "# %u: %s\n", w->step, line);
    }
}

void storm_fail(struct storm *w, const char *fmt, ...)
{
    unsigned n = w->logged < LOG_LINES ? w->logged : LOG_LINES;
    va_list ap;

    fprintf(stderr, "# seed %llu: mmu %d levels %u page %u frames %llu MiB%s%s%s%s; the last %u events:\n",
            (unsigned long long)w->seed, (int)w->config.mmu, w->config.levels, w->config.max_page_level,
            (unsigned long long)w->config.frames >> 20, w->config.swap ? " swap" : "",
            w->config.announced ? " announced" : "", w->config.manual ? " manual" : "",
            w->config.inject ? " inject" : "", n);
    for (unsigned i = w->logged - n; i < w->logged; i++) {
        fprintf(stderr, "#   %s\n", w->log[i % LOG_LINES]);
    }
    fprintf(stderr, "# step %u: ", w->step);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n# again: STRATA_STORM_SEED=%llu\nnot ok 1 - storm\n", (unsigned long long)w->seed);
    exit(1);
}

int storm_vm_ioctl(struct storm *w, unsigned long request, void *arg)
{
    return softkvm_ioctl(w->s, w->vm, request, arg);
}

int storm_slot_set(struct storm *w, unsigned i)
{
    struct storm_slot *s = &w->slot[i];
    struct kvm_userspace_memory_region m = {i, s->logging ? KVM_MEM_LOG_DIRTY_PAGES : 0, s->gpa,
                                            s->present ? s->bytes : 0, (uintptr_t)s->hva};

    return storm_vm_ioctl(w, KVM_SET_USER_MEMORY_REGION, &m);
}

void storm_check(struct storm *w)
{
    struct softkvm_check c = {.size = sizeof(c)};

    if (storm_vm_ioctl(w, SOFTKVM_CHECK, &c) != 0) {
        storm_fail(w, "check: %s", c.text);
    }
}

/* An allocation that the schedule lets fail, one in eight. */
static bool fail_alloc(void *opaque)
{
    struct storm *w = opaque;

    return w->failing && storm_random(w, 8) == 0;
}

static void choose(struct storm *w)
{
    static const uint64_t frames[] = {16, 24, 64};
    static const enum softkvm_mmu mmus[] = {SOFTKVM_MMU_EPT, SOFTKVM_MMU_NPT, SOFTKVM_MMU_SHADOW};
    struct storm_config *c = &w->config;

    c->mmu = mmus[storm_random(w, 3)];
    c->levels = c->mmu == SOFTKVM_MMU_SHADOW ? 0 : 4 + (unsigned)storm_random(w, 2);
    c->max_page_level = 1 + (unsigned)storm_random(w, 3);
    c->swap = storm_random(w, 4) != 0;
    c->frames = (c->swap ? frames[storm_random(w, 3)] : 64) << 20;
    c->announced = storm_random(w, 2);
    c->manual = storm_random(w, 2);
    c->inject = storm_random(w, 2);
}

/* Always the same places: addresses decide the order of much that the host does. */
static char *pages_at(unsigned i, size_t bytes)
{
    void *at = (void *)(uintptr_t)(UINT64_C(0x7e9000000000) + i * UINT64_C(0x40000000));
    void *p = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

    return p == at ? p : NULL;
}

static void make_slot(struct storm *w, unsigned i, uint64_t gpa, uint64_t bytes)
{
    struct storm_slot *s = &w->slot[i];

    *s = (struct storm_slot){.gpa = gpa, .bytes = bytes, .present = true, .hva = pages_at(i, bytes),
                             .model = calloc(1, bytes), .mirror = calloc(1, bytes)};
    if (!s->hva || !s->model || !s->mirror) {
        storm_fail(w, "no memory for the test itself");
    }
}

static void put_code(struct storm *w)
{
    uint8_t *low = w->slot[LOW].model;
    uint32_t *gate = (uint32_t *)(void *)(low + IDT_AT + 14 * 16);
    uint64_t *gdt = (uint64_t *)(void *)(low + GDT_AT);

    for (unsigned i = 0; i < NR_OPS; i++) {
        memcpy(low + routines[i].at, routines[i].code, routines[i].len);
    }
    memcpy(low + HANDLER_AT, handler, sizeof(handler));
    gate[0] = 8u << 16 | HANDLER_AT;
    gate[1] = 0x8e00;
    gdt[1] = UINT64_C(0x00af9b000000ffff);
    gdt[2] = UINT64_C(0x00cf93000000ffff);
}

static void start_cpu(struct storm *w, unsigned c)
{
    struct kvm_segment code = {.selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1, .limit = ~0u};
    struct kvm_segment data = {.selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1, .limit = ~0u};
    struct kvm_sregs s;
    int e = 0;

    w->cpu[c].fd = softkvm_ioctl(w->s, w->vm, KVM_CREATE_VCPU, (void *)(uintptr_t)c);
    w->cpu[c].run = softkvm_mmap(w->s, w->cpu[c].fd, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 0, &e);
    softkvm_ioctl(w->s, w->cpu[c].fd, KVM_GET_SREGS, &s);
    s.cs = code;
    s.ds = s.es = s.ss = s.fs = s.gs = data;
    s.idt = (struct kvm_dtable){.base = IDT_AT, .limit = 0xfff};
    s.gdt = (struct kvm_dtable){.base = GDT_AT, .limit = 0xff};
    s.cr0 = 0x80010001; /* PG, WP, PE */
    s.cr4 = 0x20;
    s.efer = 0x500;
    s.cr3 = TABLES_GPA + c * SPACES * TABLE_PAGES * PAGE_BYTES;
    if (softkvm_ioctl(w->s, w->cpu[c].fd, KVM_SET_SREGS, &s) != 0) {
        storm_fail(w, "KVM_SET_SREGS");
    }
}

struct storm *storm_new(uint64_t seed, bool verbose)
{
    struct storm *w = calloc(1, sizeof(*w));
    struct softkvm_options o = {.size = sizeof(o), .fail_alloc = fail_alloc, .fail_opaque = w};
    struct kvm_enable_cap cap = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = {1}};
    char err[200] = "";

    w->seed = seed;
    w->random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    w->verbose = verbose;
    choose(w);
    o.mmu = w->config.mmu;
    o.ept_levels = w->config.levels;
    o.max_page_level = w->config.max_page_level;
    o.host_memory = w->config.frames;
    o.swap = w->config.swap ? 64u << 20 : 0;
    o.announced = w->config.announced;
    o.host_cpus = 1;
    w->s = softkvm_new(&o, err, sizeof(err));
    if (!w->s) {
        storm_fail(w, "softkvm_new: %s", err);
    }
    w->kvm = softkvm_open_system(w->s);
    w->vm = softkvm_ioctl(w->s, w->kvm, KVM_CREATE_VM, NULL);
    if (w->config.manual) {
        storm_vm_ioctl(w, KVM_ENABLE_CAP, &cap);
    }
    make_slot(w, LOW, 0, LOW_BYTES);
    make_slot(w, TABLES, TABLES_GPA, CPUS * SPACES * TABLE_PAGES * PAGE_BYTES);
    for (unsigned i = 0; i < DATA_SLOTS; i++) {
        make_slot(w, DATA + i, DATA_BYTES * (i + 1), DATA_BYTES);
    }
    put_code(w);
    storm_model_init(w);
    for (unsigned i = 0; i < SLOTS; i++) {
        memcpy(w->slot[i].hva, w->slot[i].model, w->slot[i].bytes);
        if (storm_slot_set(w, i) != 0) {
            storm_fail(w, "slot %u", i);
        }
    }
    for (unsigned c = 0; c < CPUS; c++) {
        start_cpu(w, c);
    }
    return w;
}

void storm_free(struct storm *w)
{
    storm_unpin_all(w);
    softkvm_free(w->s);
    for (unsigned i = 0; i < SLOTS; i++) {
        munmap(w->slot[i].hva, w->slot[i].bytes);
        free(w->slot[i].model);
        free(w->slot[i].mirror);
    }
    free(w);
}

/* ---- one operation ---- */

static void set_regs(struct storm *w, unsigned c, enum storm_op op, const struct kvm_regs *args)
{
    struct kvm_regs r = *args;

    r.rip = routines[op].at;
    r.rsp = STACK_TOP - c * 0x1000;
    r.rflags = 2;
    if (softkvm_ioctl(w->s, w->cpu[c].fd, KVM_SET_REGS, &r) != 0) {
        storm_fail(w, "KVM_SET_REGS");
    }
}

/* A device access of the operation: must be where the model says. `place` is what the operation names. */
static void serve_mmio(struct storm *w, struct kvm_run *run, uint64_t va, unsigned c, uint64_t value,
                       uint64_t *answer)
{
    struct storm_place p = storm_walk(w, c, va);

    w->mmios++;
    if (!p.present || p.slot || run->mmio.phys_addr != p.gpa || run->mmio.len != 8) {
        storm_fail(w, "MMIO at %llx, %u bytes; va %llx leads to %llx", run->mmio.phys_addr, run->mmio.len,
                   (unsigned long long)va, (unsigned long long)p.gpa);
    }
    if (run->mmio.is_write) {
        if (memcmp(run->mmio.data, &value, 8) != 0) {
            storm_fail(w, "MMIO write of another value");
        }
        return;
    }
    *answer = storm_random(w, 0);
    memcpy(run->mmio.data, answer, 8);
}

/* KVM_RUN failed. True: try again. */
static bool failed_for_good_reason(struct storm *w, int r)
{
    if (r == -EFAULT && w->taken) {
        w->efaults++;
        storm_say(w, "  EFAULT as wanted");
        storm_give_back(w);
        return true;
    }
    if (r == -ENOMEM && w->failing) {
        w->enomems++;
        storm_say(w, "  ENOMEM as injected");
        w->failing = false;
        return true;
    }
    return false;
}

struct storm_result storm_run(struct storm *w, unsigned c, enum storm_op op, uint64_t va, uint64_t value,
                              uint64_t va2, unsigned n)
{
    struct kvm_regs regs = {.rax = value, .rbx = va, .rsi = va, .rdi = va2, .rcx = n};
    struct kvm_run *run = w->cpu[c].run;
    struct storm_result res = {0};
    uint64_t answer = 0;
    struct kvm_sregs s;
    int r, rounds = 0;

    set_regs(w, c, op, &regs);
    while (++rounds < 1000) {
        r = softkvm_ioctl(w->s, w->cpu[c].fd, KVM_RUN, NULL);
        if (r < 0 && failed_for_good_reason(w, r)) {
            continue;
        }
        if (r < 0) {
            storm_fail(w, "vCPU %u, operation %d at %llx: KVM_RUN: %s", c, (int)op, (unsigned long long)va,
                       strerror(-r));
        }
        if (run->exit_reason == KVM_EXIT_MMIO) {
            serve_mmio(w, run, va, c, value, &answer);
            continue;
        }
        if (run->exit_reason != KVM_EXIT_IO || (run->io.port != PORT_DONE && run->io.port != PORT_FAULT)) {
            storm_fail(w, "vCPU %u, operation %d at %llx: exit %u", c, (int)op, (unsigned long long)va,
                       run->exit_reason);
        }
        softkvm_ioctl(w->s, w->cpu[c].fd, KVM_GET_REGS, &regs);
        softkvm_ioctl(w->s, w->cpu[c].fd, KVM_GET_SREGS, &s);
        res.faulted = run->io.port == PORT_FAULT;
        res.value = regs.rax;
        res.cr2 = s.cr2;
        return res;
    }
    storm_fail(w, "vCPU %u: no end of retries", c);
}
