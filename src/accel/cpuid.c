/*
 * What CPUID says: the engine's supported table, with each processor's own place in the topology written
 * in, and the features that -cpu takes away taken away.
 *
 * One package of N single-threaded cores; APIC ids are 0..N-1, so the core field is as wide as N needs.
 * Leaves out: CPU models by name other than "max" and "host" (all that the engine supports).
 */
#include "accel/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CPUID_MAX_ENTRIES 512

enum cpuid_reg { REG_EAX, REG_EBX, REG_ECX, REG_EDX };

struct cpu_feature {
    const char *name;
    uint32_t leaf, index;
    enum cpuid_reg reg;
    unsigned bit;
};

/* Names as QEMU spells them. */
static const struct cpu_feature features[] = {
    {"sse3", 1, 0, REG_ECX, 0},        {"pclmulqdq", 1, 0, REG_ECX, 1},
    {"monitor", 1, 0, REG_ECX, 3},     {"ssse3", 1, 0, REG_ECX, 9},
    {"fma", 1, 0, REG_ECX, 12},        {"cx16", 1, 0, REG_ECX, 13},
    {"pcid", 1, 0, REG_ECX, 17},       {"sse4.1", 1, 0, REG_ECX, 19},
    {"sse4.2", 1, 0, REG_ECX, 20},     {"x2apic", 1, 0, REG_ECX, 21},
    {"movbe", 1, 0, REG_ECX, 22},      {"popcnt", 1, 0, REG_ECX, 23},
    {"tsc-deadline", 1, 0, REG_ECX, 24}, {"aes", 1, 0, REG_ECX, 25},
    {"xsave", 1, 0, REG_ECX, 26},      {"avx", 1, 0, REG_ECX, 28},
    {"f16c", 1, 0, REG_ECX, 29},       {"rdrand", 1, 0, REG_ECX, 30},
    {"hypervisor", 1, 0, REG_ECX, 31}, {"pse", 1, 0, REG_EDX, 3},
    {"pge", 1, 0, REG_EDX, 13},        {"pat", 1, 0, REG_EDX, 16},
    {"mtrr", 1, 0, REG_EDX, 12},       {"sep", 1, 0, REG_EDX, 11},
    {"fsgsbase", 7, 0, REG_EBX, 0},    {"bmi1", 7, 0, REG_EBX, 3},
    {"avx2", 7, 0, REG_EBX, 5},        {"smep", 7, 0, REG_EBX, 7},
    {"bmi2", 7, 0, REG_EBX, 8},        {"erms", 7, 0, REG_EBX, 9},
    {"invpcid", 7, 0, REG_EBX, 10},    {"avx512f", 7, 0, REG_EBX, 16},
    {"rdseed", 7, 0, REG_EBX, 18},     {"adx", 7, 0, REG_EBX, 19},
    {"smap", 7, 0, REG_EBX, 20},       {"sha-ni", 7, 0, REG_EBX, 29},
    {"umip", 7, 0, REG_ECX, 2},        {"pku", 7, 0, REG_ECX, 3},
    {"la57", 7, 0, REG_ECX, 16},       {"svm", 0x80000001, 0, REG_ECX, 2},
    {"vmx", 1, 0, REG_ECX, 5},         {"nx", 0x80000001, 0, REG_EDX, 20},
    {"pdpe1gb", 0x80000001, 0, REG_EDX, 26}, {"rdtscp", 0x80000001, 0, REG_EDX, 27},
    {"lm", 0x80000001, 0, REG_EDX, 29}, {"invtsc", 0x80000007, 0, REG_EDX, 8},
    {"kvmclock", 0x40000001, 0, REG_EAX, 3}, {"kvm-pv-eoi", 0x40000001, 0, REG_EAX, 6},
    {"kvm-steal-time", 0x40000001, 0, REG_EAX, 5}, {"kvm-asyncpf", 0x40000001, 0, REG_EAX, 4},
    {"kvm-pv-unhalt", 0x40000001, 0, REG_EAX, 7}, {"kvm-pv-tlb-flush", 0x40000001, 0, REG_EAX, 9},
    {"kvm-pv-ipi", 0x40000001, 0, REG_EAX, 11},
};

