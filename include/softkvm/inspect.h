/*
 * Looking into libsoftkvm: ioctls of its own, numbered 0xAF/0x00 up, which the kernel's KVM does not
 * know (it answers ENOTTY; so a client may just ask). All structures are plain data with fixed widths;
 * a client sets `size` to sizeof of what it knows, and the engine fills no more than that.
 *
 * Asked of a VM descriptor: SOFTKVM_EXPLAIN_GPA, _SLOTS, _EPT, _FRAME, _COUNTERS, _EXPLAIN_HVA.
 * Asked of a vCPU descriptor: SOFTKVM_EXPLAIN_GVA, _COUNTERS. They take the vCPU's lock: it must be
 * out of KVM_RUN, or the call waits until it is.
 * Asked of the system descriptor: SOFTKVM_COUNTERS (of the host model).
 *
 * Looking changes nothing: no page is faulted in, no accessed bit is set.
 */
#ifndef SOFTKVM_INSPECT_H
#define SOFTKVM_INSPECT_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define SOFTKVM_IO 0xAF

/* One table entry on the way. */
struct softkvm_entry {
    __u64 table;   /* address of the table: gpa for the guest's own, hpa for EPT and host tables */
    __u64 value;   /* the entry, raw */
    __u32 index;   /* in its table */
    __u8 level;    /* 1 = leaf of 4 KiB .. 5 */
    __u8 present;
    __u8 leaf;
    __u8 format;   /* SOFTKVM_FMT_*: how to read `value` */
    char text[48]; /* "R W X wb -> 0x1234000" */
};

/* = enum arch_format_id of the library's sources */
#define SOFTKVM_FMT_32   0
#define SOFTKVM_FMT_PAE  1
#define SOFTKVM_FMT_LONG 2
#define SOFTKVM_FMT_EPT  3
#define SOFTKVM_FMT_NPT  4

#define SOFTKVM_MAX_WALK 5

/* How far the explanation got; each stage implies the ones before. */
#define SOFTKVM_STAGE_GUEST 1 /* gva -> gpa: the guest's tables translate it */
#define SOFTKVM_STAGE_SLOT  2 /* gpa -> hva: a slot holds it */
#define SOFTKVM_STAGE_EPT   4 /* gpa -> hpa: the second stage maps it */
#define SOFTKVM_STAGE_HOST  8 /* hva -> hpa: the host's tables map it */
#define SOFTKVM_STAGE_FRAME 16 /* hpa -> frame with contents */
#define SOFTKVM_STAGE_MMIO  32 /* the second stage holds an MMIO entry */
#define SOFTKVM_STAGE_PRIVATE 64 /* the page is private: its contents are not shown */

struct softkvm_frame_info {
    __u64 pfn;
    __u32 refcount, gen;
    __u8 type;         /* enum host_frame_type of the library's sources; type_name in words */
    __u8 order, flags, owner;
    char type_name[20];
    __u64 data;        /* pointer to the contents, 0 if none */
};

/*
 * SOFTKVM_EXPLAIN_GVA, _GPA, _HVA: an address followed through every layer that it reaches.
 * In: size; gva (GVA), gpa (GPA) or hva (HVA, the first slot that maps it is taken).
 */
struct softkvm_explain {
    __u32 size;
    __u32 stages;                  /* SOFTKVM_STAGE_* reached */
    __u64 gva, gpa, hva, hpa;
    __u64 cr0, cr3, cr4, efer;     /* GVA: what selected the walk */
    __u32 paging;                  /* GVA: 0 none, else levels of the guest's tables (2, 3, 4, 5) */
    __u32 nr_guest, nr_ept, nr_host;
    struct softkvm_entry guest[SOFTKVM_MAX_WALK]; /* top first */
    /* For each guest table entry: where the table itself lies, after the second stage. 0: unmapped. */
    __u64 guest_table_hpa[SOFTKVM_MAX_WALK];
    struct softkvm_entry ept[SOFTKVM_MAX_WALK];
    struct softkvm_entry host[SOFTKVM_MAX_WALK];
    __u64 eptp;
    __u32 slot_id, slot_flags;     /* id with the address-space id in the upper 16 bits */
    __u64 slot_gpa, slot_size, slot_hva;
    __u64 guest_page_size, ept_page_size, host_page_size;
    struct softkvm_frame_info frame;
    __u8 data[16];                 /* the first bytes there, when STAGE_FRAME */
};

/* SOFTKVM_SLOTS: the active slots in gfn order. In: size, count = room at `slots`. Out: count = how
 * many there are (may exceed the room). */
struct softkvm_slot {
    __u32 id, flags;
    __u64 gpa, size, hva;
    __u64 mapped_4k, mapped_2m, mapped_1g; /* second-stage leaves by size */
    __u64 dirty;                           /* bits set in the log, if any */
};

struct softkvm_slots {
    __u32 size, count;
    __u64 generation;
    __u64 slots; /* pointer to struct softkvm_slot[] */
};

/*
 * SOFTKVM_EPT: the present second-stage leaves, MMIO entries included, from `gpa` on. In: size, gpa,
 * count = room. Out: count filled, gpa = where to go on (0 at the end).
 */
struct softkvm_ept_leaf {
    __u64 gpa, value;
    __u8 level, is_mmio, pad[6];
};

struct softkvm_ept {
    __u32 size, count;
    __u64 gpa;
    __u64 eptp;
    __u64 leaves;       /* pointer to struct softkvm_ept_leaf[] */
    __u64 tables;       /* table frames in use */
    __u64 pages[4];     /* leaves per level; [0] = MMIO entries */
};

/* SOFTKVM_FRAME: a frame of the simulated host. In: size, info.pfn. */
struct softkvm_frame {
    __u32 size, pad;
    struct softkvm_frame_info info;
};

/*
 * SOFTKVM_COUNTERS: named counters. In: size, count = room. Out: count = how many there are. Asked of
 * a VM: sums over its vCPUs included; of a vCPU: its own; of the system: the host model's.
 */
struct softkvm_counter {
    char name[40];
    __u64 value;
};

struct softkvm_counters {
    __u32 size, count;
    __u64 counters; /* pointer to struct softkvm_counter[] */
};

/* SOFTKVM_CHECK: verify every internal invariant of the VM (tables against slots and host pages).
 * Returns 0, or -EUCLEAN with the first breach in text. vCPUs must be out of KVM_RUN. */
struct softkvm_check {
    __u32 size, pad;
    char text[248];
};

#define SOFTKVM_EXPLAIN_GVA _IOWR(SOFTKVM_IO, 0x00, struct softkvm_explain)
#define SOFTKVM_EXPLAIN_GPA _IOWR(SOFTKVM_IO, 0x01, struct softkvm_explain)
#define SOFTKVM_EXPLAIN_HVA _IOWR(SOFTKVM_IO, 0x02, struct softkvm_explain)
#define SOFTKVM_SLOTS       _IOWR(SOFTKVM_IO, 0x03, struct softkvm_slots)
#define SOFTKVM_EPT         _IOWR(SOFTKVM_IO, 0x04, struct softkvm_ept)
#define SOFTKVM_FRAME       _IOWR(SOFTKVM_IO, 0x05, struct softkvm_frame)
#define SOFTKVM_COUNTERS    _IOWR(SOFTKVM_IO, 0x06, struct softkvm_counters)
#define SOFTKVM_CHECK       _IOWR(SOFTKVM_IO, 0x07, struct softkvm_check)

#endif
