/* For tests of the shadow MMU by its insides: a guest with tables in known places, and the MMU's own structures. */
#ifndef STRATA_TESTS_SOFTKVM_SHADOW_FIXTURE_H
#define STRATA_TESTS_SOFTKVM_SHADOW_FIXTURE_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "arch/regs.h"
#include "paging_guest.h"
#include "softkvm/exit.h"
#include "softkvm/shadow/shadow.h"

#define PT     0x200000u /* tables of the tests, in free memory */
#define PT2    0x201000u
#define PD     0x202000u
#define PDPT   0x203000u
#define DATA   0x400000u
#define LA4    UINT64_C(0x8000000000)  /* entry 1 of a 4-level root */
#define RW     0x67u
#define RO     0x65u
#define SUPER  0x63u

static inline struct kvm_vm *vm_of(struct pg *g)
{
    struct kvm_file *f = kvm_file_get(g->s, g->vm);
    struct kvm_vm *vm = f->object;

    kvm_file_put(g->s, f);
    return vm;
}

static inline struct kvm_shadow *shadow_of(struct pg *g)
{
    return kvm_shadow(vm_of(g));
}

static inline struct kvm_shadow_counters *counters(struct pg *g)
{
    return &shadow_of(g)->counters;
}

static inline struct kvm_vcpu *vcpu_of(struct pg *g)
{
    return kvm_vm_vcpu(vm_of(g), 0);
}

/* The i-th shadow page of a frame, or null. */
static inline const struct kvm_shadow_page *page_at(struct pg *g, uint64_t gpa, unsigned i)
{
    for (const struct kvm_shadow_page *sp = kvm_shadow_hash_first(shadow_of(g), gfn(gpa >> 12)); sp; sp = sp->hash_next) {
        if (sp->gfn.v == gpa >> 12 && !sp->role.direct && i-- == 0) {
            return sp;
        }
    }
    return NULL;
}

static inline unsigned pages_at(struct pg *g, uint64_t gpa)
{
    unsigned n = 0;

    while (page_at(g, gpa, n)) {
        n++;
    }
    return n;
}

static inline enum pg_outcome touch(struct pg *g, uint64_t la, bool write, bool user)
{
    struct ow_access a = {.la = la, .write = write, .user = user};
    struct pg_result r;

    pg_access(g, &a, 0x1122334455667700, &r);
    return r.outcome;
}

/* 4 levels: la LA4 leads through PDPT, PD, PT of the tests to DATA. */
static inline struct pg *four_levels(void)
{
    struct pg *g = pg_new(SOFTKVM_MMU_SHADOW, PG_4LEVEL);

    g->check_every = 1;
    pg_poke(g, pg_root(g, 0) + 8, PDPT | RW, 8, 0);
    pg_poke(g, PDPT, PD | RW, 8, 0);
    pg_poke(g, PD, PT | RW, 8, 0);
    for (unsigned i = 0; i < 512; i++) {
        pg_poke(g, PT + i * 8, (DATA + i % 256 * 4096) | RW, 8, 0);
        g->check_every = 64;
    }
    g->check_every = 1;
    pg_set_cr(g, 4, g->cr4 ^ 0x80);
    pg_set_cr(g, 4, g->cr4 ^ 0x80);
    return g;
}

#endif
