/*
 * libstrata, common words: handles, addresses, access attributes and results.
 *
 * Every object belongs to one `struct strata_memory`; there is no process-wide state. Calls that can
 * fail return 0 or a negative errno and leave their outputs untouched on failure; words for the last
 * failure of a handle are in strata_memory_error(). Nothing here prints, exits or aborts.
 */
#ifndef STRATA_COMMON_H
#define STRATA_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef STRATA_PUBLIC
#define STRATA_PUBLIC __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
#define STRATA_DECLS_BEGIN extern "C" {
#define STRATA_DECLS_END   }
#else
#define STRATA_DECLS_BEGIN
#define STRATA_DECLS_END
#endif

struct strata_memory;   /* a set of address spaces, their regions and RAM */
struct strata_owner;    /* a device: what regions belong to */
struct strata_region;   /* a node of a region tree */
struct strata_space;    /* an address space: a root region and its flat view */
struct strata_ram;      /* a block of guest RAM: host memory and its dirty bitmaps */
struct strata_listener; /* a registered listener */

/* A byte address in an address space, or an offset in a region. Ranges are [start, last], both
 * inclusive, so that a range may end at 2^64 - 1. */
typedef uint64_t strata_addr;

/* A region size that means 2^64 bytes. */
#define STRATA_SIZE_ALL UINT64_MAX

/* How an access ended; a multi-part access gives the OR of its parts. */
enum strata_result {
    STRATA_OK = 0,
    STRATA_ERROR = 1,        /* the device answered with an error */
    STRATA_DECODE_ERROR = 2, /* nothing there, or it refuses such an access */
    STRATA_ACCESS_ERROR = 4, /* refused by policy: re-entrancy, not memory, permission */
};

/* What travels with an access. All zero: an ordinary access of unspecified origin. */
struct strata_attrs {
    uint16_t requester; /* bus requester id, e.g. a PCI function */
    uint8_t secure : 1;
    uint8_t user : 1;
    uint8_t memory : 1;  /* refuse anything that is not memory */
    uint8_t debug : 1;   /* from a debugger: may write ROM */
    uint8_t requester_valid : 1;
};

#define STRATA_ATTRS_NONE ((struct strata_attrs){0})

enum strata_endian { STRATA_NATIVE_ENDIAN, STRATA_LITTLE_ENDIAN, STRATA_BIG_ENDIAN };

#endif
