/*
 * Raising and delivering events. An operation records its fault; the run loop makes it cpu->event; here it
 * is carried through the IDT or the vector table, and a fault met on the way is joined with it by the
 * double-fault rules.
 *
 *   cpu->fault --run loop--> cpu->event --cpu_deliver_once()--> handler
 *                               ^  met a fault: join()  |
 *                               +-----------------------+--> triple fault: exit
 *
 * Invariants
 *  1. Until delivery is complete nothing architectural has changed but CR2, DR6 and memory below the
 *     new stack pointer, so that delivery can be tried again after an exit.
 *  2. cpu->event stays until its handler's first instruction is next.
 *
 * Locks: none.
 */
#include "cpu/exception.h"

#include "cpu/deliver.h"
#include "cpu/flags.h"
#include "cpu/system.h"

static bool record(struct cpu *cpu, const struct cpu_op *op, struct cpu_event ev)
{
    cpu_sync_rip(cpu, op);
    ev.type = CPU_EVENT_EXCEPTION;
    cpu->fault = ev;
    return false;
}

/* Record an exception without error code at op's instruction. Always false. */
bool cpu_raise(struct cpu *cpu, const struct cpu_op *op, enum x86_vector vector)
{
    return record(cpu, op, (struct cpu_event){.vector = (uint8_t)vector});
}

/* Record one with an error code. While an external event is delivered (op of cpu_deliver_event()) the code gets
 * its EXT bit. Always false. */
bool cpu_raise_code(struct cpu *cpu, const struct cpu_op *op, enum x86_vector vector, uint32_t code)
{
    bool ext = !op->fn && op->dst == CPU_DELIVER_EXT;

    return record(cpu, op,
                  (struct cpu_event){.vector = (uint8_t)vector, .has_error = 1, .error = code | ext});
}

/* Record a page fault: la goes to CR2 when it is delivered. Always false. */
bool cpu_raise_pf(struct cpu *cpu, const struct cpu_op *op, uint64_t la, uint32_t code)
{
    return record(cpu, op,
                  (struct cpu_event){.vector = X86_VEC_PF, .has_error = 1, .error = code, .payload = la});
}

/* Classes of the double-fault rules. */
enum fault_class { BENIGN, CONTRIBUTORY, PAGE_FAULT, DOUBLE_FAULT };

static enum fault_class class_of(const struct cpu_event *ev)
{
    if (ev->type != CPU_EVENT_EXCEPTION) {
        return BENIGN;
    }
    switch (ev->vector) {
    case X86_DE:
    case X86_TS:
    case X86_NP:
    case X86_SS:
    case X86_GP:
        return CONTRIBUTORY;
    case X86_VEC_PF:
        return PAGE_FAULT;
    case X86_VEC_DF:
        return DOUBLE_FAULT;
    default:
        return BENIGN;
    }
}

enum joined { DELIVER_SECOND, DELIVER_DOUBLE, SHUT_DOWN };

/* A fault met while `first` was delivered: what now? Source: Intel, "Interrupt 8, double fault". */
static enum joined join(const struct cpu_event *first, const struct cpu_event *second)
{
    enum fault_class a = class_of(first), b = class_of(second);

    if (a == DOUBLE_FAULT) {
        return b == BENIGN ? DELIVER_SECOND : SHUT_DOWN;
    }
    if ((a == CONTRIBUTORY && b == CONTRIBUTORY) || (a == PAGE_FAULT && b >= CONTRIBUTORY)) {
        return DELIVER_DOUBLE;
    }
    return DELIVER_SECOND;
}

/* Is EXT set in error codes met while delivering this event? */
static bool is_external(const struct cpu_event *ev)
{
    return ev->type != CPU_EVENT_SOFT_INTR && ev->type != CPU_EVENT_SOFT_EXC;
}

/* What an event does to CR2 and the debug registers before its handler is looked for. */
static void apply_payload(struct cpu *cpu, const struct cpu_event *ev)
{
    if (ev->type != CPU_EVENT_EXCEPTION) {
        return;
    }
    if (ev->vector == X86_VEC_PF) {
        cpu->cr2 = ev->payload;
    } else if (ev->vector == X86_DB) {
        cpu->dr6 |= ev->payload & 0xe00f;
        cpu->dr7 &= ~UINT64_C(0x2000);
    }
}

static void count(struct cpu *cpu, const struct cpu_event *ev)
{
    if (ev->type == CPU_EVENT_INTR || ev->type == CPU_EVENT_NMI) {
        cpu->counters.interrupts++;
        return;
    }
    cpu->counters.exceptions++;
    if (ev->type == CPU_EVENT_EXCEPTION && ev->vector == X86_VEC_PF) {
        cpu->counters.page_faults++;
    }
}

static void delivered(struct cpu *cpu)
{
    count(cpu, &cpu->event);
    if (cpu->event.type == CPU_EVENT_NMI) {
        cpu->nmi_blocked = 1;
    }
    cpu->event.type = CPU_EVENT_NONE;
    cpu->interrupt_shadow = 0;
}

/* Replace the event by what it becomes with the fault just met; see exception.h. Source: Intel, "Interrupt 8". */
bool cpu_join_fault(struct cpu *cpu)
{
    switch (join(&cpu->event, &cpu->fault)) {
    case DELIVER_DOUBLE:
        cpu->event = (struct cpu_event){
            .type = CPU_EVENT_EXCEPTION, .vector = X86_VEC_DF, .has_error = 1};
        break;
    case DELIVER_SECOND:
        cpu->event = cpu->fault;
        break;
    case SHUT_DOWN:
        cpu->event.type = CPU_EVENT_NONE;
        cpu->fault.type = CPU_EVENT_NONE;
        cpu->exit.reason = CPU_EXIT_TRIPLE_FAULT;
        cpu->exit.insn_len = 0;
        return false;
    }
    cpu->fault.type = CPU_EVENT_NONE;
    return true;
}

/*
 * Deliver cpu->event: see exception.h. The operation that stands for the delivery has no function, and
 * RIP is what it was: it is not touched before success.
 */
bool cpu_deliver_event(struct cpu *cpu)
{
    struct cpu_op op = {.nth = 1, .seg = 6};

    for (;;) {
        op.pgoff = (uint16_t)page_offset(cpu->rip);
        cpu->regs[CPU_IP_PAGE] = cpu->rip - op.pgoff;
        op.dst = is_external(&cpu->event) ? CPU_DELIVER_EXT : 0;
        apply_payload(cpu, &cpu->event);
        cpu->fault.type = CPU_EVENT_NONE;
        if (cpu_deliver_once(cpu, &op)) {
            delivered(cpu);
            return true;
        }
        if (cpu->fault.type == CPU_EVENT_NONE || !cpu_join_fault(cpu)) {
            return false;
        }
    }
}
