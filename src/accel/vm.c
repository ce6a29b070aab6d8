/*
 * The virtual machine behind the ABI: create it with its interrupt chips and clock, its vCPUs, and take
 * all of it down in reverse order. Place in the flow: first thing after the engine is chosen.
 *
 * Invariant: everything made here hangs from struct accel; two machines share nothing.
 * Leaves out: split interrupt chips, and devices of the KVM_CREATE_DEVICE kind.
 */
#include "accel/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <linux/kvm_para.h>
#include <string.h>
#include <time.h>

#include "softkvm/kvm_abi.h"
#include "softkvm/slots.h"

/* Where Intel processors without unrestricted guest keep their real-mode helper pages: below the
 * firmware's top 256 KiB, in an area that the memory map reserves. */
#define TSS_ADDRESS          0xfeffd000u
#define IDENTITY_MAP_ADDRESS UINT64_C(0xfeffc000)

#define MAX_SLOT_SIZE (UINT64_C(1) << 42) /* engines take 2^31 - 1 pages */

/* As calloc(), but where a test makes it fail. Lock: none. Source: own. */
void *accel_calloc(struct accel *a, size_t n, size_t size)
{
    return a->fail_alloc && a->fail_alloc(a->fail_opaque) ? NULL : calloc(n, size);
}

static int extension(struct accel *a, int cap)
{
    return accel_ioctl(a->ep, a->vm_fd, KVM_CHECK_EXTENSION, cap);
}

/* The default routing by hand: pins 0..15 reach the 8259 pair and the IOAPIC, 16..23 the IOAPIC alone;
 * the timer (GSI 0) enters the IOAPIC at pin 2, as the ACPI override says. */
static int set_routing(struct accel *a, struct base_error *err)
{
    struct kvm_irq_routing *table = accel_calloc(a, 1, sizeof(*table) + 48 * sizeof(table->entries[0]));
    unsigned gsi;
    int ret;

    if (!table) {
        return base_error_set(err, ENOMEM, "out of memory");
    }
    for (gsi = 0; gsi < 24; gsi++) {
        struct kvm_irq_routing_entry *e;

        if (gsi < 16 && gsi != 2) {
            e = &table->entries[table->nr++];
            e->gsi = gsi;
            e->type = KVM_IRQ_ROUTING_IRQCHIP;
            e->u.irqchip.irqchip = gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;
            e->u.irqchip.pin = gsi % 8;
        }
        if (gsi != 2) {
            e = &table->entries[table->nr++];
            e->gsi = gsi;
            e->type = KVM_IRQ_ROUTING_IRQCHIP;
            e->u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
            e->u.irqchip.pin = gsi == 0 ? 2 : gsi;
        }
    }
    ret = accel_ioctl_ptr(a->ep, a->vm_fd, KVM_SET_GSI_ROUTING, table);
    free(table);
    return ret < 0 ? base_error_set(err, -ret, "%s: KVM_SET_GSI_ROUTING: %s", accel_engine(a),
                                    strerror(-ret))
                   : 0;
}

