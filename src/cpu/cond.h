/*
 * Conditions when the kind of the last flag-setting operation is known at compile time: comparisons on
 * the kept operands instead of flags. `src` is the subtrahend; the first operand is dst + src.
 */
#ifndef STRATA_CPU_COND_H
#define STRATA_CPU_COND_H

#include "cpu/insn.h"

/* Which operands are known to be there. */
enum cond_kind {
    COND_SUB,   /* CMP, SUB */
    COND_LOGIC, /* TEST, AND, OR, XOR */
    COND_ANY,   /* whatever cc_op says */
};

/* First operand a, second b, result r, all at `size`, zero-extended. */
static always_inline bool cond_sub(unsigned cc, unsigned size, uint64_t a, uint64_t b)
{
    uint64_t r = trunc_to(a - b, size);
    bool yes;

    switch (cc >> 1) {
    case 0:
        yes = sign_of((a ^ b) & (a ^ r), size) < 0;
        break;
    case 1:
        yes = a < b;
        break;
    case 2:
        yes = a == b;
        break;
    case 3:
        yes = a <= b;
        break;
    case 4:
        yes = sign_of(r, size) < 0;
        break;
    case 5:
        yes = !__builtin_parity((unsigned)r & 0xff);
        break;
    case 6:
        yes = sign_of(a, size) < sign_of(b, size);
        break;
    default:
        yes = sign_of(a, size) <= sign_of(b, size);
    }
    return yes != (bool)(cc & 1);
}

static always_inline bool cond_logic(unsigned cc, unsigned size, uint64_t r)
{
    bool yes;

    switch (cc >> 1) {
    case 0:
    case 1:
        yes = false;
        break;
    case 2:
    case 3:
        yes = r == 0;
        break;
    case 4:
    case 6:
        yes = sign_of(r, size) < 0;
        break;
    case 5:
        yes = !__builtin_parity((unsigned)r & 0xff);
        break;
    default:
        yes = sign_of(r, size) <= 0;
    }
    return yes != (bool)(cc & 1);
}

static always_inline bool cond_eval(const struct cpu *cpu, enum cond_kind kind, unsigned size, unsigned cc)
{
    if (kind == COND_SUB) {
        return cond_sub(cc, size, trunc_to(cpu->cc_dst + cpu->cc_src, size), cpu->cc_src);
    }
    if (kind == COND_LOGIC) {
        return cond_logic(cc, size, cpu->cc_dst);
    }
    return cpu_condition(cpu, cc);
}

/* Nine classes: COND_SUB and COND_LOGIC by size, then COND_ANY. Zero and sign depend on the result
 * alone, so any kind will do for these. */
#define COND_CLASSES 9
#define COND_CLASS_ANY 8

static inline unsigned cond_class(unsigned hint, unsigned cc)
{
    unsigned kind = CPU_CC_KIND(hint);

    if (hint == CPU_CC_UNKNOWN || kind == CPU_CC_EFLAGS) {
        return COND_CLASS_ANY;
    }
    if (kind == CPU_CC_SUB) {
        return hint & 3u;
    }
    if (kind == CPU_CC_LOGIC || (cc >> 1) == 2 || (cc >> 1) == 4) {
        return 4 + (hint & 3u);
    }
    return COND_CLASS_ANY;
}

/* X(kind, size, cc) for all conditions of one class; lists of conditions. */
#define COND_EACH(X, name, kind, size)                                                             \
    X(name, kind, size, 0) X(name, kind, size, 1) X(name, kind, size, 2) X(name, kind, size, 3)    \
    X(name, kind, size, 4) X(name, kind, size, 5) X(name, kind, size, 6) X(name, kind, size, 7)    \
    X(name, kind, size, 8) X(name, kind, size, 9) X(name, kind, size, 10) X(name, kind, size, 11)  \
    X(name, kind, size, 12) X(name, kind, size, 13) X(name, kind, size, 14) X(name, kind, size, 15)
#define COND_ALL(X, name)                                                                          \
    COND_EACH(X, name, SUB, 1)                                                                     \
    COND_EACH(X, name, SUB, 2)                                                                     \
    COND_EACH(X, name, SUB, 4)                                                                     \
    COND_EACH(X, name, SUB, 8)                                                                     \
    COND_EACH(X, name, LOGIC, 1)                                                                   \
    COND_EACH(X, name, LOGIC, 2)                                                                   \
    COND_EACH(X, name, LOGIC, 4)                                                                   \
    COND_EACH(X, name, LOGIC, 8)                                                                   \
    COND_EACH(X, name, ANY, 1)

/* Row of a table [COND_CLASSES][16]. */
#define COND_ROW(name, kind, size)                                                                 \
    {                                                                                              \
        name##_##kind##_##size##_0, name##_##kind##_##size##_1, name##_##kind##_##size##_2,        \
            name##_##kind##_##size##_3, name##_##kind##_##size##_4, name##_##kind##_##size##_5,    \
            name##_##kind##_##size##_6, name##_##kind##_##size##_7, name##_##kind##_##size##_8,    \
            name##_##kind##_##size##_9, name##_##kind##_##size##_10, name##_##kind##_##size##_11,  \
            name##_##kind##_##size##_12, name##_##kind##_##size##_13, name##_##kind##_##size##_14, \
            name##_##kind##_##size##_15                                                            \
    }
#define COND_TABLE(name)                                                                           \
    {                                                                                              \
        COND_ROW(name, SUB, 1), COND_ROW(name, SUB, 2), COND_ROW(name, SUB, 4),                    \
            COND_ROW(name, SUB, 8), COND_ROW(name, LOGIC, 1), COND_ROW(name, LOGIC, 2),            \
            COND_ROW(name, LOGIC, 4), COND_ROW(name, LOGIC, 8), COND_ROW(name, ANY, 1)             \
    }

/* Condition number of a Jcc, SETcc or CMOVcc: the low nibble of its opcode. */
static inline unsigned cond_of(const ZydisDecodedInstruction *in)
{
    return in->opcode & 15u;
}

#endif
