/*
 * One instance of the engine: its simulated host, its descriptors, its injected services. Everything
 * that a call can reach hangs from here; there is no other state in the process.
 *
 * Descriptors are slots in chunks that never move and are freed with the instance, so that looking one
 * up takes no lock and may be done by a signal handler: a slot's reference count is raised from
 * non-zero, then its contents are valid until it is lowered again.
 *
 * Locks: `lock` (chunks, allocation of a descriptor, list of mappings); a leaf.
 */
#ifndef STRATA_SOFTKVM_ENGINE_H
#define STRATA_SOFTKVM_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/list.h"
#include "base/lock.h"
#include "base/trace.h"
#include "host/frame.h"
#include "host/mm.h"
#include "softkvm/softkvm.h"

struct kvm_vm;
struct kvm_vcpu;

enum kvm_file_kind {
    KVM_FILE_NONE,
    KVM_FILE_SYSTEM,
    KVM_FILE_VM,
    KVM_FILE_VCPU,
    KVM_FILE_STATS, /* object: struct kvm_stats_file */
    KVM_FILE_GMEM,  /* object: struct kvm_gmem */
};

/* What a descriptor names. Holds one reference on `object` from open to the last put. */
struct kvm_file {
    _Atomic uint32_t refs; /* 0: free */
    _Atomic uint32_t open; /* 1 until closed; a closed file serves only calls already inside */
    enum kvm_file_kind kind;
    void *object;
};

#define KVM_FILES_PER_CHUNK 64
#define KVM_MAX_CHUNKS      1024

/* A mapping of a descriptor's pages. Holds a reference on the object. */
struct kvm_mapping {
    struct list node;
    enum kvm_file_kind kind;
    void *object;
    void *addr;
    size_t length;
    bool owned; /* the pages are this mapping's */
};

struct softkvm {
    /* constant after creation */
    struct softkvm_options options;
    struct host_memory *hm;
    struct host_mm *mm;
    uint32_t tsc_khz;         /* of the host's counter, measured */
    unsigned max_page_level;  /* 1..3 */
    struct base_trace trace;
    bool guarded;             /* a user of base/guard.h's handlers */
    _Atomic uint32_t next_vm; /* names VMs in the log */

    pthread_mutex_t lock;
    /* under lock for writing; read without */
    _Atomic(struct kvm_file *) chunks[KVM_MAX_CHUNKS];
    _Atomic uint32_t nr_chunks;
    /* under lock */
    struct list mappings;
};

/* Allocate zeroed memory; null when short, or when the injected allocator says so. free() frees. */
void *kvm_alloc(struct softkvm *s, size_t bytes) must_check;
/* The same without zeroing it by hand for big tables: pages come zeroed from the host. */
void *kvm_alloc_array(struct softkvm *s, size_t count, size_t bytes) must_check;

/* One line to the log sink. level as syslog's. */
void kvm_log(struct softkvm *s, int level, const char *fmt, ...) printf_like(3, 4);

/* New descriptor for object; takes over the caller's reference. >= 0, -EMFILE, -ENOMEM (the caller
 * keeps its reference then). */
int kvm_file_open(struct softkvm *s, enum kvm_file_kind kind, void *object) must_check;

/* The file of fd with a reference, or null. put: the last one closes the object. */
struct kvm_file *kvm_file_get(struct softkvm *s, int fd) must_check;
void kvm_file_put(struct softkvm *s, struct kvm_file *f);

/* Free a mapping that is in no list, with its reference. */
void kvm_mapping_free(struct kvm_mapping *m);

/* Drop a reference of a descriptor's kind on its object. */
void kvm_object_put(enum kvm_file_kind kind, void *object);

#endif
