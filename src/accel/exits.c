/*
 * The exits of KVM_RUN and what each asks for: a table from the exit reason to its handler. Port and
 * memory accesses go to the address spaces, the rest ends the run with a reason.
 *
 * Values in the run page come from the engine, and with a hostile one from anybody: sizes and offsets
 * are read once and checked before use.
 */
#include "accel/internal.h"

#include <errno.h>
#include <linux/kvm_para.h>
#include <string.h>

#include "softkvm/kvm_abi.h"
#include "base/addr.h"

/*
 * Tell the machine, once, why the run ends, and bring all vCPUs home.
 * detail: one line, borrowed for the call. Lock: none of accel's may be held but the device lock. Source: own.
 */
void accel_tell_stop(struct accel *a, enum accel_stop why, const char *detail)
{
    if (!atomic_exchange(&a->told, true) && a->stop) {
        a->stop(a->opaque, why, detail);
    }
    accel_request_stop(a);
}

static bool exit_io(struct accel_vcpu *v)
{
    struct accel *a = v->accel;
    struct kvm_run *run = v->run;
    uint64_t offset = run->io.data_offset;
    uint32_t i, count = run->io.count, size = run->io.size;
    bool is_write = run->io.direction == KVM_EXIT_IO_OUT;

    if ((size != 1 && size != 2 && size != 4) || offset > a->run_size ||
        (uint64_t)count * size > a->run_size - offset) {
        accel_tell_stop(a, ACCEL_STOP_INTERNAL_ERROR, "a port exit outside its run page");
        return false;
    }
    accel_lock(a);
    a->current_vcpu = v->index;
    accel_coalesced_drain(a);
    for (i = 0; i < count; i++) {
        accel_bus_pio(a, run->io.port, (char *)run + offset + (uint64_t)i * size, size, is_write);
    }
    accel_unlock(a);
    return true;
}

static bool exit_mmio(struct accel_vcpu *v)
{
    struct accel *a = v->accel;
    uint32_t len = v->run->mmio.len;

    if (len == 0 || len > sizeof(v->run->mmio.data)) {
        accel_tell_stop(a, ACCEL_STOP_INTERNAL_ERROR, "a memory exit of more than eight bytes");
        return false;
    }
    TRACE(&a->trace, access_mmio_exit, "gpa %llx len %llu write %llu", v->run->mmio.phys_addr, len,
          v->run->mmio.is_write);
    accel_lock(a);
    a->current_vcpu = v->index;
    accel_coalesced_drain(a);
    accel_bus_mmio(a, v->run->mmio.phys_addr, v->run->mmio.data, len, v->run->mmio.is_write);
    accel_unlock(a);
    return true;
}

/* See accel.h. Lock: the device lock. Source: own. */
unsigned accel_current_vcpu(const struct accel *a)
{
    return a->current_vcpu;
}

static bool exit_again(struct accel_vcpu *v)
{
    return true;
}

static bool exit_shutdown(struct accel_vcpu *v)
{
    char text[64];

    snprintf(text, sizeof(text), "triple fault on vCPU %u", v->index);
    accel_tell_stop(v->accel, ACCEL_STOP_SHUTDOWN, text);
    return false;
}

static bool exit_system_event(struct accel_vcpu *v)
{
    switch (v->run->system_event.type) {
    case KVM_SYSTEM_EVENT_SHUTDOWN:
        accel_tell_stop(v->accel, ACCEL_STOP_POWEROFF, "system event: shutdown");
        return false;
    case KVM_SYSTEM_EVENT_RESET:
        accel_tell_stop(v->accel, ACCEL_STOP_RESET, "system event: reset");
        return false;
    case KVM_SYSTEM_EVENT_CRASH:
        accel_tell_stop(v->accel, ACCEL_STOP_CRASH, "system event: crash");
        return false;
    default:
        return true;
    }
}

static bool exit_ring_full(struct accel_vcpu *v)
{
    return accel_ring_full(v);
}

