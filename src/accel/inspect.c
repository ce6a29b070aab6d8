/* Looking into the engine; see inspect.h. The ioctls are include/softkvm/inspect.h's. */
#include "accel/inspect.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "accel/internal.h"
#include "softkvm/inspect.h"
#include "strata/access.h"

#define CR0_PG   UINT64_C(0x80000000)
#define CR4_LA57 UINT64_C(0x1000)
#define EFER_LMA UINT64_C(0x400)

#define PTE_PRESENT UINT64_C(1)
#define PTE_USER    UINT64_C(4)
#define PTE_LARGE   UINT64_C(0x80)
#define PTE_ADDR    UINT64_C(0x000ffffffffff000)

/* Where the vCPU stands. Returns: 0 or -errno of KVM_GET_REGS. Lock: vCPUs stopped. Source: own. */
int accel_rip_get(struct accel *a, unsigned vcpu, gva_t *rip)
{
    struct kvm_regs regs;
    int ret = accel_ioctl_ptr(a->ep, a->vcpus[vcpu].fd, KVM_GET_REGS, &regs);

    if (ret < 0) {
        return ret;
    }
    *rip = gva(regs.rip);
    return 0;
}

/* The first present user leaf under one table, depth first; the budget bounds hostile tables. */
static bool find_user_leaf(struct accel *a, uint64_t table, unsigned level, uint64_t *va, unsigned *budget)
{
    unsigned i, shift = 12 + 9 * (level - 1), last = level >= 4 ? 256 : 512;
    uint64_t base = *va;

    for (i = 0; i < last && *budget > 0; i++, (*budget)--) {
        uint64_t entry = 0;

        strata_load(a->memory, (table & PTE_ADDR) + i * 8, 8, STRATA_LITTLE_ENDIAN, &entry);
        if ((entry & (PTE_PRESENT | PTE_USER)) != (PTE_PRESENT | PTE_USER)) {
            continue;
        }
        *va = base | (uint64_t)i << shift;
        if (level == 1 || (level <= 3 && (entry & PTE_LARGE))) {
            return true;
        }
        if (find_user_leaf(a, entry, level - 1, va, budget)) {
            return true;
        }
    }
    *va = base;
    return false;
}

/*
 * Find a mapped user address by walking the guest's own tables.
 * Returns: 0; -ENOENT none; -errno of KVM_GET_SREGS. Lock: vCPUs stopped. Source: Intel's 4- and 5-level paging.
 */
int accel_user_address_find(struct accel *a, unsigned vcpu, gva_t *out)
{
    struct kvm_sregs s;
    unsigned budget = 1u << 18;
    uint64_t va = 0;
    int ret = accel_ioctl_ptr(a->ep, a->vcpus[vcpu].fd, KVM_GET_SREGS, &s);

    if (ret < 0) {
        return ret;
    }
    if (!(s.cr0 & CR0_PG) || !(s.efer & EFER_LMA)) {
        return -ENOENT;
    }
    if (!find_user_leaf(a, s.cr3, s.cr4 & CR4_LA57 ? 5 : 4, &va, &budget)) {
        return -ENOENT;
    }
    *out = gva(va);
    return 0;
}

static void show_entries(FILE *to, const char *what, const struct softkvm_entry *e, unsigned n)
{
    unsigned i;

    for (i = 0; i < n && i < SOFTKVM_MAX_WALK; i++) {
        fprintf(to, "    %-5s level %u  table 0x%llx[%u] = 0x%016llx  %.48s\n", what, e[i].level,
                (unsigned long long)e[i].table, e[i].index, (unsigned long long)e[i].value, e[i].text);
    }
}

