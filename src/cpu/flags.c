/*
 * From lazily kept operands to flags; flags.h tells what each kind leaves. Pure functions.
 *
 * Where the architecture leaves a flag undefined the value is the commonest processors' own: AF is 0
 * after logic, shifts and multiplication.
 */
#include "cpu/flags.h"

/* Operands of the last flag-setting operation, at its size. */
struct operands {
    uint64_t dst, src; /* zero-extended */
    unsigned kind;
    unsigned bits;
    uint64_t mask;
};

static struct operands operands_of(const struct cpu *cpu)
{
    unsigned bits = 8 * CPU_CC_SIZE(cpu->cc_op);
    uint64_t mask = ~UINT64_C(0) >> (64 - bits);

    return (struct operands){cpu->cc_dst & mask, cpu->cc_src & mask, CPU_CC_KIND(cpu->cc_op), bits, mask};
}

/* The first operand of an addition or subtraction, recovered from the result. */
static uint64_t first_operand(const struct operands *o)
{
    switch (o->kind) {
    case CPU_CC_ADD:
        return (o->dst - o->src) & o->mask;
    case CPU_CC_SUB:
        return (o->dst + o->src) & o->mask;
    case CPU_CC_INC:
        return (o->dst - 1) & o->mask;
    case CPU_CC_DEC:
        return (o->dst + 1) & o->mask;
    case CPU_CC_ADC:
        return (o->dst - o->src - 1) & o->mask;
    case CPU_CC_SBB:
        return (o->dst + o->src + 1) & o->mask;
    default:
        return 0;
    }
}

static bool carry(const struct operands *o)
{
    switch (o->kind) {
    case CPU_CC_ADD:
        return o->dst < o->src;
    case CPU_CC_SUB:
        return first_operand(o) < o->src;
    case CPU_CC_INC:
    case CPU_CC_DEC:
        return (o->src & 1) != 0;
    case CPU_CC_ADC:
        return o->dst <= o->src;
    case CPU_CC_SBB:
        return first_operand(o) <= o->src;
    case CPU_CC_SHL:
        return (o->src >> (o->bits - 1)) != 0;
    case CPU_CC_SHR:
        return (o->src & 1) != 0;
    case CPU_CC_MUL:
        return o->src != 0;
    default:
        return false;
    }
}

static bool overflow(const struct operands *o)
{
    uint64_t top = UINT64_C(1) << (o->bits - 1), a = first_operand(o);

    switch (o->kind) {
    case CPU_CC_ADD:
    case CPU_CC_ADC:
        return ((a ^ o->dst) & (o->src ^ o->dst) & top) != 0;
    case CPU_CC_SUB:
    case CPU_CC_SBB:
        return ((a ^ o->src) & (a ^ o->dst) & top) != 0;
    case CPU_CC_INC:
        return o->dst == top;
    case CPU_CC_DEC:
        return o->dst == top - 1;
    case CPU_CC_SHL:
    case CPU_CC_SHR:
        return ((o->dst ^ o->src) & top) != 0;
    case CPU_CC_MUL:
        return o->src != 0;
    default:
        return false;
    }
}

static bool adjust(const struct operands *o)
{
    uint64_t b = o->kind == CPU_CC_INC || o->kind == CPU_CC_DEC ? 1 : o->src;

    if (o->kind == CPU_CC_LOGIC || o->kind >= CPU_CC_SHL) {
        return false;
    }
    return ((first_operand(o) ^ b ^ o->dst) & 0x10) != 0;
}

static bool parity(uint64_t v)
{
    return !__builtin_parity((unsigned)v & 0xff);
}

/* See flags.h. */
uint32_t cpu_arith_flags(const struct cpu *cpu)
{
    struct operands o = operands_of(cpu);
    uint32_t flags = 0;

    if (o.kind == CPU_CC_EFLAGS) {
        return (uint32_t)cpu->cc_dst;
    }
    flags |= carry(&o) ? X86_CF : 0;
    flags |= parity(o.dst) ? X86_PF : 0;
    flags |= adjust(&o) ? X86_AF : 0;
    flags |= o.dst == 0 ? X86_ZF : 0;
    flags |= o.dst >> (o.bits - 1) ? X86_SF : 0;
    flags |= overflow(&o) ? X86_OF : 0;
    return flags;
}

unsigned cpu_carry(const struct cpu *cpu)
{
    struct operands o = operands_of(cpu);

    return o.kind == CPU_CC_EFLAGS ? (unsigned)cpu->cc_dst & X86_CF : carry(&o);
}

static bool is_zero(const struct cpu *cpu, const struct operands *o)
{
    return o->kind == CPU_CC_EFLAGS ? (cpu->cc_dst & X86_ZF) != 0 : o->dst == 0;
}

static bool is_negative(const struct cpu *cpu, const struct operands *o)
{
    return o->kind == CPU_CC_EFLAGS ? (cpu->cc_dst & X86_SF) != 0 : o->dst >> (o->bits - 1);
}

/* See flags.h. Source: the condition codes of Jcc, in encoding order, odd ones negated. */
bool cpu_condition(const struct cpu *cpu, unsigned cc)
{
    struct operands o = operands_of(cpu);
    bool eflags = o.kind == CPU_CC_EFLAGS, yes = false;

    switch (cc >> 1) {
    case 0:
        yes = eflags ? (cpu->cc_dst & X86_OF) != 0 : overflow(&o);
        break;
    case 1:
        yes = eflags ? (cpu->cc_dst & X86_CF) != 0 : carry(&o);
        break;
    case 2:
        yes = is_zero(cpu, &o);
        break;
    case 3:
        yes = is_zero(cpu, &o) || (eflags ? (cpu->cc_dst & X86_CF) != 0 : carry(&o));
        break;
    case 4:
        yes = is_negative(cpu, &o);
        break;
    case 5:
        yes = eflags ? (cpu->cc_dst & X86_PF) != 0 : parity(o.dst);
        break;
    case 6:
    case 7:
        yes = is_negative(cpu, &o) != (eflags ? (cpu->cc_dst & X86_OF) != 0 : overflow(&o));
        if (cc >> 1 == 7) {
            yes = yes || is_zero(cpu, &o);
        }
        break;
    }
    return yes != (bool)(cc & 1);
}