/* Convert, or end the run with what was asked. */
static bool convert(struct accel_vcpu *v, uint64_t gpa, uint64_t size, bool to_private)
{
    char text[160];
    int ret;

    accel_lock(v->accel);
    ret = accel_private_convert(v->accel, gpa, size, to_private);
    accel_unlock(v->accel);
    if (ret < 0) {
        snprintf(text, sizeof(text), "vCPU %u: making 0x%llx, size 0x%llx, %s: %s", v->index,
                 (unsigned long long)gpa, (unsigned long long)size, to_private ? "private" : "shared",
                 strerror(-ret));
        accel_tell_stop(v->accel, ACCEL_STOP_INTERNAL_ERROR, text);
    }
    return ret == 0;
}

/* A page touched the other way: the guest means it to be so from now on. */
static bool exit_memory_fault(struct accel_vcpu *v)
{
    struct softkvm_memory_fault fault;
    char text[120];

    fault = *softkvm_run_memory_fault(v->run);
    if (!v->accel->confidential || fault.flags & ~KVM_MEMORY_EXIT_FLAG_PRIVATE) {
        snprintf(text, sizeof(text), "vCPU %u: no memory behind 0x%llx, size 0x%llx, flags 0x%llx", v->index,
                 (unsigned long long)fault.gpa, (unsigned long long)fault.size,
                 (unsigned long long)fault.flags);
        accel_tell_stop(v->accel, ACCEL_STOP_INTERNAL_ERROR, text);
        return false;
    }
    return convert(v, fault.gpa, fault.size, fault.flags & KVM_MEMORY_EXIT_FLAG_PRIVATE);
}

/* Only the conversion of pages is asked for; what is refused the guest is told, not the user. */
static bool exit_hypercall(struct accel_vcpu *v)
{
    struct kvm_run *run = v->run;
    uint64_t gpa = run->hypercall.args[0], pages = run->hypercall.args[1];
    int ret = -EINVAL;

    if (run->hypercall.nr != KVM_HC_MAP_GPA_RANGE || !v->accel->confidential) {
        run->hypercall.ret = (uint64_t)-ENOSYS;
        return true;
    }
    if (pages <= UINT64_MAX >> PAGE_SHIFT) {
        accel_lock(v->accel);
        ret = accel_private_convert(v->accel, gpa, pages << PAGE_SHIFT,
                                    run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED);
        accel_unlock(v->accel);
    }
    run->hypercall.ret = (uint64_t)(int64_t)ret;
    return true;
}

static bool exit_internal_error(struct accel_vcpu *v)
{
    struct kvm_run *run = v->run;
    char text[200];
    size_t n, i, bytes = 0;

    n = snprintf(text, sizeof(text), "vCPU %u: KVM internal error, suberror %u", v->index,
                 run->internal.suberror);
    if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION && run->internal.ndata >= 3 &&
        (run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)) {
        bytes = run->emulation_failure.insn_size;
        bytes = bytes > 15 ? 15 : bytes;
        n += snprintf(text + n, sizeof(text) - n, ", instruction");
        for (i = 0; i < bytes; i++) {
            n += snprintf(text + n, sizeof(text) - n, " %02x", run->emulation_failure.insn_bytes[i]);
        }
    }
    accel_tell_stop(v->accel, ACCEL_STOP_INTERNAL_ERROR, text);
    return false;
}

static bool exit_fail_entry(struct accel_vcpu *v)
{
    char text[128];

    snprintf(text, sizeof(text), "vCPU %u: entry refused, hardware reason 0x%llx", v->index,
             (unsigned long long)v->run->fail_entry.hardware_entry_failure_reason);
    accel_tell_stop(v->accel, ACCEL_STOP_INTERNAL_ERROR, text);
    return false;
}

struct exit_kind {
    const char *name;
    bool (*handle)(struct accel_vcpu *v);
};

