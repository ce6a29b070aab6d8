/* The host processor as an oracle; see native.h. Exceptions come back as signals on a stack of their own. */
#include "native.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define RFLAGS_IN 0xcd5u /* CF PF AF ZF SF DF OF */

/* Known to the trampoline by offset. */
struct context {
    struct native_regs regs; /* gpr 0, rip 128, rflags 136, fx 192 */
    uint64_t host_rsp;       /* 704 */
    struct {
        uint32_t offset;
        uint16_t selector;
    } compat;                /* 712 */
    struct native_outcome out;
    bool running;
};
_Static_assert(offsetof(struct native_regs, rip) == 128, "trampoline");
_Static_assert(offsetof(struct native_regs, rflags) == 136, "trampoline");
_Static_assert(offsetof(struct native_regs, fx) == 192, "trampoline");
_Static_assert(offsetof(struct context, host_rsp) == 704, "trampoline");
_Static_assert(offsetof(struct context, compat) == 712, "trampoline");

/* Linux's flat user segments. */
#define SEL_CODE32 0x23
#define SEL_DATA   0x2b
#define SEL_CODE64 0x33
#define AT_BACK    0xf00u /* in the code page: the way from 32-bit code to native_leave */

struct context native_context __attribute__((visibility("hidden"), aligned(64)));
static uint8_t signal_stack[65536] __attribute__((aligned(16)));
static struct sigaction old_actions[32];
static const int caught[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};

void native_enter(void) __attribute__((visibility("hidden")));
void native_enter_compat(void) __attribute__((visibility("hidden")));
void native_leave(void) __attribute__((visibility("hidden")));
void native_leave_fault(void) __attribute__((visibility("hidden")));

__asm__(".text\n"
        ".globl native_enter, native_enter_compat, native_leave, native_leave_fault\n"
        ".hidden native_enter, native_enter_compat, native_leave, native_leave_fault\n"
        "native_enter:\n"
        "  push %rbx\n  push %rbp\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
        "  mov %rsp, native_context+704(%rip)\n"
        "  fxrstor64 native_context+192(%rip)\n"
        "  pushq native_context+136(%rip)\n  popfq\n"
        "  mov native_context+0(%rip), %rax\n"
        "  mov native_context+8(%rip), %rcx\n"
        "  mov native_context+16(%rip), %rdx\n"
        "  mov native_context+24(%rip), %rbx\n"
        "  mov native_context+32(%rip), %rsp\n"
        "  mov native_context+40(%rip), %rbp\n"
        "  mov native_context+48(%rip), %rsi\n"
        "  mov native_context+56(%rip), %rdi\n"
        "  mov native_context+64(%rip), %r8\n"
        "  mov native_context+72(%rip), %r9\n"
        "  mov native_context+80(%rip), %r10\n"
        "  mov native_context+88(%rip), %r11\n"
        "  mov native_context+96(%rip), %r12\n"
        "  mov native_context+104(%rip), %r13\n"
        "  mov native_context+112(%rip), %r14\n"
        "  mov native_context+120(%rip), %r15\n"
        "  jmp *native_context+128(%rip)\n"
        "native_enter_compat:\n"
        "  ljmp *native_context+712(%rip)\n"
        "native_leave:\n"
        "  mov %rax, native_context+0(%rip)\n"
        "  mov %rcx, native_context+8(%rip)\n"
        "  mov %rdx, native_context+16(%rip)\n"
        "  mov %rbx, native_context+24(%rip)\n"
        "  mov %rsp, native_context+32(%rip)\n"
        "  mov %rbp, native_context+40(%rip)\n"
        "  mov %rsi, native_context+48(%rip)\n"
        "  mov %rdi, native_context+56(%rip)\n"
        "  mov %r8, native_context+64(%rip)\n"
        "  mov %r9, native_context+72(%rip)\n"
        "  mov %r10, native_context+80(%rip)\n"
        "  mov %r11, native_context+88(%rip)\n"
        "  mov %r12, native_context+96(%rip)\n"
        "  mov %r13, native_context+104(%rip)\n"
        "  mov %r14, native_context+112(%rip)\n"
        "  mov %r15, native_context+120(%rip)\n"
        "  mov native_context+704(%rip), %rsp\n"
        "  pushfq\n  popq native_context+136(%rip)\n"
        "  cld\n"
        "  fxsave64 native_context+192(%rip)\n"
        "native_leave_fault:\n"
        "  fninit\n"
        "  ldmxcsr native_default_mxcsr(%rip)\n"
        "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbp\n  pop %rbx\n"
        "  ret\n"
        ".section .rodata\n"
        "native_default_mxcsr: .long 0x1f80\n"
        ".text\n");