static uint32_t *entry_reg(struct kvm_cpuid_entry2 *e, enum cpuid_reg reg)
{
    switch (reg) {
    case REG_EAX:
        return &e->eax;
    case REG_EBX:
        return &e->ebx;
    case REG_ECX:
        return &e->ecx;
    default:
        return &e->edx;
    }
}

static struct kvm_cpuid_entry2 *find_entry(struct kvm_cpuid2 *t, uint32_t leaf, uint32_t index)
{
    uint32_t i;

    for (i = 0; i < t->nent; i++) {
        struct kvm_cpuid_entry2 *e = &t->entries[i];

        if (e->function == leaf &&
            (!(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e->index == index)) {
            return e;
        }
    }
    return NULL;
}

static int toggle_feature(struct kvm_cpuid2 *t, const char *name, size_t len, bool on,
                          struct base_error *err)
{
    size_t i;

    for (i = 0; i < ARRAY_LEN(features); i++) {
        const struct cpu_feature *f = &features[i];
        struct kvm_cpuid_entry2 *e;

        if (strlen(f->name) != len || memcmp(f->name, name, len) != 0) {
            continue;
        }
        e = find_entry(t, f->leaf, f->index);
        if (e && !on) {
            *entry_reg(e, f->reg) &= ~(1u << f->bit);
        }
        if (on && (!e || !(*entry_reg(e, f->reg) & (1u << f->bit)))) {
            return base_error_set(err, ENOTSUP, "-cpu: the engine has no feature '%s'", f->name);
        }
        return 0;
    }
    return base_error_set(err, EINVAL, "-cpu: unknown feature '%.*s'", (int)len, name);
}

/* "max", "host", then ",-feature", ",+feature", ",feature=on|off". */
static int apply_cpu_text(struct kvm_cpuid2 *t, const char *text, struct base_error *err)
{
    size_t len = strcspn(text, ",");
    int ret = 0;

    if (!(len == 3 && memcmp(text, "max", 3) == 0) && !(len == 4 && memcmp(text, "host", 4) == 0)) {
        return base_error_set(err, EINVAL, "-cpu '%.*s': unknown model (max, host)", (int)len, text);
    }
    for (text += len; ret == 0 && *text; text += len) {
        size_t value;
        bool on = true;

        text++;
        len = strcspn(text, ",");
        if (*text == '+' || *text == '-') {
            ret = toggle_feature(t, text + 1, len - 1, *text == '+', err);
            continue;
        }
        value = strcspn(text, "=,");
        if (value + 1 < len) {
            on = len - value - 1 == 2 && memcmp(text + value + 1, "on", 2) == 0;
            if (!on && !(len - value - 1 == 3 && memcmp(text + value + 1, "off", 3) == 0)) {
                return base_error_set(err, EINVAL, "-cpu '%.*s': on or off wanted", (int)len, text);
            }
        }
        ret = toggle_feature(t, text, value < len ? value : len, on, err);
    }
    return ret;
}

/*
 * Ask the engine what it supports and take away what -cpu says; the result is a->cpuid.
 * Returns: 0; -EINVAL bad -cpu text; -EIO the ioctl failed. Lock: none. Source: KVM_GET_SUPPORTED_CPUID.
 */
int accel_cpuid_fetch(struct accel *a, struct base_error *err)
{
    struct kvm_cpuid2 *t =
        accel_calloc(a, 1, sizeof(*t) + CPUID_MAX_ENTRIES * sizeof(struct kvm_cpuid_entry2));
    struct kvm_cpuid_entry2 *e;
    int ret;

    if (!t) {
        return base_error_set(err, ENOMEM, "out of memory");
    }
    a->cpuid = t;
    t->nent = CPUID_MAX_ENTRIES;
    ret = accel_ioctl_ptr(a->ep, a->system_fd, KVM_GET_SUPPORTED_CPUID, t);
    if (ret < 0 || t->nent > CPUID_MAX_ENTRIES) {
        return base_error_set(err, EIO, "KVM_GET_SUPPORTED_CPUID: %s",
                              ret < 0 ? strerror(-ret) : "a table too long");
    }
    e = find_entry(t, 1, 0);
    if (e) {
        e->ecx |= 1u << 31; /* a hypervisor is there */
        if (accel_ioctl(a->ep, a->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0) {
            e->ecx |= 1u << 24;
        }
    }
    return apply_cpu_text(t, a->cpu_text, err);
}

static unsigned bits_for(unsigned n)
{
    unsigned bits = 0;

    while ((1u << bits) < n) {
        bits++;
    }
    return bits;
}

/* Leaves 0xb and 0x1f: level 0 is the thread (one), level 1 the core. */
static void set_topology_level(struct kvm_cpuid_entry2 *e, unsigned vcpus, unsigned apic_id)
{
    e->edx = apic_id;
    if (e->index == 0) {
        e->eax = 0;
        e->ebx = 1;
        e->ecx = 1u << 8;
    } else if (e->index == 1) {
        e->eax = bits_for(vcpus);
        e->ebx = vcpus;
        e->ecx = 1 | 2u << 8;
    } else {
        e->eax = e->ebx = 0;
        e->ecx = e->index;
    }
}

static void set_topology(struct kvm_cpuid2 *t, unsigned vcpus, unsigned apic_id)
{
    unsigned width = bits_for(vcpus);
    uint32_t i;

    for (i = 0; i < t->nent; i++) {
        struct kvm_cpuid_entry2 *e = &t->entries[i];

        switch (e->function) {
        case 1:
            e->ebx = (e->ebx & 0xffff) | (vcpus > 1 ? (1u << width) << 16 : 1u << 16) | apic_id << 24;
            e->edx = vcpus > 1 ? e->edx | 1u << 28 : e->edx & ~(1u << 28);
            break;
        case 4:
            if (e->eax & 0x1f) {
                unsigned sharing = ((e->eax >> 5) & 7) >= 3 ? vcpus - 1 : 0;

                e->eax = (e->eax & 0x3fff) | sharing << 14 | ((1u << width) - 1) << 26;
            }
            break;
        case 0xb:
        case 0x1f:
            set_topology_level(e, vcpus, apic_id);
            break;
        case 0x80000008:
            e->ecx = (e->ecx & ~0xf0ffu) | width << 12 | (vcpus - 1);
            break;
        }
    }
}

/* An engine that lists only level 0 of leaf 0xb must still answer for level 1. */
static void add_topology_levels(struct kvm_cpuid2 *t)
{
    uint32_t index;

    for (index = 0; index < 3; index++) {
        struct kvm_cpuid_entry2 *e;

        if (!find_entry(t, 0xb, 0) || find_entry(t, 0xb, index) || t->nent >= CPUID_MAX_ENTRIES) {
            continue;
        }
        e = &t->entries[t->nent++];
        memset(e, 0, sizeof(*e));
        e->function = 0xb;
        e->index = index;
        e->flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    }
}

/*
 * Tell the engine what v's CPUID says.
 * Returns: 0 or -errno of KVM_SET_CPUID2. Lock: none; before v runs. Source: Intel's and AMD's topology leaves.
 */
int accel_cpuid_apply(struct accel_vcpu *v, struct base_error *err)
{
    struct accel *a = v->accel;
    size_t bytes = sizeof(*a->cpuid) + CPUID_MAX_ENTRIES * sizeof(struct kvm_cpuid_entry2);
    struct kvm_cpuid2 *t = accel_calloc(a, 1, bytes);
    int ret;

    if (!t) {
        return base_error_set(err, ENOMEM, "out of memory");
    }
    memcpy(t, a->cpuid, bytes);
    add_topology_levels(t);
    set_topology(t, a->vcpu_wanted, v->index);
    ret = accel_ioctl_ptr(a->ep, v->fd, KVM_SET_CPUID2, t);
    free(t);
    return ret < 0 ? base_error_set(err, -ret, "%s: KVM_SET_CPUID2: %s", accel_engine(a),
                                    strerror(-ret))
                   : 0;
}
