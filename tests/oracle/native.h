/*
 * The oracle of instruction results: the host processor itself. Runs instruction bytes in this process
 * with all registers given, and tells what they left behind: registers, flags, x87 and SSE state, or
 * the exception they raised. Shares no code with src.
 *
 * The code lies at NATIVE_CODE + NATIVE_CODE_AT, the data at NATIVE_DATA: the same linear addresses as in the
 * guest that is compared. Around both nothing is mapped. Addresses below 4 GiB, so that every addressing form
 * reaches them. One user at a time in a process: signal handlers and the trampoline need fixed places.
 */
#ifndef STRATA_TESTS_ORACLE_NATIVE_H
#define STRATA_TESTS_ORACLE_NATIVE_H

#include <stdbool.h>
#include <stdint.h>

#define NATIVE_CODE      UINT64_C(0x20000000)
#define NATIVE_CODE_AT   0x800u
#define NATIVE_DATA      UINT64_C(0x10000000)
#define NATIVE_DATA_SIZE 0x2000u

#define NATIVE_NO_VECTOR 0xffu

/* All that an instruction can see and change, in the order of encoding. */
struct native_regs {
    uint64_t gpr[16];
    uint64_t rip, rflags;
    uint8_t fx[512] __attribute__((aligned(64))); /* FXSAVE64 image */
};

struct native_outcome {
    unsigned vector; /* NATIVE_NO_VECTOR: ran to its end */
    uint64_t error;  /* error code; of #PF */
    uint64_t cr2;    /* of #PF */
};

/* Map the pages and install the signal handlers. 0 or -errno. */
int native_open(void);
void native_close(void);

/* The data pages: NATIVE_DATA_SIZE bytes, to be filled before and compared after a run. */
uint8_t *native_data(void);

/*
 * Run len bytes of code (at most 256), 64-bit or (is_compat) 32-bit, with the registers of *io, which receives the result. rip is set to the
 * first byte; after an exception it is where that was reported. RFLAGS: arithmetic flags and DF count.
 * 32-bit code has flat segments; of the general registers the lower halves of the first eight count.
 */
void native_run(const uint8_t *code, unsigned len, bool is_compat, struct native_regs *io,
                struct native_outcome *out);

#endif
