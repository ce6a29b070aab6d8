/*
 * Making cases for the instruction oracle: encodings found by walking the opcode maps with the decoder,
 * and operands, random with a good share of the values where things go wrong.
 */
#ifndef STRATA_TESTS_CPU_NATIVE_GEN_H
#define STRATA_TESTS_CPU_NATIVE_GEN_H

#include <Zydis/Zydis.h>

#include "../oracle/native.h"

#define NATIVE_MAX_INSNS 6

/* One point of the opcode maps that the decoder and the filter accept. */
struct native_template {
    uint16_t mnemonic;
    uint8_t prefix;   /* 0, 0x66, 0xf2, 0xf3 */
    uint8_t map;      /* 0: one byte, 1: 0f, 2: 0f 38, 3: 0f 3a */
    uint8_t opcode;
    uint8_t reg;      /* ModRM.reg; 0xff if there is no ModRM */
    uint8_t rex, modrm; /* with which it decodes, for sure */
};

struct native_gen {
    uint64_t rng[2];
    bool is_compat; /* 32-bit code */
    ZydisDecoder decoder;
    struct native_template *templates; /* sorted by mnemonic */
    unsigned ntemplates;
    unsigned first[ZYDIS_MNEMONIC_MAX_VALUE + 2]; /* of each mnemonic's templates */
    uint16_t mnemonics[ZYDIS_MNEMONIC_MAX_VALUE + 1];
    unsigned nmnemonics;
    uint8_t data[NATIVE_DATA_SIZE];
};

struct native_insn {
    ZydisDecodedInstruction in;
    ZydisDecodedOperand opnd[ZYDIS_MAX_OPERAND_COUNT];
    uint8_t bytes[16];
};

/* A case: instructions and the state they start from. undefined[n] are the RFLAGS bits not to be compared
 * when n instructions have been done. */
struct native_case {
    unsigned ninsns, len;
    struct native_insn insn[NATIVE_MAX_INSNS];
    uint8_t code[128];
    struct native_regs regs;
    uint32_t undefined[NATIVE_MAX_INSNS + 1];
};

/* 0, or -1. only: a mnemonic's name, or NULL for all. is_compat: 32-bit code, else 64-bit. */
int native_gen_init(struct native_gen *g, uint64_t seed, bool is_compat, const char *only);
void native_gen_fini(struct native_gen *g);
uint64_t native_gen_random(struct native_gen *g);

/* Make a case of one instruction of mnemonic m, or of several of any; g->data is what memory starts with. */
void native_gen_single(struct native_gen *g, unsigned m, struct native_case *c);
void native_gen_sequence(struct native_gen *g, struct native_case *c);

/* Random register contents, and random memory (native_values.c). */
void native_gen_registers(struct native_gen *g, struct native_regs *r);
uint64_t native_gen_integer(struct native_gen *g);
void native_gen_vector(struct native_gen *g, uint8_t v[16]);
void native_gen_data(struct native_gen *g);
void native_gen_operand(struct native_gen *g, const struct native_insn *insn, uint8_t *at, unsigned room);

/* Is the decoded instruction one that the comparison is for? (native_filter.c) */
bool native_filter(const ZydisDecodedInstruction *in, const ZydisDecodedOperand *opnd);

/* Flags that the architecture leaves undefined after this instruction with these operands. */
uint32_t native_undefined_flags(const struct native_insn *insn, const struct native_regs *r);

#endif
