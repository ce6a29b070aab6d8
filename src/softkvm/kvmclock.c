/*
 * kvmclock (kvmclock.h) and the other paravirtual MSRs of KVM.
 *
 * A page of the guest's, as the ABI has it:
 *
 *   +0 version (odd while written)  +8 TSC  +16 ns  +24 mul  +28 shift  +29 flags
 *
 * Time comes from the host's TSC alone, by the frequency measured when the engine was made: the page
 * and KVM_GET_CLOCK use the same formula, so user space and guest agree to the nanosecond.
 *
 * Steal time is what the host's scheduler says that the vCPU's thread waited for a processor; it is
 * refreshed with the clock, and about every 10 ms while the guest's timer ticks.
 *
 * Left out: asynchronous page faults. Enabling them raises #GP, as on a KVM whose CPUID does not offer
 * them, and writing 0 is allowed.
 */
#include "softkvm/kvmclock.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm_para.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/range.h"
#include "softkvm/quirks.h"
#include "softkvm/vcpu.h"

#define NS_PER_S           UINT64_C(1000000000)
#define PVCLOCK_STABLE     0x01u
#define PVCLOCK_STOPPED    0x02u
#define STEAL_INTERVAL_NS  UINT64_C(10000000)

struct pvclock_page {
    uint32_t version, pad0;
    uint64_t tsc_timestamp, system_time;
    uint32_t mul;
    int8_t shift;
    uint8_t flags, pad[2];
};
_Static_assert(sizeof(struct pvclock_page) == 32, "the guest's ABI");

struct wall_clock {
    uint32_t version, sec, nsec;
};

struct kvm_clock {
    pthread_mutex_t lock;
    /* under lock */
    uint64_t base_tsc; /* of the host */
    uint64_t base_ns;
    uint32_t mul;      /* of the host's frequency */
    int8_t shift;
    /* The counters of all vCPUs run as one while they have one offset and ratio. */
    bool seen, stable;
    int64_t tsc_offset;
    uint64_t tsc_ratio;
};

struct kvm_pvclock {
    uint64_t system_msr, wall_msr; /* as written */
    uint64_t steal_msr, poll_msr, apf_msr;
    uint32_t version;
    bool stopped;  /* to be told once */
    uint64_t steal_seen, steal_total, steal_looked;
    uint32_t steal_version;
};

void kvm_clock_scale(uint64_t hz, uint32_t *mul, int8_t *shift)
{
    u128 factor;
    int s = -32;

    /* mul = 2^32 * 1e9 / (hz * 2^shift), as large as fits 32 bits. */
    do {
        s++;
        factor = s < 0 ? ((u128)NS_PER_S << (32 - s)) / hz : ((u128)NS_PER_S << 32) / ((u128)hz << s);
    } while (factor > UINT32_MAX);
    *mul = (uint32_t)factor;
    *shift = (int8_t)s;
}

uint64_t kvm_clock_ticks_to_ns(uint64_t delta, uint32_t mul, int8_t shift)
{
    delta = shift < 0 ? delta >> -shift : delta << shift;
    return (uint64_t)(((u128)delta * mul) >> 32);
}

static uint64_t rdtsc(void)
{
    return __builtin_ia32_rdtsc();
}

static uint64_t realtime_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

int kvm_clock_init(struct kvm_vm *vm)
{
    struct kvm_clock *clock = kvm_alloc(vm->s, sizeof(*clock));

    if (!clock) {
        return -ENOMEM;
    }
    pthread_mutex_init(&clock->lock, NULL);
    kvm_clock_scale((uint64_t)vm->s->tsc_khz * 1000, &clock->mul, &clock->shift);
    clock->base_tsc = rdtsc();
    vm->clock = clock;
    return 0;
}

void kvm_clock_fini(struct kvm_vm *vm)
{
    if (vm->clock) {
        pthread_mutex_destroy(&vm->clock->lock);
        free(vm->clock);
        vm->clock = NULL;
    }
}

/* ns of the VM's clock at a host TSC. Lock: held. */
static uint64_t ns_at(const struct kvm_clock *clock, uint64_t tsc)
{
    uint64_t delta = tsc > clock->base_tsc ? tsc - clock->base_tsc : 0;

    return clock->base_ns + kvm_clock_ticks_to_ns(delta, clock->mul, clock->shift);
}

