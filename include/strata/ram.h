/*
 * libstrata: blocks of guest RAM. Host memory of one of several kinds, a place in the handle's linear
 * RAM numbering (for bitmaps and migration), and dirty bitmaps.
 */
#ifndef STRATA_RAM_H
#define STRATA_RAM_H

#include "strata/common.h"

STRATA_DECLS_BEGIN

enum strata_backing {
    STRATA_ANON,  /* private anonymous memory (shared with STRATA_RAM_SHARED) */
    STRATA_MEMFD, /* a memory file of our own; STRATA_RAM_HUGETLB: of huge pages */
    STRATA_FILE,  /* `path`: a file, made if missing; a directory: a nameless file in it */
    STRATA_FD,    /* `fd`, borrowed until strata_ram_unref() */
    STRATA_HOST,  /* `host`: the caller's memory, which outlives the block */
};

enum strata_ram_flags {
    STRATA_RAM_SHARED = 1 << 0,
    STRATA_RAM_PRIVATE = 1 << 1,     /* copy-on-write; excludes shared */
    STRATA_RAM_READONLY = 1 << 2,    /* map read-only */
    STRATA_RAM_READONLY_FD = 1 << 3, /* open the file read-only */
    STRATA_RAM_NORESERVE = 1 << 4,
    STRATA_RAM_PMEM = 1 << 5,
    STRATA_RAM_RESIZEABLE = 1 << 6,
    STRATA_RAM_PREALLOC = 1 << 7,   /* touch every page at once */
    STRATA_RAM_PROTECTED = 1 << 8,  /* excluded from dumps and forks */
    STRATA_RAM_HUGETLB = 1 << 9,
    STRATA_RAM_NOT_MIGRATABLE = 1 << 10,
    STRATA_RAM_HUGEPAGE = 1 << 11,  /* ask for transparent huge pages */
    STRATA_RAM_NO_HUGEPAGE = 1 << 12,
    STRATA_RAM_MERGEABLE = 1 << 13, /* let KSM merge */
    STRATA_RAM_NO_DUMP = 1 << 14,
    STRATA_RAM_GUEST_MEMFD = 1 << 15, /* private memory beside the shared: see strata_ram_set_guest_fd */
    STRATA_RAM_POSTCOPY_ZERO = 1 << 16, /* pages not yet filled may be read as zero */
};

struct strata_ram_desc {
    const char *name;   /* id for migration and dumps; unique in the handle */
    uint64_t size;      /* bytes, rounded up to the block's page size */
    uint64_t max_size;  /* resizeable: room reserved, else 0 */
    enum strata_backing backing;
    unsigned flags;
    const char *path;
    int fd;
    uint64_t fd_offset;
    uint64_t align;     /* 0: the page size, 2 MiB for large anonymous blocks */
    void *host;
    unsigned prealloc_threads; /* 0: one */
    int numa_policy;           /* 0 default, else MPOL_* with numa_nodes */
    uint64_t numa_nodes;       /* mask of nodes */
    /* after a resize, before the guest sees the new size */
    void (*resized)(void *opaque, const char *name, uint64_t size, void *host);
    /* prealloc progress; return false to cancel (-ECANCELED) */
    bool (*progress)(void *opaque, uint64_t done, uint64_t total);
    void *opaque;
};

/* -EEXIST: name taken; -EINVAL: contradicting flags, bad size, alignment, offset; -ENOMEM, -errno of
 * the system call that failed. A file that was made is removed again on failure. */
STRATA_PUBLIC int strata_ram_new(struct strata_memory *mem, const struct strata_ram_desc *desc,
                                 struct strata_ram **ram);
STRATA_PUBLIC void strata_ram_ref(struct strata_ram *ram);
STRATA_PUBLIC void strata_ram_unref(struct strata_ram *ram);

