/*
 * What the guest's memory holds and what its tables say: plain arrays and a walk of three lines. And one
 * guest operation at a time, chosen at random, judged by them.
 */
#include <string.h>

#include "storm.h"

#define P      UINT64_C(1)
#define W      UINT64_C(2)
#define PS     UINT64_C(0x80)
#define RSVD   (UINT64_C(1) << 51)
#define AD     UINT64_C(0x60)
#define FRAME  UINT64_C(0x0007fffffffff000)
#define NR_HOT 24u

/* Gpa of page `n` of a vCPU's address space: 0 PML4, 1 PDPT, 2 PD, 3 and 4 PTs. */
static uint64_t table_gpa(unsigned c, unsigned space, unsigned n)
{
    return TABLES_GPA + ((c * SPACES + space) * TABLE_PAGES + n) * PAGE_BYTES;
}

static uint64_t *table_entry(struct storm *w, uint64_t gpa)
{
    return (uint64_t *)(void *)(w->slot[TABLES].model + (gpa - TABLES_GPA));
}

struct storm_slot *storm_find(struct storm *w, uint64_t gpa)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        struct storm_slot *s = &w->slot[i];

        if (s->present && gpa >= s->gpa && gpa < s->gpa + s->bytes) {
            return s;
        }
    }
    return NULL;
}

struct storm_place storm_walk(struct storm *w, unsigned c, uint64_t va)
{
    uint64_t pde = *table_entry(w, table_gpa(c, w->cpu[c].space, 2) + (va >> 21) * 8), e;
    struct storm_place p = {0};

    if (pde & PS) {
        e = pde;
        p.gpa = (pde & FRAME) + (va & (HUGE_BYTES - 1));
    } else {
        e = *table_entry(w, (pde & FRAME) + (va >> 12 & 511) * 8);
        p.gpa = (e & FRAME) + (va & (PAGE_BYTES - 1));
    }
    p.present = e & P;
    p.writable = e & W;
    p.reserved = e & RSVD;
    p.slot = storm_find(w, p.gpa);
    p.byte = p.slot ? p.slot->model + (p.gpa - p.slot->gpa) : NULL;
    return p;
}

/* Few pages of a slot, so that they meet often: some in the first huge page, some in the second. */
static uint64_t hot_page(struct storm *w)
{
    return storm_random(w, 4) ? storm_random(w, 8) + 512 * storm_random(w, 2) : storm_random(w, 1024);
}

static uint64_t random_pte(struct storm *w)
{
    uint64_t data = DATA_BYTES * (1 + storm_random(w, DATA_SLOTS)) + hot_page(w) * PAGE_BYTES;
    uint64_t kind = storm_random(w, 20);

    if (kind == 0) {
        return 0;
    }
    if (kind == 1) {
        return data | P | RSVD;
    }
    if (kind == 2) {
        return (HOLE_GPA + storm_random(w, 4) * PAGE_BYTES) | P | W;
    }
    if (kind == 3) {
        return (TABLES_GPA + storm_random(w, CPUS * SPACES * TABLE_PAGES) * PAGE_BYTES) | P;
    }
    if (kind == 4) {
        return (data + (UINT64_C(1) << 24)) | P | W; /* where slots are moved to */
    }
    return data | P | (kind < 16 ? W : 0);
}

void storm_model_init(struct storm *w)
{
    for (unsigned i = 0; i < CPUS * SPACES; i++) {
        unsigned c = i / SPACES, space = i % SPACES;

        *table_entry(w, table_gpa(c, space, 0)) = table_gpa(c, space, 1) | P | W;
        *table_entry(w, table_gpa(c, space, 1)) = table_gpa(c, space, 2) | P | W;
        table_entry(w, table_gpa(c, space, 2))[0] = PS | P | W;
        table_entry(w, table_gpa(c, space, 2))[2] = table_gpa(c, space, 3) | P | W;
        table_entry(w, table_gpa(c, space, 2))[3] = table_gpa(c, space, 4) | P | W;
        for (unsigned e = 0; e < 1024; e++) {
            table_entry(w, table_gpa(c, space, 3))[e] = random_pte(w);
        }
    }
    for (unsigned s = DATA; s < SLOTS; s++) {
        for (uint64_t page = 0; page < 16; page++) {
            for (unsigned i = 0; i < PAGE_BYTES && page % 4; i += 8) {
                uint64_t v = storm_random(w, 3) ? storm_random(w, 0) : 0;

                memcpy(w->slot[s].model + page * PAGE_BYTES + i, &v, 8);
            }
        }
    }
}

static uint64_t hot_va(struct storm *w)
{
    return WINDOW_VA + storm_random(w, NR_HOT) * 43 * PAGE_BYTES + storm_random(w, 64) * 8;
}