void kvm_clock_get(struct kvm_vm *vm, struct kvm_clock_data *out)
{
    struct kvm_clock *clock = vm->clock;

    memset(out, 0, sizeof(*out));
    pthread_mutex_lock(&clock->lock);
    out->host_tsc = rdtsc();
    out->realtime = realtime_ns();
    out->clock = ns_at(clock, out->host_tsc);
    pthread_mutex_unlock(&clock->lock);
    out->flags = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
}

int kvm_clock_set(struct kvm_vm *vm, const struct kvm_clock_data *in)
{
    struct kvm_clock *clock = vm->clock;
    uint64_t ns = in->clock, now;

    if (in->flags & ~(uint32_t)(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC)) {
        return -EINVAL;
    }
    if (in->flags & KVM_CLOCK_REALTIME) {
        /* The time that has gone by since the value was taken. */
        now = realtime_ns();
        ns += now > in->realtime ? now - in->realtime : 0;
    }
    pthread_mutex_lock(&clock->lock);
    clock->base_tsc = rdtsc();
    clock->base_ns = ns;
    pthread_mutex_unlock(&clock->lock);
    kvm_vm_request_all(vm, KVM_REQUEST_CLOCK);
    return 0;
}

int kvm_pvclock_init(struct kvm_vcpu *v)
{
    v->pvclock = kvm_alloc(v->vm->s, sizeof(*v->pvclock));
    if (!v->pvclock) {
        return -ENOMEM;
    }
    kvm_pvclock_reset(v);
    return 0;
}

void kvm_pvclock_fini(struct kvm_vcpu *v)
{
    free(v->pvclock);
    v->pvclock = NULL;
}

void kvm_pvclock_reset(struct kvm_vcpu *v)
{
    uint32_t version = v->pvclock->version;

    memset(v->pvclock, 0, sizeof(*v->pvclock));
    v->pvclock->version = version; /* other vCPUs of the guest may still read the page */
    v->pvclock->poll_msr = 1;
}

/* Write a record that starts with its version: odd, the rest, even. Whoever reads sees one or the other. */
static void write_versioned(struct kvm_vcpu *v, uint64_t addr, void *record, size_t len, uint32_t *version)
{
    uint32_t odd = (*version | 1) + (*version & 1 ? 2 : 0), even = odd + 1;

    if (kvm_guest_write(v, gpa(addr), &odd, sizeof(odd)) < 0) {
        return;
    }
    atomic_thread_fence(memory_order_seq_cst);
    memcpy(record, &odd, sizeof(odd));
    if (kvm_guest_write(v, gpa(addr + sizeof(odd)), (char *)record + sizeof(odd),
                        len - sizeof(odd)) < 0) {
        return;
    }
    atomic_thread_fence(memory_order_seq_cst);
    *version = even;
    (void)!kvm_guest_write(v, gpa(addr), &even, sizeof(even));
}

/* Does this vCPU's counter run as those seen before? Lock: held. */
static bool check_stable(struct kvm_clock *clock, const struct kvm_vcpu *v)
{
    if (!clock->seen || kvm_vm_nr_vcpus(v->vm) == 1) {
        clock->seen = clock->stable = true;
        clock->tsc_offset = v->cpu->tsc_offset;
        clock->tsc_ratio = v->cpu->tsc_ratio;
    }
    if (clock->tsc_offset != v->cpu->tsc_offset || clock->tsc_ratio != v->cpu->tsc_ratio) {
        clock->stable = false;
    }
    return clock->stable;
}

static void write_clock(struct kvm_vcpu *v)
{
    struct kvm_pvclock *pv = v->pvclock;
    struct kvm_clock *clock = v->vm->clock;
    struct pvclock_page page = {0};
    uint64_t base_tsc;
    bool was_stable;

    pthread_mutex_lock(&clock->lock);
    was_stable = clock->stable;
    page.flags = check_stable(clock, v) ? PVCLOCK_STABLE : 0;
    base_tsc = clock->base_tsc;
    page.system_time = clock->base_ns;
    pthread_mutex_unlock(&clock->lock);
    if (was_stable && !page.flags) {
        kvm_vm_request_all(v->vm, KVM_REQUEST_CLOCK); /* the others' pages must say so, too */
    }
    page.tsc_timestamp = (uint64_t)(((u128)base_tsc * v->cpu->tsc_ratio) >> 32) +
                         (uint64_t)v->cpu->tsc_offset;
    kvm_clock_scale((uint64_t)v->tsc_khz * 1000, &page.mul, &page.shift);
    if (pv->stopped) {
        page.flags |= PVCLOCK_STOPPED;
        pv->stopped = false;
    }
    write_versioned(v, pv->system_msr & ~UINT64_C(1), &page, sizeof(page), &pv->version);
}