static const struct exit_kind kinds[ACCEL_EXIT_KINDS] = {
    [KVM_EXIT_UNKNOWN] = {"unknown", NULL},
    [KVM_EXIT_EXCEPTION] = {"exception", NULL},
    [KVM_EXIT_IO] = {"io", exit_io},
    [KVM_EXIT_HYPERCALL] = {"hypercall", exit_hypercall},
    [KVM_EXIT_DEBUG] = {"debug", NULL},
    [KVM_EXIT_HLT] = {"hlt", exit_again},
    [KVM_EXIT_MMIO] = {"mmio", exit_mmio},
    [KVM_EXIT_IRQ_WINDOW_OPEN] = {"irq-window", exit_again},
    [KVM_EXIT_SHUTDOWN] = {"shutdown", exit_shutdown},
    [KVM_EXIT_FAIL_ENTRY] = {"fail-entry", exit_fail_entry},
    [KVM_EXIT_INTR] = {"intr", exit_again},
    [KVM_EXIT_SET_TPR] = {"set-tpr", exit_again},
    [KVM_EXIT_TPR_ACCESS] = {"tpr-access", exit_again},
    [KVM_EXIT_NMI] = {"nmi", exit_again},
    [KVM_EXIT_INTERNAL_ERROR] = {"internal-error", exit_internal_error},
    [KVM_EXIT_SYSTEM_EVENT] = {"system-event", exit_system_event},
    [KVM_EXIT_IOAPIC_EOI] = {"ioapic-eoi", exit_again},
    [KVM_EXIT_DIRTY_RING_FULL] = {"dirty-ring-full", exit_ring_full},
    [KVM_EXIT_MEMORY_FAULT] = {"memory-fault", exit_memory_fault},
};

/*
 * Answer the exit that v->run holds.
 * Returns: true to enter again, false when this vCPU is to stop (the machine has been told).
 * Lock: none held; takes the device lock for accesses. Source: KVM's API document, kvm_run.
 */
bool accel_exit_handle(struct accel_vcpu *v)
{
    uint32_t reason = v->run->exit_reason;
    char text[64];

    if (reason < ACCEL_EXIT_KINDS) {
        /* This thread's alone to write: no locked addition. */
        atomic_store_explicit(&v->exits[reason], atomic_load_explicit(&v->exits[reason], memory_order_relaxed) + 1,
                              memory_order_relaxed);
        if (kinds[reason].handle) {
            return kinds[reason].handle(v);
        }
    }
    snprintf(text, sizeof(text), "vCPU %u: exit %u was never asked for", v->index, reason);
    accel_tell_stop(v->accel, ACCEL_STOP_INTERNAL_ERROR, text);
    return false;
}

static void insert_sorted(struct accel_exit_count *out, unsigned *n, unsigned max,
                          struct accel_exit_count entry)
{
    unsigned at = *n < max ? (*n)++ : max - 1;

    if (at == max - 1 && *n == max && out[at].name && out[at].count >= entry.count) {
        return;
    }
    while (at > 0 && out[at - 1].count < entry.count) {
        out[at] = out[at - 1];
        at--;
    }
    out[at] = entry;
}

/*
 * Exits of all vCPUs so far by kind, largest count first.
 * out: room for max entries. Returns: how many were filled. Lock: none; counts are relaxed. Source: own.
 */
unsigned accel_exit_counts(struct accel *a, struct accel_exit_count *out, unsigned max)
{
    struct accel_exit_count interrupted = {"kick", 0};
    unsigned kind, i, n = 0;

    if (max == 0) {
        return 0;
    }
    memset(out, 0, max * sizeof(*out));
    for (kind = 0; kind < ACCEL_EXIT_KINDS; kind++) {
        struct accel_exit_count entry = {kinds[kind].name ? kinds[kind].name : "other", 0};

        for (i = 0; i < a->vcpu_count; i++) {
            entry.count += atomic_load_explicit(&a->vcpus[i].exits[kind], memory_order_relaxed);
        }
        if (entry.count) {
            insert_sorted(out, &n, max, entry);
        }
    }
    for (i = 0; i < a->vcpu_count; i++) {
        interrupted.count += atomic_load_explicit(&a->vcpus[i].interrupted, memory_order_relaxed);
    }
    if (interrupted.count) {
        insert_sorted(out, &n, max, interrupted);
    }
    return n;
}
