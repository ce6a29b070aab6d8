/*
 * KVM_TRANSLATE: the guest's own tables walked by reading guest memory, as a supervisor's read would; nothing is
 * faulted in or marked accessed, and the processor's TLB is not asked.
 * Source: KVM's gva_to_gpa() with no access rights: addresses are cut to the bits that index tables, not judged
 * canonical; without paging an address is itself.
 */
#include <string.h>

#include "arch/regs.h"
#include "cpu/regs.h"
#include "softkvm/state.h"
#include "softkvm/vcpu.h"

#define ENTRY_PRESENT UINT64_C(1)
#define ENTRY_LARGE   UINT64_C(0x80)
#define ENTRY_ADDR    UINT64_C(0x000ffffffffff000)

/* Read one table entry of 4 or 8 bytes. */
static bool read_entry(struct kvm_vcpu *v, uint64_t at, unsigned width, uint64_t *entry)
{
    *entry = 0;
    return kvm_guest_read(v->vm, gpa(at), entry, width) == 0;
}

/* Two levels of 1,024 entries. */
static bool walk_32(struct kvm_vcpu *v, const struct cpu_sregs *s, uint64_t la, uint64_t *out)
{
    uint64_t e, at = (s->cr3 & 0xfffff000) + (la >> 22 & 0x3ff) * 4;

    if (!read_entry(v, at, 4, &e) || !(e & ENTRY_PRESENT)) {
        return false;
    }
    if ((e & ENTRY_LARGE) && (s->cr4 & X86_CR4_PSE)) {
        *out = (e & 0xffc00000) | (e >> 13 & 0xff) << 32 | (la & 0x3fffff);
        return true;
    }
    if (!read_entry(v, (e & 0xfffff000) + (la >> 12 & 0x3ff) * 4, 4, &e) || !(e & ENTRY_PRESENT)) {
        return false;
    }
    *out = (e & 0xfffff000) | (la & 0xfff);
    return true;
}

/* Three (PAE), four or five levels of 512 entries. */
static bool walk_64(struct kvm_vcpu *v, const struct cpu_sregs *s, uint64_t la, unsigned levels, uint64_t *out)
{
    uint64_t table = levels == 3 ? s->cr3 & 0xffffffe0 : s->cr3 & ENTRY_ADDR, e;

    for (unsigned level = levels; level > 0; level--) {
        unsigned shift = 12 + 9 * (level - 1);
        uint64_t index = la >> shift & (levels == 3 && level == 3 ? 3 : 511);

        if (!read_entry(v, table + index * 8, 8, &e) || !(e & ENTRY_PRESENT)) {
            return false;
        }
        if (level == 1 || ((e & ENTRY_LARGE) && level <= (levels == 3 ? 2u : 3u))) {
            uint64_t mask = (UINT64_C(1) << shift) - 1;

            *out = (e & ENTRY_ADDR & ~mask) | (la & mask);
            return true;
        }
        table = e & ENTRY_ADDR;
    }
    return false;
}

/* Lock: vcpu->lock and the read section held. */
void kvm_state_translate(struct kvm_vcpu *v, struct kvm_translation *t)
{
    uint64_t la = t->linear_address, out = UINT64_MAX;
    struct cpu_sregs s;
    bool found;

    cpu_get_sregs(v->cpu, &s);
    if (!(s.cr0 & X86_CR0_PG)) {
        out = la;
        found = la != UINT64_MAX; /* the mark of "nowhere" */
    } else if (s.efer & X86_EFER_LMA) {
        found = walk_64(v, &s, la, s.cr4 & X86_CR4_LA57 ? 5 : 4, &out);
    } else if (s.cr4 & X86_CR4_PAE) {
        found = walk_64(v, &s, la & UINT32_MAX, 3, &out);
    } else {
        found = walk_32(v, &s, la & UINT32_MAX, &out);
    }
    t->physical_address = found ? out : UINT64_MAX;
    t->valid = found;
    t->writeable = 1;
    t->usermode = 0;
}