STRATA_PUBLIC const char *strata_ram_name(const struct strata_ram *ram);
STRATA_PUBLIC void *strata_ram_host(const struct strata_ram *ram);
STRATA_PUBLIC uint64_t strata_ram_size(const struct strata_ram *ram);     /* rounded */
STRATA_PUBLIC uint64_t strata_ram_max_size(const struct strata_ram *ram);
STRATA_PUBLIC uint64_t strata_ram_page_size(const struct strata_ram *ram);
STRATA_PUBLIC uint64_t strata_ram_addr(const struct strata_ram *ram);     /* linear number of byte 0 */
STRATA_PUBLIC unsigned strata_ram_flags(const struct strata_ram *ram);
STRATA_PUBLIC int strata_ram_fd(const struct strata_ram *ram);            /* or -1 */
STRATA_PUBLIC uint64_t strata_ram_fd_offset(const struct strata_ram *ram);
STRATA_PUBLIC struct strata_region *strata_ram_region(const struct strata_ram *ram);
/* Does migration take it along? Log masks follow, listeners are told. -EBUSY, -ENOMEM, a refusal. */
STRATA_PUBLIC int strata_ram_set_migratable(struct strata_ram *ram, bool on);
/* A guest_memfd of the accelerator for private memory; owned by the block from then on. */
STRATA_PUBLIC int strata_ram_set_guest_fd(struct strata_ram *ram, int fd);
STRATA_PUBLIC int strata_ram_guest_fd(const struct strata_ram *ram);

/* Finding blocks. The result is valid inside a read section, or while referenced. */
STRATA_PUBLIC struct strata_ram *strata_ram_by_name(struct strata_memory *mem, const char *name);
STRATA_PUBLIC struct strata_ram *strata_ram_by_addr(struct strata_memory *mem, uint64_t ram_addr,
                                                    uint64_t *offset);
STRATA_PUBLIC struct strata_ram *strata_ram_by_host(struct strata_memory *mem, const void *host,
                                                    uint64_t *offset);
/* In order of size, largest first, in a read section, until fn returns nonzero. */
STRATA_PUBLIC int strata_ram_for_each(struct strata_memory *mem,
                                      int (*fn)(void *opaque, struct strata_ram *ram), void *opaque);
STRATA_PUBLIC uint64_t strata_ram_list_version(const struct strata_memory *mem);

/* Size in bytes; region takes it unrounded. -EINVAL: not resizeable or above max. Everything is dirty
 * afterwards. */
STRATA_PUBLIC int strata_ram_resize(struct strata_ram *ram, uint64_t size);
/* Gives [start, start + len) back to the host: reads as zero (or file contents). -EINVAL: not aligned
 * to the block's page size; -EROFS; -EBUSY: discarding is forbidden. */
STRATA_PUBLIC int strata_ram_discard(struct strata_ram *ram, uint64_t start, uint64_t len);
/* Maps fresh pages over a poisoned range. */
STRATA_PUBLIC int strata_ram_remap(struct strata_ram *ram, uint64_t start, uint64_t len);
/* msync or its like, for file-backed memory. */
STRATA_PUBLIC int strata_ram_writeback(struct strata_ram *ram, uint64_t start, uint64_t len);

/* Told of every block, existing ones at once. */
struct strata_ram_notifier {
    void (*added)(struct strata_ram_notifier *n, struct strata_ram *ram, uint64_t size,
                  uint64_t max_size);
    void (*removed)(struct strata_ram_notifier *n, struct strata_ram *ram);
    void (*resized)(struct strata_ram_notifier *n, struct strata_ram *ram, uint64_t old_size,
                    uint64_t size);
    /* [start, start + len) has been given back to the host, or mapped anew: it reads otherwise now. */
    void (*discarded)(struct strata_ram_notifier *n, struct strata_ram *ram, uint64_t start,
                      uint64_t len);
    struct strata_ram_notifier *next; /* private */
    struct strata_memory *mem;        /* private */
};
STRATA_PUBLIC void strata_ram_notifier_add(struct strata_memory *mem, struct strata_ram_notifier *n);
STRATA_PUBLIC void strata_ram_notifier_del(struct strata_ram_notifier *n);

STRATA_DECLS_END

#endif