/* Nanoseconds that the calling thread has waited for a processor since it began. */
static uint64_t thread_wait_ns(void)
{
    char text[96];
    unsigned long long run, wait = 0;
    int fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    ssize_t n;

    if (fd < 0) {
        return 0;
    }
    n = read(fd, text, sizeof(text) - 1);
    close(fd);
    text[n > 0 ? n : 0] = '\0';
    return sscanf(text, "%llu %llu", &run, &wait) == 2 ? wait : 0;
}

static void write_steal(struct kvm_vcpu *v)
{
    struct kvm_pvclock *pv = v->pvclock;
    uint64_t addr = pv->steal_msr & ~(uint64_t)(KVM_MSR_ENABLED | KVM_STEAL_RESERVED_MASK);
    uint64_t wait = thread_wait_ns();
    uint32_t head[2];

    /* Another thread may run the vCPU now: its wait began elsewhere. */
    pv->steal_total += wait > pv->steal_seen && pv->steal_seen != 0 ? wait - pv->steal_seen : 0;
    pv->steal_seen = wait;
    head[0] = pv->steal_version | 1;
    head[1] = 0;
    pv->steal_version = head[0] + 1;
    if (kvm_guest_write(v, gpa(addr + offsetof(struct kvm_steal_time, version)), head, 8) < 0) {
        return;
    }
    atomic_thread_fence(memory_order_seq_cst);
    (void)!kvm_guest_write(v, gpa(addr), &pv->steal_total, 8);
    atomic_thread_fence(memory_order_seq_cst);
    head[0] = pv->steal_version;
    (void)!kvm_guest_write(v, gpa(addr + offsetof(struct kvm_steal_time, version)), head, 4);
}

void kvm_pvclock_update(struct kvm_vcpu *v)
{
    if (v->pvclock->system_msr & KVM_MSR_ENABLED) {
        write_clock(v);
    }
    if (v->pvclock->steal_msr & KVM_MSR_ENABLED) {
        write_steal(v);
    }
}

