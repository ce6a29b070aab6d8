/*
 * One address through all layers, every table entry on the way: guest tables (found through slots,
 * not through the second stage, so that they can be read even where nothing is mapped), the slot, the
 * second stage, the host's tables, the frame. Nothing is changed or faulted in.
 *
 * Locks: slots_lock and (for a gva) vcpu->lock held; mmu.lock is taken shared.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "arch/regs.h"
#include "cpu/state.h"
#include "softkvm/attributes.h"
#include "softkvm/gmem.h"
#include "softkvm/inspect_impl.h"
#include "softkvm/vcpu.h"

/* Describe one table entry. o->table and o->index are the caller's. */
void kvm_explain_entry(struct softkvm_entry *o, enum arch_format_id id, unsigned level, uint64_t value)
{
    const struct arch_format *fmt = &arch_formats[id];

    o->value = value;
    o->level = (uint8_t)level;
    o->format = (uint8_t)id;
    o->present = arch_is_present(fmt, value);
    o->leaf = o->present && arch_is_leaf(fmt, value, level);
    arch_entry_format(id, level, value, o->text, sizeof(o->text));
}

/* Where the second stage leads, under the lock that keeps its tables; 0: nowhere. */
static uint64_t second_stage(struct kvm_vm *vm, uint64_t addr, struct softkvm_explain *x)
{
    uint64_t out;

    pthread_rwlock_rdlock(&vm->mmu.lock);
    out = vm->mmu.ops->explain_locked(vm, gpa(addr), x);
    pthread_rwlock_unlock(&vm->mmu.lock);
    return out;
}

/* ---- host ---- */

static void walk_host(struct kvm_vm *vm, struct softkvm_explain *x)
{
    unsigned levels[HOST_MAX_LEVELS];
    uint64_t entries[HOST_MAX_LEVELS];
    unsigned n = host_mm_walk(vm->s->mm, hva(x->hva), levels, entries);
    const struct arch_format *fmt = &arch_formats[ARCH_FMT_LONG];

    for (unsigned i = 0; i < n && i < SOFTKVM_MAX_WALK; i++) {
        struct softkvm_entry *o = &x->host[x->nr_host++];

        kvm_explain_entry(o, ARCH_FMT_LONG, levels[i], entries[i]);
        o->index = arch_index(fmt, x->hva, levels[i]);
        o->table = i ? arch_table_addr(fmt, entries[i - 1]) : host_mm_root(vm->s->mm).v;
        if (o->leaf) {
            uint64_t size = pt_leaf_size(levels[i]);

            x->host_page_size = size;
            x->stages |= SOFTKVM_STAGE_HOST;
            if (!x->hpa) {
                x->hpa = (entries[i] & X86_PTE_ADDR_MASK & ~(size - 1)) + (x->hva & (size - 1));
            }
        }
    }
}

static const char *const frame_types[HOST_FRAME_NR_TYPES] = {
    [HOST_FRAME_FREE] = "free",       [HOST_FRAME_TABLE] = "second-stage table",
    [HOST_FRAME_HOST_PT] = "host table", [HOST_FRAME_KERNEL] = "kernel",
    [HOST_FRAME_ANON] = "anonymous",  [HOST_FRAME_FILE] = "file",
    [HOST_FRAME_HUGETLB] = "hugetlb", [HOST_FRAME_ZERO] = "zero page",
    [HOST_FRAME_KSM] = "merged",      [HOST_FRAME_PFNMAP] = "pfn-mapped",
    [HOST_FRAME_RESERVED] = "reserved",
};

void kvm_explain_frame(struct softkvm *s, uint64_t number, struct softkvm_frame_info *out)
{
    const struct host_frame *f = host_frame_at(s->hm, pfn(number));

    memset(out, 0, sizeof(*out));
    out->pfn = number;
    if (!f) {
        return;
    }
    out->refcount = __atomic_load_n(&f->refcount, __ATOMIC_RELAXED);
    out->gen = host_frame_gen(f);
    out->type = f->type;
    out->order = f->order;
    out->flags = (uint8_t)host_frame_flags(f);
    out->owner = f->owner;
    out->data = (uintptr_t)host_frame_data(f);
    snprintf(out->type_name, sizeof(out->type_name), "%s",
             f->type < HOST_FRAME_NR_TYPES ? frame_types[f->type] : "?");
}

static void read_frame(struct kvm_vm *vm, struct softkvm_explain *x)
{
    const unsigned char *p = host_hpa_to_ptr(vm->s->hm, hpa(x->hpa));
    size_t n = PAGE_SIZE - page_offset(x->hpa);

    kvm_explain_frame(vm->s, x->hpa >> PAGE_SHIFT, &x->frame);
    if (!p || (x->stages & SOFTKVM_STAGE_PRIVATE)) {
        return; /* private contents are not shown */
    }
    x->stages |= SOFTKVM_STAGE_FRAME;
    for (size_t i = 0; i < n && i < sizeof(x->data); i++) {
        x->data[i] = __atomic_load_n(p + i, __ATOMIC_RELAXED);
    }
}

