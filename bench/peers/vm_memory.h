/* The vm-memory crate as a peer: a shared object that scripts/bench builds beside the benchmarks where
 * rustc and the crate are installed; see vm_memory.rs. */
#ifndef STRATA_BENCH_VM_MEMORY_H
#define STRATA_BENCH_VM_MEMORY_H

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct vm_memory {
    void *object; /* null: not there */
    void *(*make)(const uint64_t *base, size_t n, uint64_t size);
    void (*free)(void *peer);
    void (*read)(void *peer, uint64_t n);
    void (*write)(void *peer, uint64_t n);
    void (*copy)(void *peer, uint64_t n);
    void (*toggle)(void *peer, uint64_t n);
};

/* argv0: the benchmark's own path; the peer is in the same directory. */
static inline struct vm_memory vm_memory_load(const char *argv0)
{
    struct vm_memory v = {0};
    const char *slash = strrchr(argv0, '/');
    char path[4096];

    snprintf(path, sizeof(path), "%.*speer_vm_memory.so", slash ? (int)(slash - argv0 + 1) : 0, argv0);
    v.object = dlopen(path, RTLD_NOW);
    if (v.object) {
        *(void **)&v.make = dlsym(v.object, "peer_new");
        *(void **)&v.free = dlsym(v.object, "peer_free");
        *(void **)&v.read = dlsym(v.object, "peer_read");
        *(void **)&v.write = dlsym(v.object, "peer_write");
        *(void **)&v.copy = dlsym(v.object, "peer_copy");
        *(void **)&v.toggle = dlsym(v.object, "peer_toggle");
    }
    return v;
}

#endif
