/* Commands on vCPUs: make, set up, load code, run, and tell how the run ended. */
#include "player.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "arch/regs.h"

static int vcpu_ioctl(struct player *p, unsigned long request, void *arg)
{
    struct player_vcpu *v = player_cur(p);

    return v ? accel_ioctl_ptr(p->ep, v->fd, request, arg) : -ENODEV;
}

/* Long mode is refused unless CPUID grants it: give the vCPU what the endpoint supports. */
static void give_cpuid(struct player *p, struct player_vcpu *v)
{
    size_t size = sizeof(struct kvm_cpuid2) + 256 * sizeof(struct kvm_cpuid_entry2);
    struct kvm_cpuid2 *cpuid = calloc(1, size);

    if (cpuid) {
        cpuid->nent = 256;
        if (accel_ioctl_ptr(p->ep, p->sys, KVM_GET_SUPPORTED_CPUID, cpuid) == 0) {
            accel_ioctl_ptr(p->ep, v->fd, KVM_SET_CPUID2, cpuid);
        }
        free(cpuid);
    }
}

/* vcpu ID [bare]: make it current; bare: without CPUID. */
static int cmd_vcpu(struct player *p)
{
    struct player_vcpu *v = &p->vcpu[p->nr_vcpus];
    unsigned long id = player_arg(p, 1, 0);
    int ret, err = 0;

    for (unsigned i = 0; i < p->nr_vcpus; i++) {
        if (p->vcpu[i].id == id && player_has(p, "use")) {
            p->cur = i;
            return 0;
        }
    }
    if (p->nr_vcpus == PLAYER_MAX_VCPUS) {
        return 2;
    }
    ret = accel_ioctl(p->ep, p->vm, KVM_CREATE_VCPU, id);
    if (ret >= 0) {
        v->fd = ret;
        v->id = id;
        v->run = p->ep->ops->mmap(p->ep, v->fd, p->run_size, 0, &err);
        if (!v->run) {
            player_result(p, err);
            return 0;
        }
        p->cur = p->nr_vcpus++;
        if (!player_has(p, "bare")) {
            give_cpuid(p, v);
        }
        ret = 0;
    }
    player_result(p, ret);
    return 0;
}

static void flat_segment(struct kvm_segment *s, uint16_t sel, uint8_t type, bool is_long)
{
    *s = (struct kvm_segment){
        .base = 0, .limit = 0xffffffff, .selector = sel, .type = type, .present = 1,
        .db = !is_long, .s = 1, .l = is_long, .g = 1,
    };
}

/* real CS: real mode with CS:0 at CS*16; DS, ES, SS as given or 0. */
static int cmd_real(struct player *p)
{
    struct kvm_sregs s;
    int ret = vcpu_ioctl(p, KVM_GET_SREGS, &s);

    if (ret == 0) {
        s.cs.selector = (uint16_t)player_arg(p, 1, 0);
        s.cs.base = (uint64_t)s.cs.selector << 4;
        s.ds.selector = (uint16_t)player_num(p, "ds", 0);
        s.ds.base = (uint64_t)s.ds.selector << 4;
        s.es = s.ss = s.ds;
        ret = vcpu_ioctl(p, KVM_SET_SREGS, &s);
    }
    player_result(p, ret);
    return 0;
}

/* Page tables at gpa `at`: the first 1 GiB one to one, by 2 MiB pages. */
static bool build_tables(struct player *p, uint64_t at)
{
    uint64_t *t = (uint64_t *)player_gpa(p, at, 3 * 4096);

    if (!t) {
        return false;
    }
    memset(t, 0, 3 * 4096);
    t[0] = (at + 4096) | 7;
    t[512] = (at + 8192) | 7;
    for (uint64_t i = 0; i < 512; i++) {
        t[1024 + i] = i << 21 | 0x87;
    }
    return true;
}

/* flat32 | long TABLES: protected mode without paging, or long mode with tables built at TABLES. */
static int cmd_mode(struct player *p)
{
    bool is_long = strcmp(p->word[0], "long") == 0;
    struct kvm_sregs s;
    int ret = vcpu_ioctl(p, KVM_GET_SREGS, &s);

    if (ret == 0) {
        flat_segment(&s.cs, 8, 11, is_long);
        flat_segment(&s.ds, 16, 3, false);
        s.es = s.fs = s.gs = s.ss = s.ds;
        s.cr0 |= X86_CR0_PE | X86_CR0_ET | X86_CR0_NE;
        if (is_long) {
            if (!build_tables(p, player_arg(p, 1, 0))) {
                return 2;
            }
            s.cr3 = player_arg(p, 1, 0);
            s.cr4 |= X86_CR4_PAE;
            s.cr0 |= X86_CR0_PG;
            s.efer |= X86_EFER_LME | X86_EFER_LMA;
        }
        ret = vcpu_ioctl(p, KVM_SET_SREGS, &s);
    }
    player_result(p, ret);
    return 0;
}

