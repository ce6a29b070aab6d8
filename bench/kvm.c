/*
 * The KVM ABI's memory calls on libsoftkvm and on the kernel's /dev/kvm, side by side: slots at 10 to 30,000, dirty
 * logs of 1 GiB clean and full in each mode, the ring's harvest and reset, exits, descriptors, coalesced writes.
 * Wall time (the kernel's work is not ours to count), medians of rounds, the two in turns.
 * Usage: bench_kvm [--json FILE]
 */
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "accel/endpoint.h"
#include "measure.h"

#define GIB    (UINT64_C(1) << 30)
#define LOG_AT UINT64_C(0x40000000)
#define ROUNDS 5

struct side {
    struct accel_endpoint *ep;
    int sys, vm, vcpu;
    struct kvm_run *run;
    size_t run_size;
    uint8_t *code, *ram;
    struct kvm_dirty_gfn *ring;
    uint32_t next;
    uint64_t *bits;
    uint32_t pages; /* of the logged slot: fewer where guests are slow */
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "bench_kvm: %s\n", what);
        exit(1);
    }
}

static int vm_ioctl(struct side *s, unsigned long request, void *arg)
{
    return accel_ioctl_ptr(s->ep, s->vm, request, arg);
}

static int set_slot(struct side *s, uint32_t id, uint32_t flags, uint64_t gpa, uint64_t size, void *hva)
{
    struct kvm_userspace_memory_region r = {id, flags, gpa, size, (uintptr_t)hva};

    return vm_ioctl(s, KVM_SET_USER_MEMORY_REGION, &r);
}

static void set_flat(struct side *s)
{
    struct kvm_sregs sregs;
    struct kvm_segment seg = {.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1};

    accel_ioctl_ptr(s->ep, s->vcpu, KVM_GET_SREGS, &sregs);
    sregs.cs = seg;
    seg.type = 3;
    seg.selector = 16;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = seg;
    sregs.cr0 |= 1;
    must(accel_ioctl_ptr(s->ep, s->vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
}

/* A VM with 64 KiB of code at 0, one vCPU, and the log's slot of `pages`. */
static void vm_open(struct side *s, uint64_t manual, uint32_t ring_bytes)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = {manual}};
    int err = 0;

    s->vm = accel_ioctl(s->ep, s->sys, KVM_CREATE_VM, 0);
    must(s->vm >= 0, "KVM_CREATE_VM");
    if (manual) {
        must(vm_ioctl(s, KVM_ENABLE_CAP, &cap) == 0, "manual protection");
    }
    if (ring_bytes) {
        cap.cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL;
        cap.args[0] = ring_bytes;
        must(vm_ioctl(s, KVM_ENABLE_CAP, &cap) == 0, "dirty ring");
    }
    must(set_slot(s, 0, 0, 0, 0x10000, s->code) == 0, "slot");
    s->vcpu = accel_ioctl(s->ep, s->vm, KVM_CREATE_VCPU, 0);
    must(s->vcpu >= 0, "KVM_CREATE_VCPU");
    s->run = s->ep->ops->mmap(s->ep, s->vcpu, s->run_size, 0, &err);
    must(s->run, "mmap of the run page");
    if (ring_bytes) {
        s->ring = s->ep->ops->mmap(s->ep, s->vcpu, ring_bytes, (off_t)KVM_DIRTY_LOG_PAGE_OFFSET * 4096, &err);
        must(s->ring, "mmap of the ring");
        s->next = 0;
    }
    set_flat(s);
}

static void vm_close(struct side *s, uint32_t ring_bytes)
{
    if (ring_bytes) {
        s->ep->ops->munmap(s->ep, s->ring, ring_bytes);
    }
    s->ep->ops->munmap(s->ep, s->run, s->run_size);
    s->ep->ops->close(s->ep, s->vcpu);
    s->ep->ops->close(s->ep, s->vm);
}