/* Registers of the interrupted code, in encoding order. */
static const int reg_index[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static void on_signal(int number, siginfo_t *info __attribute__((unused)), void *context)
{
    ucontext_t *uc = context;
    greg_t *g = uc->uc_mcontext.gregs;
    struct context *c = &native_context;

    if (!c->running) {
        signal(number, SIG_DFL); /* the test's own fault: let it happen again, for real */
        return;
    }
    for (unsigned i = 0; i < 16; i++) {
        c->regs.gpr[i] = (uint64_t)g[reg_index[i]];
    }
    c->regs.rip = (uint64_t)g[REG_RIP];
    c->regs.rflags = (uint64_t)g[REG_EFL];
    memcpy(c->regs.fx, uc->uc_mcontext.fpregs, 464);
    c->out.vector = (unsigned)g[REG_TRAPNO];
    c->out.error = (uint64_t)g[REG_ERR];
    c->out.cr2 = (uint64_t)g[REG_CR2];
    g[REG_RIP] = (greg_t)(uintptr_t)native_leave_fault;
    g[REG_CSGSFS] = (g[REG_CSGSFS] & ~(greg_t)0xffff) | SEL_CODE64;
    g[REG_RSP] = (greg_t)c->host_rsp;
    g[REG_EFL] &= ~(greg_t)(RFLAGS_IN | 0x100);
}

static int map_at(uint64_t at, size_t size, int prot)
{
    void *p = mmap((void *)(uintptr_t)at, size, prot,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

    return p == MAP_FAILED ? -errno : 0;
}

int native_open(void)
{
    struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    stack_t ss = {.ss_sp = signal_stack, .ss_size = sizeof(signal_stack)};
    int rc = map_at(NATIVE_CODE, 0x1000, PROT_READ | PROT_WRITE | PROT_EXEC);

    if (!rc) {
        rc = map_at(NATIVE_DATA, NATIVE_DATA_SIZE, PROT_READ | PROT_WRITE);
    }
    if (rc) {
        return rc;
    }
    sigaltstack(&ss, NULL);
    sigemptyset(&sa.sa_mask);
    for (unsigned i = 0; i < sizeof(caught) / sizeof(caught[0]); i++) {
        sigaction(caught[i], &sa, &old_actions[caught[i]]);
    }
    return 0;
}

void native_close(void)
{
    for (unsigned i = 0; i < sizeof(caught) / sizeof(caught[0]); i++) {
        sigaction(caught[i], &old_actions[caught[i]], NULL);
    }
    munmap((void *)(uintptr_t)NATIVE_CODE, 0x1000);
    munmap((void *)(uintptr_t)NATIVE_DATA, NATIVE_DATA_SIZE);
}

uint8_t *native_data(void)
{
    return (uint8_t *)(uintptr_t)NATIVE_DATA;
}

static void set_data_segments(uint16_t sel)
{
    __asm__ volatile("mov %w0, %%ds\n\tmov %w0, %%es" : : "r"((uint32_t)sel));
}

/* Put the code in place, and behind it the jump back. */
static void place(const uint8_t *code, unsigned len, bool is_compat)
{
    static const uint8_t jump[6] = {0xff, 0x25, 0, 0, 0, 0}; /* jmp *0(%rip) */
    static const uint8_t far_jump[7] = {0xea, AT_BACK & 0xff, AT_BACK >> 8, 0, 0x20, SEL_CODE64, 0};
    uint8_t *page = (uint8_t *)(uintptr_t)NATIVE_CODE, *end = page + NATIVE_CODE_AT + len;
    uint8_t *back = is_compat ? page + AT_BACK : end;
    void (*leave)(void) = native_leave;

    memcpy(page + NATIVE_CODE_AT, code, len);
    if (is_compat) {
        memcpy(end, far_jump, sizeof(far_jump));
    }
    memcpy(back, jump, sizeof(jump));
    memcpy(back + sizeof(jump), &leave, 8);
}

void native_run(const uint8_t *code, unsigned len, bool is_compat, struct native_regs *io,
                struct native_outcome *out)
{
    struct context *c = &native_context;

    place(code, len, is_compat);
    c->regs = *io;
    c->regs.rip = is_compat ? (uint64_t)(uintptr_t)native_enter_compat : NATIVE_CODE + NATIVE_CODE_AT;
    c->regs.rflags = (io->rflags & RFLAGS_IN) | 0x202;
    c->compat.offset = (uint32_t)NATIVE_CODE + NATIVE_CODE_AT;
    c->compat.selector = SEL_CODE32;
    c->out = (struct native_outcome){.vector = NATIVE_NO_VECTOR};
    if (is_compat) {
        set_data_segments(SEL_DATA);
    }
    c->running = true;
    native_enter();
    c->running = false;
    if (is_compat) {
        set_data_segments(0);
    }
    *io = c->regs;
    *out = c->out;
    if (out->vector == NATIVE_NO_VECTOR) {
        io->rip = NATIVE_CODE + NATIVE_CODE_AT + len;
    }
}