void kvm_pvclock_tick(struct kvm_vcpu *v)
{
    struct timespec ts;
    uint64_t now;

    if (!(v->pvclock->steal_msr & KVM_MSR_ENABLED)) {
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &ts);
    now = (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
    if (now - v->pvclock->steal_looked >= STEAL_INTERVAL_NS) {
        v->pvclock->steal_looked = now;
        write_steal(v);
    }
}

int kvm_pvclock_was_stopped(struct kvm_vcpu *v)
{
    if (!(v->pvclock->system_msr & KVM_MSR_ENABLED)) {
        return -EINVAL;
    }
    v->pvclock->stopped = true;
    kvm_vcpu_request(v, KVM_REQUEST_CLOCK);
    return 0;
}

/* Date and time at which the VM's clock read 0. */
static void write_wall_clock(struct kvm_vcpu *v, uint64_t addr)
{
    struct kvm_clock *clock = v->vm->clock;
    struct wall_clock wall = {0};
    uint64_t boot, up;
    uint32_t version = 0;

    if (addr == 0) {
        return;
    }
    pthread_mutex_lock(&clock->lock);
    up = ns_at(clock, rdtsc());
    boot = realtime_ns();
    pthread_mutex_unlock(&clock->lock);
    boot = boot > up ? boot - up : 0;
    wall.sec = (uint32_t)(boot / NS_PER_S);
    wall.nsec = (uint32_t)(boot % NS_PER_S);
    if (kvm_guest_read(v->vm, gpa(addr), &version, sizeof(version)) == 0) {
        write_versioned(v, addr, &wall, sizeof(wall), &version);
    }
}

/* Does the guest's CPUID offer the MSR? Asked only when that is to be enforced. Source: guest_pv_has(). */
static bool is_offered(const struct kvm_vcpu *v, uint32_t index)
{
    static const struct {
        uint32_t index, feature;
    } of[] = {
        {MSR_KVM_SYSTEM_TIME, KVM_FEATURE_CLOCKSOURCE}, {MSR_KVM_WALL_CLOCK, KVM_FEATURE_CLOCKSOURCE},
        {MSR_KVM_SYSTEM_TIME_NEW, KVM_FEATURE_CLOCKSOURCE2}, {MSR_KVM_WALL_CLOCK_NEW, KVM_FEATURE_CLOCKSOURCE2},
        {MSR_KVM_STEAL_TIME, KVM_FEATURE_STEAL_TIME}, {MSR_KVM_POLL_CONTROL, KVM_FEATURE_POLL_CONTROL},
        {MSR_KVM_ASYNC_PF_EN, KVM_FEATURE_ASYNC_PF}, {MSR_KVM_ASYNC_PF_INT, KVM_FEATURE_ASYNC_PF_INT},
        {MSR_KVM_ASYNC_PF_ACK, KVM_FEATURE_ASYNC_PF_INT},
    };

    for (size_t i = 0; v->pv_enforced && i < ARRAY_LEN(of); i++) {
        if (of[i].index == index) {
            return kvm_guest_pv_has(v, of[i].feature);
        }
    }
    return true;
}

enum kvm_msr_result kvm_pvclock_get_msr(struct kvm_vcpu *v, uint32_t index, uint64_t *value)
{
    const struct kvm_pvclock *pv = v->pvclock;

    if (!is_offered(v, index)) {
        return KVM_MSR_FAULT;
    }
    switch (index) {
    case MSR_KVM_SYSTEM_TIME:
    case MSR_KVM_SYSTEM_TIME_NEW:
        *value = pv->system_msr;
        return KVM_MSR_DONE;
    case MSR_KVM_WALL_CLOCK:
    case MSR_KVM_WALL_CLOCK_NEW:
        *value = pv->wall_msr;
        return KVM_MSR_DONE;
    case MSR_KVM_STEAL_TIME:
        *value = pv->steal_msr;
        return KVM_MSR_DONE;
    case MSR_KVM_POLL_CONTROL:
        *value = pv->poll_msr;
        return KVM_MSR_DONE;
    case MSR_KVM_ASYNC_PF_EN:
    case MSR_KVM_ASYNC_PF_INT:
    case MSR_KVM_ASYNC_PF_ACK:
        *value = 0;
        return KVM_MSR_DONE;
    default:
        return KVM_MSR_UNKNOWN;
    }
}

enum kvm_msr_result kvm_pvclock_set_msr(struct kvm_vcpu *v, uint32_t index, uint64_t value)
{
    struct kvm_pvclock *pv = v->pvclock;

    if (!is_offered(v, index)) {
        return KVM_MSR_FAULT;
    }
    switch (index) {
    case MSR_KVM_SYSTEM_TIME:
    case MSR_KVM_SYSTEM_TIME_NEW:
        pv->system_msr = value;
        kvm_vcpu_request(v, KVM_REQUEST_CLOCK);
        return KVM_MSR_DONE;
    case MSR_KVM_WALL_CLOCK:
    case MSR_KVM_WALL_CLOCK_NEW:
        pv->wall_msr = value;
        write_wall_clock(v, value);
        return KVM_MSR_DONE;
    case MSR_KVM_STEAL_TIME:
        if (value & KVM_STEAL_RESERVED_MASK) {
            return KVM_MSR_FAULT;
        }
        pv->steal_msr = value;
        v->steal_on = (value & KVM_MSR_ENABLED) != 0;
        pv->steal_seen = 0;
        kvm_vcpu_request(v, KVM_REQUEST_STEAL);
        return KVM_MSR_DONE;
    case MSR_KVM_POLL_CONTROL:
        if (value & ~UINT64_C(1)) {
            return KVM_MSR_FAULT;
        }
        pv->poll_msr = value;
        return KVM_MSR_DONE;
    case MSR_KVM_ASYNC_PF_EN:
    case MSR_KVM_ASYNC_PF_INT:
    case MSR_KVM_ASYNC_PF_ACK:
        return value == 0 ? KVM_MSR_DONE : KVM_MSR_FAULT;
    default:
        return KVM_MSR_UNKNOWN;
    }
}

int64_t kvm_clock_pairing(struct kvm_vcpu *v, uint64_t addr, uint64_t type)
{
    struct kvm_clock_pairing pair = {0};
    uint64_t tsc, real;

    if (type != KVM_CLOCK_PAIRING_WALLCLOCK) {
        return -KVM_EOPNOTSUPP;
    }
    tsc = rdtsc();
    real = realtime_ns();
    pair.sec = (int64_t)(real / NS_PER_S);
    pair.nsec = (int64_t)(real % NS_PER_S);
    pair.tsc = (uint64_t)(((u128)tsc * v->cpu->tsc_ratio) >> 32) + (uint64_t)v->cpu->tsc_offset;
    return kvm_guest_write(v, gpa(addr), &pair, sizeof(pair)) < 0 ? -KVM_EFAULT : 0;
}