static const struct {
    const char *name;
    size_t offset;
} reg_names[] = {
#define R(n) {#n, offsetof(struct kvm_regs, n)}
    R(rax), R(rbx), R(rcx), R(rdx), R(rsi), R(rdi), R(rsp), R(rbp), R(r8),  R(r9),
    R(r10), R(r11), R(r12), R(r13), R(r14), R(r15), R(rip), R(rflags),
};

#define NR_REGS (sizeof(reg_names) / sizeof(reg_names[0]))

/* regs NAME=V...: the others keep their values; rflags becomes 2 unless given. */
static int cmd_regs(struct player *p)
{
    struct kvm_regs r;
    int ret = vcpu_ioctl(p, KVM_GET_REGS, &r);

    if (ret == 0) {
        r.rflags = 2;
        for (size_t i = 0; i < NR_REGS; i++) {
            uint64_t *at = (uint64_t *)((char *)&r + reg_names[i].offset);

            *at = player_num(p, reg_names[i].name, *at);
        }
        ret = vcpu_ioctl(p, KVM_SET_REGS, &r);
    }
    player_result(p, ret);
    return 0;
}

/* getregs NAME... */
static int cmd_getregs(struct player *p)
{
    struct kvm_regs r;
    int ret = vcpu_ioctl(p, KVM_GET_REGS, &r);

    if (ret < 0) {
        player_result(p, ret);
        return 0;
    }
    for (unsigned w = 1; w < p->nr_words; w++) {
        for (size_t i = 0; i < NR_REGS; i++) {
            if (strcmp(reg_names[i].name, p->word[w]) == 0) {
                player_say(p, "%s = %llx", p->word[w],
                           (unsigned long long)*(uint64_t *)((char *)&r + reg_names[i].offset));
            }
        }
    }
    return 0;
}

/* code GPA hex bytes... */
static int cmd_code(struct player *p)
{
    unsigned char *to = player_gpa(p, player_arg(p, 1, 0), p->nr_words);

    if (!to) {
        return 2;
    }
    for (unsigned i = 2; i < p->nr_words; i++) {
        *to++ = (unsigned char)strtoul(p->word[i], NULL, 16);
    }
    return 0;
}

/* answer hex bytes...: what device reads get from now on. */
static int cmd_answer(struct player *p)
{
    for (unsigned i = 1; i < p->nr_words && i <= 8; i++) {
        p->answer[i - 1] = (uint8_t)strtoul(p->word[i], NULL, 16);
    }
    return 0;
}

static void say_data(struct player *p, const char *what, const uint8_t *data, size_t n)
{
    char text[64] = "";
    size_t at = 0;

    for (size_t i = 0; i < n && i < 16; i++) {
        at += (size_t)snprintf(text + at, sizeof(text) - at, " %02x", data[i]);
    }
    player_say(p, "%s%s", what, text);
}

static void say_io(struct player *p, struct kvm_run *run)
{
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    size_t n = (size_t)run->io.size * run->io.count;
    char what[64];

    snprintf(what, sizeof(what), "%s port %x size %u count %u:",
             run->io.direction == KVM_EXIT_IO_OUT ? "out" : "in", run->io.port, run->io.size,
             run->io.count);
    if (run->io.direction == KVM_EXIT_IO_OUT) {
        say_data(p, what, data, n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        data[i] = p->answer[i % run->io.size];
    }
    player_say(p, "%s", what);
}

static void say_mmio(struct player *p, struct kvm_run *run)
{
    char what[64];

    snprintf(what, sizeof(what), "mmio %s %llx len %u:", run->mmio.is_write ? "write" : "read",
             (unsigned long long)run->mmio.phys_addr, run->mmio.len);
    if (run->mmio.is_write) {
        say_data(p, what, run->mmio.data, run->mmio.len);
    } else {
        memcpy(run->mmio.data, p->answer, 8);
        player_say(p, "%s", what);
    }
}

/* Tell the exit; true if the guest may go on. */
static bool say_exit(struct player *p, struct kvm_run *run)
{
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        say_io(p, run);
        return true;
    case KVM_EXIT_MMIO:
        say_mmio(p, run);
        return true;
    case KVM_EXIT_HLT:
        player_say(p, "hlt");
        return false;
    case KVM_EXIT_SHUTDOWN:
        player_say(p, "shutdown");
        return false;
    case KVM_EXIT_INTR:
        player_say(p, "intr");
        return false;
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        player_say(p, "irq window");
        return false;
    case KVM_EXIT_INTERNAL_ERROR:
        player_say(p, "internal error %u", run->internal.suberror);
        return false;
    case KVM_EXIT_FAIL_ENTRY:
        player_say(p, "fail entry");
        return false;
    case KVM_EXIT_DEBUG:
        player_say(p, "debug exception %u pc %llx dr6 %llx", run->debug.arch.exception,
                   (unsigned long long)run->debug.arch.pc, (unsigned long long)run->debug.arch.dr6);
        return false;
    case KVM_EXIT_DIRTY_RING_FULL:
        player_say(p, "dirty ring full");
        return false;
    default:
        player_say(p, "exit %u", run->exit_reason);
        return false;
    }
}

