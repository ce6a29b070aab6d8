/*
 * A VM without a processor that runs, for tests of the second stage: its slots, faults served as if the
 * processor had met them, and a walk written from the manuals' words that shares no code with src.
 */
#ifndef STRATA_TESTS_SOFTKVM_MMU_WORLD_H
#define STRATA_TESTS_SOFTKVM_MMU_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fake_cpu.h"
#include "softkvm/inspect.h"
#include "softkvm/inspect_impl.h"
#include "softkvm/mmu_entry.h"
#include "softkvm/softkvm.h"
#include "softkvm/vcpu.h"

#define MB        (UINT64_C(1) << 20)
#define RAM_BYTES (32 * MB)

/* A kind of second stage to test. */
struct kind {
    enum softkvm_mmu mmu;
    unsigned levels, stage2;
};

#define NR_KINDS 6
extern const struct kind kinds[NR_KINDS];

/* The test once per kind; *state is the kind. */
#define ON_ALL_KINDS(f)                                                                            \
    cmocka_unit_test_prestate(f, (void *)&kinds[0]), cmocka_unit_test_prestate(f, (void *)&kinds[1]), \
        cmocka_unit_test_prestate(f, (void *)&kinds[2]), cmocka_unit_test_prestate(f, (void *)&kinds[3]), \
        cmocka_unit_test_prestate(f, (void *)&kinds[4]), cmocka_unit_test_prestate(f, (void *)&kinds[5])

struct world {
    struct softkvm *s;
    int kvm, vm_fd, vcpu_fd[4];
    struct kvm_vm *vm;
    struct kvm_vcpu *vcpu[4];
    unsigned nr_vcpus;
    char *ram; /* RAM_BYTES at least, 2 MiB aligned */
    uint64_t ram_bytes;
};

/* More of an instance than its kind: zero is the default of each. */
struct world_options {
    unsigned vcpus, max_level, stage2;
    uint64_t ram_bytes, host_bytes;
    unsigned nx_period, nx_ratio;
};

/* What the second stage says of an address. */
struct found {
    bool present, mmio;
    unsigned rights; /* bit 0 read, 1 write, 2 execute */
    unsigned shift;  /* log2 of the page size */
    bool accessed;
    uint64_t hpa;
};

struct world *world_new_with(const struct kind *kind, struct world_options o);
struct world *world_new(void **state, unsigned vcpus, unsigned max_level);
void world_free(struct world *w);
int set_slot(struct world *w, struct kvm_userspace_memory_region m);

/* The processor of `vcpu` accesses addr, and what the engine makes of it. Where processors log what they modify, a
 * write that meets a clean writable entry is logged as they do. */
enum kvm_fault_result fault(struct world *w, unsigned vcpu, uint64_t addr, uint32_t access);

/* The walk by definition. Write access counts only where a write would be noticed already, or needs not. */
struct found define_walk(struct world *w, uint64_t addr);

/* Every page of a slot: nothing, or the right host page; and the engine's own check. Returns how many are mapped. */
unsigned verify_slot(struct world *w, const struct kvm_userspace_memory_region *m, bool logging);

void check_world(struct world *w);
uint64_t bits_in(const uint64_t *map, size_t words);

#endif