/*
 * gpa -> slot -> hva -> second stage -> host -> frame.
 */
void kvm_explain_gpa(struct kvm_vm *vm, struct softkvm_explain *x)
{
    gpa_t addr = gpa(x->gpa);
    gfn_t f = kvm_slot_frame(vm, gpa_to_gfn(addr));
    const struct kvm_memslot *slot = kvm_slots_find(kvm_slots_active(&vm->slots), f);
    uint64_t offset = page_offset(addr.v);

    if (kvm_page_is_private(vm, f)) {
        x->stages |= SOFTKVM_STAGE_PRIVATE;
        addr = gpa(gfn_to_gpa(f).v | offset);
    } else if (kvm_vm_has_shared_bit(vm)) {
        addr = gpa(gfn_to_gpa(gfn(f.v | KVM_SHARED_GFN_BIT)).v | offset);
    }
    x->eptp = vm->mmu.eptp;
    x->hpa = second_stage(vm, addr.v, x);
    if (x->hpa) {
        x->stages |= SOFTKVM_STAGE_EPT;
    }
    if (slot) {
        x->stages |= SOFTKVM_STAGE_SLOT;
        x->slot_id = slot->id | (uint32_t)slot->as_id << 16;
        x->slot_flags = slot->flags;
        x->slot_gpa = slot->base_gfn << PAGE_SHIFT;
        x->slot_size = slot->npages << PAGE_SHIFT;
        x->slot_hva = slot->hva;
        x->hva = kvm_slot_hva(kvm_slot_half(vm, slot, gpa_to_gfn(addr)), f).v + offset;
        walk_host(vm, x);
    }
    if (x->hpa) {
        read_frame(vm, x);
    }
}

/* ---- guest tables ---- */

struct guest_mode {
    enum arch_format_id id;
    unsigned levels;
    uint64_t root;
};

/* Which walk the vCPU's registers select; levels 0: paging is off. */
static struct guest_mode guest_mode(const struct cpu *cpu)
{
    struct guest_mode m = {ARCH_FMT_32, 2, cpu->cr3 & ~UINT64_C(0xfff)};

    if (!(cpu->cr0 & X86_CR0_PG)) {
        m.levels = 0;
    } else if (cpu->efer & X86_EFER_LMA) {
        m.id = ARCH_FMT_LONG;
        m.levels = cpu->cr4 & X86_CR4_LA57 ? 5 : 4;
        m.root = cpu->cr3 & X86_PTE_ADDR_MASK;
    } else if (cpu->cr4 & X86_CR4_PAE) {
        m.id = ARCH_FMT_PAE;
        m.levels = 3;
        m.root = cpu->cr3 & ~UINT64_C(0x1f);
    }
    return m;
}

/* Read one guest entry through the slots. */
static int read_gpte(struct kvm_vm *vm, const struct arch_format *fmt, uint64_t at, uint64_t *value)
{
    *value = 0;
    return kvm_guest_read(vm, gpa(at), value, fmt->entry_bytes);
}

/* Walk the guest's tables. Returns 0 with x->gpa, or -EFAULT. */
static int walk_guest(struct kvm_vcpu *v, struct softkvm_explain *x)
{
    struct guest_mode m = guest_mode(v->cpu);
    const struct arch_format *fmt = &arch_formats[m.id];
    uint64_t table = m.root, value;

    x->paging = m.levels;
    if (!m.levels) {
        x->gpa = x->gva;
        x->guest_page_size = PAGE_SIZE;
        return 0;
    }
    for (unsigned level = m.levels; level; level--) {
        struct softkvm_entry *o = &x->guest[x->nr_guest];
        unsigned index = arch_index(fmt, x->gva, level);

        if (read_gpte(v->vm, fmt, table + (uint64_t)index * fmt->entry_bytes, &value) < 0) {
            return -EFAULT;
        }
        kvm_explain_entry(o, m.id, level, value);
        o->table = table;
        o->index = index;
        x->guest_table_hpa[x->nr_guest++] = second_stage(v->vm, table, NULL);
        if (!o->present) {
            return -EFAULT;
        }
        if (o->leaf) {
            x->guest_page_size = arch_span(fmt, level);
            x->gpa = arch_leaf_addr(fmt, value, level) + (x->gva & (x->guest_page_size - 1));
            return 0;
        }
        table = arch_table_addr(fmt, value);
    }
    return -EFAULT;
}

/*
 * gva -> gpa by the vCPU's current registers, then as kvm_explain_gpa().
 */
void kvm_explain_gva(struct kvm_vcpu *v, struct softkvm_explain *x)
{
    x->cr0 = v->cpu->cr0;
    x->cr3 = v->cpu->cr3;
    x->cr4 = v->cpu->cr4;
    x->efer = v->cpu->efer;
    if (walk_guest(v, x) == 0) {
        x->stages |= SOFTKVM_STAGE_GUEST;
        kvm_explain_gpa(v->vm, x);
    }
}