/* Breaks a run that does not end by itself. */
struct watchdog {
    struct player *p;
    struct player_vcpu *v;
    pthread_t runner;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool done, fired;
    unsigned seconds;
};

static void *watch(void *opaque)
{
    struct watchdog *w = opaque;
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += w->seconds;
    pthread_mutex_lock(&w->lock);
    while (!w->done && pthread_cond_timedwait(&w->cond, &w->lock, &until) == 0) {
    }
    if (!w->done) {
        w->fired = true;
        __atomic_store_n(&w->v->run->immediate_exit, 1, __ATOMIC_RELEASE);
        w->p->ep->ops->kick(w->p->ep, w->v->fd, w->runner);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* run [exits=N] [immediate] [seconds=S]: until HLT or another end, at most N exits (default 200). */
static int cmd_run(struct player *p)
{
    struct player_vcpu *v = player_cur(p);
    struct watchdog w = {.p = p, .v = v, .runner = pthread_self(),
                         .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER,
                         .seconds = (unsigned)player_num(p, "seconds", 20)};
    pthread_t thread;
    bool more = true;

    if (!v || pthread_create(&thread, NULL, watch, &w) != 0) {
        return 2;
    }
    v->run->immediate_exit = player_has(p, "immediate");
    for (uint64_t n = player_num(p, "exits", 200); more && n; n--) {
        int ret = accel_ioctl(p->ep, v->fd, KVM_RUN, 0);

        if (ret < 0) {
            player_say(p, w.fired ? "run: no end" : "run: -%s", player_errname(-ret));
            break;
        }
        more = say_exit(p, v->run);
    }
    pthread_mutex_lock(&w.lock);
    w.done = true;
    pthread_cond_signal(&w.cond);
    pthread_mutex_unlock(&w.lock);
    pthread_join(thread, NULL);
    v->run->immediate_exit = 0;
    return 0;
}

/* sregs: control registers. */
static int cmd_sregs(struct player *p)
{
    struct kvm_sregs s;
    int ret = vcpu_ioctl(p, KVM_GET_SREGS, &s);

    if (ret < 0) {
        player_result(p, ret);
        return 0;
    }
    player_say(p, "cr0 %llx cr2 %llx cr3 %llx cr4 %llx efer %llx", (unsigned long long)s.cr0,
               (unsigned long long)s.cr2, (unsigned long long)s.cr3, (unsigned long long)s.cr4,
               (unsigned long long)s.efer);
    return 0;
}

/* segs: code, data, stack, task and local-table segments. */
static int cmd_segs(struct player *p)
{
    struct kvm_sregs s;
    int ret = vcpu_ioctl(p, KVM_GET_SREGS, &s);

    if (ret < 0) {
        player_result(p, ret);
        return 0;
    }
    const struct kvm_segment *seg[] = {&s.cs, &s.ds, &s.ss, &s.tr, &s.ldt};
    const char *name[] = {"cs", "ds", "ss", "tr", "ldt"};

    for (int i = 0; i < 5; i++) {
        player_say(p, "%s sel %x base %llx limit %x type %u s %u dpl %u p %u", name[i], seg[i]->selector,
                   (unsigned long long)seg[i]->base, seg[i]->limit, seg[i]->type, seg[i]->s, seg[i]->dpl,
                   seg[i]->present);
    }
    return 0;
}

/* msr INDEX [=VALUE]: KVM_GET_MSRS or KVM_SET_MSRS of one. */
static int cmd_msr(struct player *p)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } m = {{.nmsrs = 1}, {.index = (uint32_t)player_arg(p, 1, 0)}};
    bool set = player_has(p, "set");
    int ret;

    m.entry.data = player_num(p, "set", 0);
    ret = vcpu_ioctl(p, set ? KVM_SET_MSRS : KVM_GET_MSRS, &m);
    if (ret == 1 && !set) {
        player_say(p, "%llx", (unsigned long long)m.entry.data);
    } else {
        player_result(p, ret);
    }
    return 0;
}

const struct player_command player_vcpu_commands[] = {
    {"vcpu", cmd_vcpu}, {"real", cmd_real},       {"flat32", cmd_mode}, {"long", cmd_mode},
    {"regs", cmd_regs}, {"getregs", cmd_getregs}, {"code", cmd_code},   {"answer", cmd_answer},
    {"run", cmd_run},   {"sregs", cmd_sregs}, {"segs", cmd_segs},     {"msr", cmd_msr},     {NULL, NULL},
};