/* A page fault must be what the entry says. True: it was one. */
static bool judge_fault(struct storm *w, const struct storm_place *p, uint64_t va, bool write,
                        const struct storm_result *r)
{
    uint64_t code = write ? 2 : 0;
    bool faults = !p->present || p->reserved || (write && !p->writable);

    code |= p->present ? 1 : 0;
    code |= p->present && p->reserved ? 8 : 0;
    if (faults != r->faulted || (faults && (r->value != code || r->cr2 != va))) {
        storm_fail(w, "va %llx: fault %d code %llx cr2 %llx, wanted fault %d code %llx", (unsigned long long)va,
                   r->faulted, (unsigned long long)r->value, (unsigned long long)r->cr2, faults,
                   (unsigned long long)code);
    }
    w->guest_faults += faults;
    return faults;
}

/* Now and then the host takes away what the operation is about to touch. With shadow paging a guest's table that is gone
 * reads as absent, as KVM has it: the guest's fault, not ours. */
static void maybe_take(struct storm *w, unsigned c, const struct storm_place *p)
{
    uint64_t kind = storm_random(w, 32);

    if (kind == 0 && p->slot && (p->slot != &w->slot[TABLES] || w->config.mmu != SOFTKVM_MMU_SHADOW)) {
        storm_take(w, p->slot->hva + (p->gpa - p->slot->gpa) / PAGE_BYTES * PAGE_BYTES);
    } else if (kind == 1 && w->config.mmu != SOFTKVM_MMU_SHADOW) {
        storm_take(w, w->slot[TABLES].hva +
                          (table_gpa(c, w->cpu[c].space, (unsigned)storm_random(w, TABLE_PAGES)) - TABLES_GPA));
    } else if (kind == 2) {
        storm_take(w, w->slot[LOW].hva + 0x1000);
    }
}

static void do_load(struct storm *w, unsigned c)
{
    uint64_t va = hot_va(w), want;
    struct storm_place p = storm_walk(w, c, va);
    struct storm_result r;

    storm_say(w, "vCPU %u loads %llx (gpa %llx)", c, (unsigned long long)va, (unsigned long long)p.gpa);
    maybe_take(w, c, &p);
    r = storm_run(w, c, OP_LOAD, va, 0, 0, 0);
    if (judge_fault(w, &p, va, false, &r) || !p.slot) {
        return;
    }
    memcpy(&want, p.byte, 8);
    if (p.slot == &w->slot[TABLES]) {
        r.value &= ~AD;
        want &= ~AD;
    }
    if (r.value != want) {
        storm_fail(w, "va %llx gpa %llx: loaded %llx, wanted %llx", (unsigned long long)va,
                   (unsigned long long)p.gpa, (unsigned long long)r.value, (unsigned long long)want);
    }
}

static void do_store(struct storm *w, unsigned c, bool add)
{
    uint64_t va = hot_va(w), value = storm_random(w, 0), old;
    struct storm_place p = storm_walk(w, c, va);
    struct storm_result r;

    add = add && p.slot; /* no locked access to a device */
    storm_say(w, "vCPU %u %s %llx (gpa %llx)", c, add ? "adds to" : "stores to", (unsigned long long)va,
              (unsigned long long)p.gpa);
    maybe_take(w, c, &p);
    r = storm_run(w, c, add ? OP_XADD : OP_STORE, va, value, 0, 0);
    if (judge_fault(w, &p, va, true, &r) || !p.slot) {
        return;
    }
    memcpy(&old, p.byte, 8);
    if (add && r.value != old) {
        storm_fail(w, "va %llx: XADD found %llx, wanted %llx", (unsigned long long)va,
                   (unsigned long long)r.value, (unsigned long long)old);
    }
    value += add ? old : 0;
    memcpy(p.byte, &value, 8);
}

static void do_movs(struct storm *w, unsigned c)
{
    uint64_t from = hot_va(w), to = hot_va(w);
    unsigned n = 1 + (unsigned)storm_random(w, 64);
    struct storm_place pf = storm_walk(w, c, from), pt = storm_walk(w, c, to);
    struct storm_result r;

    if ((pf.present && !pf.slot) || (pt.present && !pt.slot) || pf.slot == &w->slot[TABLES]) {
        return; /* devices, and bits that the model does not have */
    }
    storm_say(w, "vCPU %u copies %u words %llx -> %llx (gpa %llx -> %llx)", c, n, (unsigned long long)from,
              (unsigned long long)to, (unsigned long long)pf.gpa, (unsigned long long)pt.gpa);
    maybe_take(w, c, &pt);
    r = storm_run(w, c, OP_MOVS, from, 0, to, n);
    if (!pf.present || pf.reserved) {
        judge_fault(w, &pf, from, false, &r);
        return;
    }
    if (judge_fault(w, &pt, to, true, &r)) {
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        memmove(pt.byte + i * 8, pf.byte + i * 8, 8);
    }
}