/* Run the code at 0x1000 until HLT; exits on the way are counted and answered with zero. */
static uint32_t run_guest(struct side *s, const uint8_t *code, size_t size, uint32_t edi, uint32_t ecx)
{
    struct kvm_regs regs = {.rip = 0x1000, .rflags = 2, .rdi = edi, .rcx = ecx};
    uint32_t exits = 0;

    memcpy(s->code + 0x1000, code, size);
    must(accel_ioctl_ptr(s->ep, s->vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
    for (;; exits++) {
        must(accel_ioctl(s->ep, s->vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
        if (s->run->exit_reason == KVM_EXIT_HLT) {
            return exits;
        }
        must(s->run->exit_reason == KVM_EXIT_MMIO || s->run->exit_reason == KVM_EXIT_IO, "an exit");
    }
}

/* A store to each of ECX pages from EDI on. */
static const uint8_t touch_pages[] = {0x89, 0x07, 0x81, 0xc7, 0, 0x10, 0, 0, 0x49, 0x75, 0xf5, 0xf4};
/* ECX stores to [EDI]; ECX loads; ECX bytes to port 0x80; ECX times nothing. */
static const uint8_t store_loop[] = {0x89, 0x07, 0x49, 0x75, 0xfb, 0xf4};
static const uint8_t load_loop[] = {0x8b, 0x07, 0x49, 0x75, 0xfb, 0xf4};
static const uint8_t port_loop[] = {0xe6, 0x80, 0x49, 0x75, 0xfb, 0xf4};
static const uint8_t empty_loop[] = {0x90, 0x90, 0x49, 0x75, 0xfb, 0xf4};

static void fill_log(struct side *s)
{
    run_guest(s, touch_pages, sizeof(touch_pages), (uint32_t)LOG_AT, s->pages);
}

/* ---- figures: ns of one operation ---- */

static double slots_at(struct side *s, unsigned count, int verb)
{
    double took[3] = {0, 0, 0}, start;
    unsigned i, n = 40;

    vm_open(s, 0, 0);
    for (i = 1; i < count; i++) {
        must(set_slot(s, i, 0, UINT64_C(0x100000000) + i * UINT64_C(8192), 4096, s->ram + i % 256 * 4096) == 0, "slot");
    }
    for (i = 0; i < n; i++) {
        uint64_t gpa = LOG_AT + i * UINT64_C(8192);

        start = now();
        must(set_slot(s, count, 0, gpa, 4096, s->ram) == 0, "create");
        took[0] += now() - start;
        start = now();
        must(set_slot(s, count, 0, gpa + 4096, 4096, s->ram) == 0, "move");
        took[1] += now() - start;
        start = now();
        must(set_slot(s, count, 0, 0, 0, NULL) == 0, "delete");
        took[2] += now() - start;
    }
    vm_close(s, 0);
    return took[verb] / n;
}

enum log_work { GET_CLEAN, GET_FULL, CLEAR_FULL, CLEAR_64, FLAGS };

/* Per GiB, whatever the size of the slot is; CLEAR_64 and FLAGS as they are. */
static double log_cost(struct side *s, uint64_t manual, enum log_work work)
{
    struct kvm_dirty_log get = {.slot = 1, .dirty_bitmap = s->bits};
    struct kvm_clear_dirty_log clear = {.slot = 1, .num_pages = s->pages, .dirty_bitmap = s->bits};
    double start, took;

    vm_open(s, manual, 0);
    must(set_slot(s, 1, 0, LOG_AT, s->pages * UINT64_C(4096), s->ram) == 0, "slot");
    fill_log(s);
    start = now();
    must(set_slot(s, 1, 1, LOG_AT, s->pages * UINT64_C(4096), s->ram) == 0, "log on");
    took = now() - start;
    if (work != FLAGS) {
        vm_ioctl(s, KVM_GET_DIRTY_LOG, &get);
        if (work != GET_CLEAN) {
            fill_log(s);
        }
        if (work == CLEAR_FULL || work == CLEAR_64) {
            must(vm_ioctl(s, KVM_GET_DIRTY_LOG, &get) == 0, "get");
            clear.num_pages = work == CLEAR_64 ? 64 : s->pages;
            start = now();
            must(vm_ioctl(s, KVM_CLEAR_DIRTY_LOG, &clear) == 0, "clear");
        } else {
            start = now();
            must(vm_ioctl(s, KVM_GET_DIRTY_LOG, &get) == 0, "get");
        }
        took = now() - start;
    }
    vm_close(s, 0);
    return work == CLEAR_64 ? took : took * (double)(GIB / 4096) / s->pages;
}

/* Harvest (0) or reset (1), per entry. */
static double ring_cost(struct side *s, int verb)
{
    uint32_t bytes = 65536 * sizeof(struct kvm_dirty_gfn), n = 0, pages = s->pages < 16384 ? s->pages : 16384;
    double start, took[2];
    volatile uint64_t sum = 0;
    int ret;

    vm_open(s, 0, bytes);
    must(set_slot(s, 1, 1, LOG_AT, pages * UINT64_C(4096), s->ram) == 0, "slot");
    run_guest(s, touch_pages, sizeof(touch_pages), (uint32_t)LOG_AT, pages);
    start = now();
    for (;; n++) {
        struct kvm_dirty_gfn *e = &s->ring[n & 65535];

        if (__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY) {
            break;
        }
        sum += e->offset;
        __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
    }
    took[0] = now() - start;
    start = now();
    ret = accel_ioctl(s->ep, s->vm, KVM_RESET_DIRTY_RINGS, 0);
    took[1] = now() - start;
    must(n > 0 && ret == (int)n, "as many entries reset as harvested");
    vm_close(s, bytes);
    return took[verb] / n;
}

enum exit_work { MMIO_STORE, MMIO_LOAD, PORT, EVENT, COALESCED };

/* One round trip, net of the loop around it. */
static double exit_cost(struct side *s, enum exit_work work, uint32_t n)
{
    static const struct { const uint8_t *code; size_t size; } loops[] = {
        {store_loop, sizeof(store_loop)}, {load_loop, sizeof(load_loop)}, {port_loop, sizeof(port_loop)},
        {store_loop, sizeof(store_loop)}, {store_loop, sizeof(store_loop)}};
    struct kvm_coalesced_mmio_zone zone = {.addr = LOG_AT, .size = 4096};
    struct kvm_ioeventfd event = {.addr = LOG_AT, .len = 4, .fd = eventfd(0, EFD_NONBLOCK)};
    double start, took, idle;
    uint32_t exits, wanted = work <= PORT ? n : 0;

    if (work == COALESCED) {
        n = 160; /* the ring's room */
    }
    vm_open(s, 0, 0);
    must(work != EVENT || vm_ioctl(s, KVM_IOEVENTFD, &event) == 0, "ioeventfd");
    must(work != COALESCED || vm_ioctl(s, KVM_REGISTER_COALESCED_MMIO, &zone) == 0, "zone");
    start = now();
    exits = run_guest(s, loops[work].code, loops[work].size, (uint32_t)LOG_AT, n);
    took = now() - start;
    must(exits == wanted, "as many exits as accesses");
    start = now();
    run_guest(s, empty_loop, sizeof(empty_loop), 0, n);
    idle = now() - start;
    vm_close(s, 0);
    close(event.fd);
    return (took - idle) / n;
}

/* ---- side by side ---- */

struct figure {
    const char *what, *unit;
    double scale, bar;
    double (*fn)(struct side *s, const struct figure *f);
    unsigned a, b;
};

static double do_slots(struct side *s, const struct figure *f)
{
    return slots_at(s, f->a, (int)f->b);
}

static double do_log(struct side *s, const struct figure *f)
{
    return log_cost(s, f->a, f->b);
}

static double do_ring(struct side *s, const struct figure *f)
{
    return ring_cost(s, (int)f->a);
}

static double do_exit(struct side *s, const struct figure *f)
{
    return exit_cost(s, f->a, s->pages > 65536 ? 20000 : 2000);
}

static const struct figure figures[] = {
    {"create a slot, 10 there", "us", 1e3, 3, do_slots, 10, 0},
    {"move a slot, 10 there", "us", 1e3, 3, do_slots, 10, 1},
    {"delete a slot, 10 there", "us", 1e3, 3, do_slots, 10, 2},
    {"create a slot, 1,000 there", "us", 1e3, 3, do_slots, 1000, 0},
    {"move a slot, 1,000 there", "us", 1e3, 3, do_slots, 1000, 1},
    {"delete a slot, 1,000 there", "us", 1e3, 3, do_slots, 1000, 2},
    {"create a slot, 30,000 there", "us", 1e3, 3, do_slots, 30000, 0},
    {"move a slot, 30,000 there", "us", 1e3, 3, do_slots, 30000, 1},
    {"delete a slot, 30,000 there", "us", 1e3, 3, do_slots, 30000, 2},
    {"log on, per GiB mapped", "us", 1e3, 100, do_log, 0, FLAGS},
    {"get log, automatic, clean, per GiB", "us", 1e3, 2, do_log, 0, GET_CLEAN},
    {"get log, automatic, full, per GiB", "us", 1e3, 1000, do_log, 0, GET_FULL},
    {"get log, manual, full, per GiB", "us", 1e3, 12, do_log, 1, GET_FULL},
    {"clear log, manual, full, per GiB", "us", 1e3, 1000, do_log, 1, CLEAR_FULL},
    {"clear log, manual, 64 pages", "us", 1e3, 0.5, do_log, 1, CLEAR_64},
    {"ring, harvest an entry", "ns", 1, 2, do_ring, 0, 0},
    {"ring, reset an entry", "ns", 1, 8, do_ring, 1, 0},
    {"MMIO store, there and back", "ns", 1, 100, do_exit, MMIO_STORE, 0},
    {"MMIO load, there and back", "ns", 1, 100, do_exit, MMIO_LOAD, 0},
    {"port write, there and back", "ns", 1, 80, do_exit, PORT, 0},
    {"ioeventfd write", "ns", 1, 250, do_exit, EVENT, 0},
    {"coalesced write", "ns", 1, 20, do_exit, COALESCED, 0},
};

static bool side_open(struct side *s, struct accel_endpoint *ep, uint32_t pages)
{
    int prot = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

    s->ep = ep;
    s->sys = ep ? ep->ops->open_system(ep) : -1;
    if (s->sys < 0) {
        return false;
    }
    s->pages = pages;
    s->run_size = (size_t)accel_ioctl(ep, s->sys, KVM_GET_VCPU_MMAP_SIZE, 0);
    s->code = mmap(NULL, 0x10000, prot, flags, -1, 0);
    s->ram = mmap(NULL, GIB, prot, flags, -1, 0);
    s->bits = calloc(GIB / 4096 / 64, 8);
    must(s->code != MAP_FAILED && s->ram != MAP_FAILED && s->bits, "memory");
    madvise(s->ram, GIB, MADV_NOHUGEPAGE);
    return true;
}

static double median(double *v)
{
    qsort(v, ROUNDS, sizeof(*v), measure_by_value);
    return v[ROUNDS / 2];
}

int main(int argc, char **argv)
{
    static const char *const peers[2] = {"/dev/kvm", NULL};
    struct measure m = measure_open_peers(argc, argv, peers);
    struct side soft = {0}, kernel = {0};
    bool have_kernel;

    must(side_open(&soft, accel_endpoint_soft_new(NULL, NULL), (uint32_t)(GIB / 4096)), "the soft engine");
    /* Guests may be interpreted there, at some microseconds a store: an eighth of the memory. */
    have_kernel = side_open(&kernel, accel_endpoint_kernel_new(), (uint32_t)(GIB / 4096 / 8));
    for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++) {
        const struct figure *f = &figures[i];
        double mine[ROUNDS], theirs[ROUNDS], row[3] = {0, -1, f->bar};

        for (int k = 0; k < ROUNDS; k++) {
            mine[k] = f->fn(&soft, f);
            theirs[k] = have_kernel ? f->fn(&kernel, f) : 0;
        }
        row[0] = median(mine) / f->scale;
        row[1] = have_kernel ? median(theirs) / f->scale : -1;
        measure_row(&m, f->what, f->unit, row);
        fflush(stdout);
    }
    measure_close(&m);
    return 0;
}