static void show_explanation(FILE *to, const struct softkvm_explain *x)
{
    unsigned i;

    fprintf(to, "  gva 0x%llx: cr3 0x%llx, %u-level guest tables\n", (unsigned long long)x->gva,
            (unsigned long long)x->cr3, x->paging);
    show_entries(to, "guest", x->guest, x->nr_guest);
    if (!(x->stages & SOFTKVM_STAGE_GUEST)) {
        fprintf(to, "    the guest maps nothing there\n");
        return;
    }
    fprintf(to, "  gpa 0x%llx\n", (unsigned long long)x->gpa);
    if (x->stages & SOFTKVM_STAGE_SLOT) {
        fprintf(to, "    slot %u: gpa 0x%llx size 0x%llx at hva 0x%llx\n", x->slot_id & 0xffff,
                (unsigned long long)x->slot_gpa, (unsigned long long)x->slot_size,
                (unsigned long long)x->slot_hva);
        fprintf(to, "  hva 0x%llx\n", (unsigned long long)x->hva);
    }
    show_entries(to, "ept", x->ept, x->nr_ept);
    show_entries(to, "host", x->host, x->nr_host);
    if (x->stages & (SOFTKVM_STAGE_EPT | SOFTKVM_STAGE_HOST)) {
        fprintf(to, "  hpa 0x%llx (pages: guest 0x%llx, ept 0x%llx, host 0x%llx)\n",
                (unsigned long long)x->hpa, (unsigned long long)x->guest_page_size,
                (unsigned long long)x->ept_page_size, (unsigned long long)x->host_page_size);
    }
    if (x->stages & SOFTKVM_STAGE_FRAME) {
        fprintf(to, "    frame 0x%llx, %.20s, of address space %u, %u references, bytes", (unsigned long long)x->frame.pfn,
                x->frame.type_name, x->frame.owner, x->frame.refcount);
        for (i = 0; i < sizeof(x->data); i++) {
            fprintf(to, " %02x", x->data[i]);
        }
        fprintf(to, "\n");
    }
}

/* See inspect.h. Returns: 0; -ENOTTY; -errno. Lock: vCPUs stopped. Source: SOFTKVM_EXPLAIN_GVA. */
int accel_explain_show(struct accel *a, unsigned vcpu, gva_t addr, FILE *to)
{
    struct softkvm_explain *x = accel_calloc(a, 1, sizeof(*x));
    int ret;

    if (!x) {
        return -ENOMEM;
    }
    x->size = sizeof(*x);
    x->gva = addr.v;
    ret = accel_ioctl_ptr(a->ep, a->vcpus[vcpu].fd, SOFTKVM_EXPLAIN_GVA, x);
    if (ret >= 0) {
        show_explanation(to, x);
    }
    free(x);
    return ret < 0 ? ret : 0;
}

static int read_counters(struct accel *a, int fd, accel_counter_fn *fn, void *opaque)
{
    enum { ROOM = 512 };
    struct softkvm_counter *list = accel_calloc(a, ROOM, sizeof(*list));
    struct softkvm_counters args = {.size = sizeof(args), .count = ROOM, .counters = (uintptr_t)list};
    unsigned i;
    int ret;

    if (!list) {
        return -ENOMEM;
    }
    ret = accel_ioctl_ptr(a->ep, fd, SOFTKVM_COUNTERS, &args);
    for (i = 0; ret >= 0 && i < args.count && i < ROOM; i++) {
        list[i].name[sizeof(list[i].name) - 1] = '\0';
        fn(opaque, list[i].name, list[i].value);
    }
    free(list);
    return ret < 0 ? ret : 0;
}

/* See inspect.h. Returns: 0; -ENOTTY; -errno. Lock: vCPUs stopped. Source: SOFTKVM_COUNTERS. */
int accel_counters_read(struct accel *a, accel_counter_fn *fn, void *opaque)
{
    int ret = read_counters(a, a->vm_fd, fn, opaque);

    return ret < 0 ? ret : read_counters(a, a->system_fd, fn, opaque);
}

/* See inspect.h. Returns: 0; -ENOTTY; -errno. Lock: vCPUs stopped. Source: SOFTKVM_EPT. */
int accel_mappings_count(struct accel *a, struct accel_mapping_counts *out)
{
    struct softkvm_ept args = {.size = sizeof(args)};
    int ret = accel_ioctl_ptr(a->ep, a->vm_fd, SOFTKVM_EPT, &args);

    if (ret < 0) {
        return ret;
    }
    *out = (struct accel_mapping_counts){
        {args.pages[1], args.pages[2], args.pages[3]}, args.pages[0], args.tables};
    return 0;
}