/* Through the one-to-one mapping, then the flush that the architecture asks for. */
static void do_set_entry(struct storm *w, unsigned c, uint64_t gpa, uint64_t value, uint64_t va)
{
    struct storm_place p = storm_walk(w, c, gpa);

    maybe_take(w, c, &p);
    storm_run(w, c, OP_STORE, gpa, value, 0, 0);
    *table_entry(w, gpa) = value;
    if (va) {
        storm_run(w, c, OP_INVLPG, va, 0, 0, 0);
    } else {
        storm_run(w, c, OP_CR3, 0, table_gpa(c, w->cpu[c].space, 0), 0, 0);
    }
}

static void do_pte(struct storm *w, unsigned c)
{
    uint64_t va = hot_va(w) & ~UINT64_C(4095), value = random_pte(w);
    uint64_t pt = table_gpa(c, w->cpu[c].space, 3 + (va >> 21 & 1));

    storm_say(w, "vCPU %u maps %llx by %llx", c, (unsigned long long)va, (unsigned long long)value);
    do_set_entry(w, c, pt + (va >> 12 & 511) * 8, value, va);
}

static void do_pde(struct storm *w, unsigned c)
{
    unsigned half = (unsigned)storm_random(w, 2), space = w->cpu[c].space;
    uint64_t gpa = DATA_BYTES * (1 + storm_random(w, DATA_SLOTS)) + storm_random(w, 2) * HUGE_BYTES;
    uint64_t value = storm_random(w, 2) ? gpa | PS | P | (storm_random(w, 2) ? W : 0)
                                        : table_gpa(c, space, 3 + half) | P | W;

    storm_say(w, "vCPU %u has directory entry %u %llx", c, 2 + half, (unsigned long long)value);
    do_set_entry(w, c, table_gpa(c, space, 2) + (2 + half) * 8, value, 0);
}

static void do_switch(struct storm *w, unsigned c)
{
    unsigned to = (w->cpu[c].space + 1) % SPACES;

    storm_say(w, "vCPU %u goes to address space %u", c, to);
    storm_run(w, c, OP_CR3, 0, table_gpa(c, to, 0), 0, 0);
    w->cpu[c].space = to;
}

void storm_guest_step(struct storm *w)
{
    unsigned c = (unsigned)storm_random(w, CPUS);
    uint64_t kind = storm_random(w, 32);

    if (kind < 10) {
        do_load(w, c);
    } else if (kind < 22) {
        do_store(w, c, kind >= 18);
    } else if (kind < 25) {
        do_movs(w, c);
    } else if (kind < 29) {
        do_pte(w, c);
    } else if (kind < 30) {
        do_pde(w, c);
    } else {
        do_switch(w, c);
    }
    storm_give_back(w);
}

/* ---- the bytes ---- */

/* What of a slot the model knows: not the stacks. */
static uint64_t known_bytes(const struct storm *w, const struct storm_slot *s)
{
    return s == &w->slot[LOW] ? 0x4000 : s->bytes;
}

static void compare_slot(struct storm *w, struct storm_slot *s, uint64_t mask)
{
    const uint64_t *real = (const uint64_t *)(const void *)s->hva, *want = (uint64_t *)(void *)s->model;

    for (uint64_t i = 0; i < known_bytes(w, s) / 8; i++) {
        if ((real[i] ^ want[i]) & mask) {
            storm_fail(w, "slot %ld byte %llx: memory %llx, model %llx", (long)(s - w->slot),
                       (unsigned long long)i * 8, (unsigned long long)real[i], (unsigned long long)want[i]);
        }
    }
}

void storm_compare(struct storm *w)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        struct storm_slot *s = &w->slot[i];

        if (s->present && s->logging) {
            storm_harvest(w, i);
        }
        if (w->config.announced && softkvm_memory_access_begin(w->s, s->hva, s->bytes) != 0) {
            storm_fail(w, "the process's own access to slot %u is refused", i);
        }
        compare_slot(w, s, i == TABLES ? ~AD : ~UINT64_C(0));
        if (s->present && s->logging && memcmp(s->mirror, s->hva, s->bytes) != 0) {
            uint64_t at = 0;

            while (s->mirror[at] == (uint8_t)s->hva[at]) {
                at++;
            }
            storm_fail(w, "slot %u byte %llx: a write was missed by the dirty log", i, (unsigned long long)at);
        }
        if (w->config.announced) {
            softkvm_memory_access_end(w->s, s->hva, s->bytes);
        }
    }
}