static int create_chips(struct accel *a, struct base_error *err)
{
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    uint64_t identity = IDENTITY_MAP_ADDRESS;
    int ret;

    if (extension(a, KVM_CAP_SET_IDENTITY_MAP_ADDR) > 0) {
        ret = accel_ioctl_ptr(a->ep, a->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
        if (ret < 0) {
            return base_error_set(err, -ret, "KVM_SET_IDENTITY_MAP_ADDR: %s", strerror(-ret));
        }
    }
    if (extension(a, KVM_CAP_SET_TSS_ADDR) > 0) {
        ret = accel_ioctl(a->ep, a->vm_fd, KVM_SET_TSS_ADDR, TSS_ADDRESS);
        if (ret < 0) {
            return base_error_set(err, -ret, "KVM_SET_TSS_ADDR: %s", strerror(-ret));
        }
    }
    ret = accel_ioctl(a->ep, a->vm_fd, KVM_CREATE_IRQCHIP, 0);
    if (ret < 0) {
        return base_error_set(err, -ret, "KVM_CREATE_IRQCHIP: %s", strerror(-ret));
    }
    ret = accel_ioctl_ptr(a->ep, a->vm_fd, KVM_CREATE_PIT2, &pit);
    if (ret < 0) {
        return base_error_set(err, -ret, "KVM_CREATE_PIT2: %s", strerror(-ret));
    }
    return set_routing(a, err);
}

static int enable_cap(struct accel *a, uint32_t cap, uint64_t arg)
{
    struct kvm_enable_cap args = {.cap = cap, .args = {arg}};

    return accel_ioctl_ptr(a->ep, a->vm_fd, KVM_ENABLE_CAP, &args);
}

/* Pages of such a VM can be private: the engine must know attributes, and tell of conversions. */
static int set_up_confidential(struct accel *a, struct base_error *err)
{
    if (!(extension(a, KVM_CAP_MEMORY_ATTRIBUTES) & (int)KVM_MEMORY_ATTRIBUTE_PRIVATE) ||
        extension(a, KVM_CAP_GUEST_MEMFD) <= 0 || extension(a, KVM_CAP_USER_MEMORY2) <= 0) {
        return base_error_set(err, EOPNOTSUPP, "confidential=on: %s has no private guest memory", accel_engine(a));
    }
    if (extension(a, KVM_CAP_EXIT_HYPERCALL) & 1 << KVM_HC_MAP_GPA_RANGE) {
        enable_cap(a, KVM_CAP_EXIT_HYPERCALL, 1u << KVM_HC_MAP_GPA_RANGE);
    }
    a->confidential = true;
    return 0;
}

/* How dirty pages are found out: by ring when asked, else by bitmap, protected by hand where possible. */
static int set_up_memory(struct accel *a, struct base_error *err)
{
    uint64_t wanted = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
    int have = extension(a, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    int ret = a->properties.confidential ? set_up_confidential(a, err) : 0;

    if (ret < 0) {
        return ret;
    }
    if (a->properties.dirty_ring_size) {
        return accel_ring_enable(a, a->properties.dirty_ring_size, err);
    }
    wanted &= have > 0 ? (uint64_t)have : 0;
    if (a->properties.no_initially_set) {
        wanted &= ~(uint64_t)KVM_DIRTY_LOG_INITIALLY_SET;
    }
    if (wanted & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE && !a->properties.no_manual_protect) {
        a->manual_protect = enable_cap(a, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, wanted) == 0;
    }
    return 0;
}

static int create_vm(struct accel *a, struct base_error *err)
{
    unsigned long type = 0;

    if (a->properties.confidential) {
        int types = accel_ioctl(a->ep, a->system_fd, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES);

        if (types <= 0 || !(types & 1 << KVM_X86_SW_PROTECTED_VM)) {
            return base_error_set(err, EOPNOTSUPP, "confidential=on: %s has no VM with private memory",
                                  accel_engine(a));
        }
        type = KVM_X86_SW_PROTECTED_VM;
    }
    return accel_ioctl(a->ep, a->system_fd, KVM_CREATE_VM, type);
}

/*
 * Create the VM of a->ep with interrupt chips.
 * Returns: 0 or what the refused ioctl said, with its name in err. On error the caller frees a.
 * Lock: none; nobody else knows of the VM yet. Source: KVM's API document, order of creation.
 */
int accel_vm_create(struct accel *a, struct base_error *err)
{
    struct base_error why = {""};
    int ret = create_vm(a, &why);

    if (ret < 0) {
        return why.text[0] ? base_error_set(err, -ret, "%s", why.text)
                           : base_error_set(err, -ret, "%s: KVM_CREATE_VM: %s", accel_engine(a), strerror(-ret));
    }
    a->vm_fd = ret;
    ret = accel_ioctl(a->ep, a->system_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (ret < (int)sizeof(struct kvm_run)) {
        return base_error_set(err, EINVAL, "%s: KVM_GET_VCPU_MMAP_SIZE gave %d", accel_engine(a), ret);
    }
    a->run_size = ret;
    ret = extension(a, KVM_CAP_COALESCED_MMIO);
    a->coalesced_page = ret > 0 ? ret : 0;
    a->has_readonly_mem = extension(a, KVM_CAP_READONLY_MEM) > 0;
    a->has_coalesced_pio = extension(a, KVM_CAP_COALESCED_PIO) > 0;
    a->has_memory_faults = extension(a, KVM_CAP_MEMORY_FAULT_INFO) > 0;
    a->has_prefault = extension(a, KVM_CAP_PRE_FAULT_MEMORY) > 0;
    ret = extension(a, SOFTKVM_CAP_SLOT_TRANSACTION);
    a->max_transaction = ret > 0 ? (unsigned)ret : 0;
    ret = extension(a, KVM_CAP_NR_MEMSLOTS);
    a->max_slots = ret > 0 ? ret : 32;
    a->max_slot_size = a->properties.max_slot_size ? a->properties.max_slot_size : MAX_SLOT_SIZE;
    ret = set_up_memory(a, err);
    return ret < 0 ? ret : create_chips(a, err);
}

/* -EINVAL is kept for the caller's options: an engine that answers it to us has failed. */
static int engine_failed(int ret)
{
    return ret == -EINVAL ? -EIO : ret;
}

static int open_all(struct accel *a, const struct accel_options *opts, struct base_error *err)
{
    const char *list = opts->engine ? opts->engine : "auto";
    size_t length;
    unsigned i;
    int ret = accel_properties_parse(list, &a->properties, &length, err);

    if (ret == 0) {
        ret = accel_endpoint_select(a, opts, list, length, err);
    }
    if (ret == 0) {
        ret = engine_failed(accel_vm_create(a, err));
    }
    if (ret == 0) {
        ret = accel_cpuid_fetch(a, err);
    }
    for (i = 0; ret == 0 && i < opts->vcpus; i++) {
        ret = engine_failed(accel_vcpu_create(a, i, err));
    }
    return ret;
}

/*
 * Choose an engine and make a VM with opts->vcpus processors, not yet running.
 * Returns: 0 and *out, which accel_free() frees; -EINVAL bad options; else why the engine is not to be had.
 * Lock: none. Source: own.
 */
int accel_open(struct accel **out, const struct accel_options *opts, struct base_error *err)
{
    pthread_condattr_t attr;
    struct accel *a;
    int ret;

    if (opts->vcpus < 1 || opts->vcpus > ACCEL_MAX_VCPUS) {
        return base_error_set(err, EINVAL, "-smp %u: between 1 and %d processors", opts->vcpus,
                              ACCEL_MAX_VCPUS);
    }
    a = calloc(1, sizeof(*a));
    if (!a) {
        return base_error_set(err, ENOMEM, "out of memory");
    }
    a->system_fd = a->vm_fd = -1;
    a->stop = opts->stop;
    a->opaque = opts->opaque;
    pthread_mutex_init(&a->device_lock, NULL);
    pthread_mutex_init(&a->gate_lock, NULL);
    pthread_cond_init(&a->gate_cond, NULL);
    pthread_mutex_init(&a->reaper_lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&a->reaper_cond, &attr);
    pthread_condattr_destroy(&attr);
    a->fail_alloc = opts->fail_alloc;
    a->fail_opaque = opts->fail_opaque;
    a->vcpu_wanted = opts->vcpus;
    a->vcpus = accel_calloc(a, opts->vcpus, sizeof(*a->vcpus));
    a->cpu_text = strdup(opts->cpu ? opts->cpu : "max");
    ret = a->vcpus && a->cpu_text ? open_all(a, opts, err)
                                  : base_error_set(err, ENOMEM, "out of memory");
    if (ret < 0) {
        accel_free(a);
        return ret;
    }
    *out = a;
    return 0;
}

/*
 * Stop and free the VM. The attached address spaces must still be alive.
 * a: may be NULL. Lock: none may be held. Source: own.
 */
void accel_free(struct accel *a)
{
    unsigned i;

    if (!a) {
        return;
    }
    accel_stop(a);
    accel_slots_free(a->slots);
    for (i = 0; i < a->vcpu_count; i++) {
        accel_vcpu_destroy(&a->vcpus[i]);
    }
    if (a->ep) {
        if (a->vm_fd >= 0) {
            a->ep->ops->close(a->ep, a->vm_fd);
        }
        if (a->system_fd >= 0) {
            a->ep->ops->close(a->ep, a->system_fd);
        }
        a->ep->ops->free(a->ep);
    }
    pthread_cond_destroy(&a->reaper_cond);
    pthread_mutex_destroy(&a->reaper_lock);
    pthread_cond_destroy(&a->gate_cond);
    pthread_mutex_destroy(&a->gate_lock);
    pthread_mutex_destroy(&a->device_lock);
    free(a->cpuid);
    free(a->cpu_text);
    free(a->vcpus);
    free(a);
}

/* The engine's name, "kvm" or "soft"; valid as long as a. Lock: none. Source: own. */
const char *accel_engine(const struct accel *a)
{
    return a->ep->ops->name;
}

/* Why this engine was taken, one line without newline; valid as long as a. Lock: none. Source: own. */
const char *accel_engine_reason(const struct accel *a)
{
    return a->reason;
}

/* Send accel's trace points to sink (NULL: nowhere). Lock: none; while nothing runs. Source: own. */
void accel_trace_set(struct accel *a, base_trace_fn *sink, void *opaque)
{
    a->trace.sink = sink;
    a->trace.opaque = opaque;
}

/* Take the lock under which devices are called. Lock: taken; outermost. Source: own. */
void accel_lock(struct accel *a)
{
    pthread_mutex_lock(&a->device_lock);
    atomic_store(&a->device_owner, pthread_self());
}

/* Give it back. Lock: released. Source: own. */
void accel_unlock(struct accel *a)
{
    atomic_store(&a->device_owner, (pthread_t)0);
    pthread_mutex_unlock(&a->device_lock);
}

/*
 * Set the level of an interrupt line.
 * gsi: 0..23, as routed at creation; level: 0 or 1.
 * Returns: 0 or -errno of the ioctl. Lock: none needed. Source: KVM_IRQ_LINE.
 */
int accel_irq_set(struct accel *a, unsigned gsi, int level)
{
    struct kvm_irq_level line = {.irq = gsi, .level = level ? 1 : 0};
    int ret = accel_ioctl_ptr(a->ep, a->vm_fd, KVM_IRQ_LINE, &line);

    return ret < 0 ? ret : 0;
}

/*
 * Send a message-signalled interrupt.
 * address, data: as a device would write them. Returns: 0 or -errno. Lock: none needed. Source: KVM_SIGNAL_MSI.
 */
int accel_msi_send(struct accel *a, uint64_t address, uint32_t data)
{
    struct kvm_msi msi = {
        .address_lo = (uint32_t)address, .address_hi = (uint32_t)(address >> 32), .data = data};
    int ret = accel_ioctl_ptr(a->ep, a->vm_fd, KVM_SIGNAL_MSI, &msi);

    return ret < 0 ? ret : 0;
}

/*
 * The guest's clock in nanoseconds; 0 where the engine has none.
 * Devices count by it, so that a guest whose time is counted sees one time everywhere.
 * Lock: none. Source: KVM_GET_CLOCK.
 */
uint64_t accel_clock_ns(struct accel *a)
{
    struct kvm_clock_data data;

    memset(&data, 0, sizeof(data));
    if (accel_ioctl_ptr(a->ep, a->vm_fd, KVM_GET_CLOCK, &data) < 0) {
        return 0;
    }
    return data.clock;
}
