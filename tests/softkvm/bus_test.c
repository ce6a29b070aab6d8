/*
 * The in-kernel bus against a plain list walked from end to end; registration limits, failing
 * allocations; eventfds and coalesced zones as devices on it.
 */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "softkvm/bus.h"
#include "softkvm/vcpu.h"

#define MAX_DEVS 64

/* A device that notes its calls, and takes or refuses them. */
struct dev {
    uint64_t addr, len;
    bool takes;
    unsigned order; /* of registration */
    int *log, *nlog;
    int id;
};

static struct kvm_vm *vm;
static struct softkvm *engine;
static bool failing;
static unsigned fail_after;

static bool fail_alloc(void *opaque)
{
    (void)opaque;
    return failing && fail_after-- == 0;
}

static int setup(void **state)
{
    (void)state;
    engine = calloc(1, sizeof(*engine));
    engine->options.fail_alloc = fail_alloc;
    vm = calloc(1, sizeof(*vm));
    vm->s = engine;
    pthread_mutex_init(&vm->slots_lock, NULL);
    failing = false;
    return kvm_buses_init(vm);
}

static int teardown(void **state)
{
    (void)state;
    kvm_buses_fini(vm);
    pthread_mutex_destroy(&vm->slots_lock);
    free(vm);
    free(engine);
    return 0;
}

static int dev_write(void *opaque, struct kvm_vcpu *v, uint64_t addr, unsigned len, const void *data)
{
    struct dev *d = opaque;

    (void)v, (void)addr, (void)len, (void)data;
    d->log[(*d->nlog)++] = d->id;
    return d->takes ? 0 : -EOPNOTSUPP;
}

static const struct kvm_bus_ops dev_ops = {.write = dev_write};

static uint32_t seed = 99;

static uint32_t rnd(uint32_t n)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % n;
}

static int write_bus(enum kvm_bus_id bus, uint64_t addr, unsigned len, uint64_t value)
{
    struct kvm_bus_access a = {.bus = bus, .addr = addr, .size = (uint8_t)len, .is_write = true,
                               .data = (uint8_t *)&value};

    return kvm_bus_access(vm->buses, NULL, &a);
}

static bool wants(const struct dev *d, uint64_t addr, unsigned len)
{
    return d->len == 0 ? addr == d->addr
                       : addr >= d->addr && (unsigned __int128)addr + len <= (unsigned __int128)d->addr + d->len;
}

/* Of two at one address the one that ends first is asked first, then the older one. */
static bool ends_before(const struct dev *a, const struct dev *b)
{
    uint64_t x = a->len ? a->len : 1, y = b->len ? b->len : 1;

    return x < y || (x == y && a->order < b->order);
}

/* The list walked in order of address, then of end, then of registration. */
static int model_write(struct dev **devs, unsigned n, uint64_t addr, unsigned len, int *log, int *nlog)
{
    bool asked[MAX_DEVS] = {0};

    for (;;) {
        struct dev *next = NULL;
        unsigned at = 0;

        for (unsigned i = 0; i < n; i++) {
            struct dev *d = devs[i];

            if (!asked[i] && wants(d, addr, len) &&
                (!next || d->addr < next->addr || (d->addr == next->addr && ends_before(d, next)))) {
                next = d;
                at = i;
            }
        }
        if (!next) {
            return -EOPNOTSUPP;
        }
        asked[at] = true;
        log[(*nlog)++] = next->id;
        if (next->takes) {
            return 0;
        }
    }
}

static void test_random(void **state)
{
    struct dev pool[MAX_DEVS], *live[MAX_DEVS];
    int log[MAX_DEVS], want[MAX_DEVS], nlog, nwant;
    unsigned n = 0, orders = 0;

    (void)state;
    for (unsigned step = 0; step < 30000; step++) {
        uint64_t base = rnd(8) ? 0x1000 : UINT64_MAX - 127;
        unsigned slot = rnd(MAX_DEVS), len = 1u << rnd(4);
        uint64_t addr = base + rnd(120);

        if (rnd(8) == 0 && n < MAX_DEVS) {
            struct dev *d = &pool[n];

            *d = (struct dev){.addr = addr, .len = rnd(4) ? 1 + rnd(64) : 0, .takes = rnd(2), .log = log,
                              .nlog = &nlog, .id = (int)step, .order = orders++};
            struct kvm_bus_range r = {.addr = d->addr, .len = d->len, .ops = &dev_ops, .opaque = d};
            int ret = kvm_bus_register(vm, KVM_BUS_MEM, &r);

            assert_int_equal(ret, d->len && d->addr + d->len - 1 < d->addr ? -EINVAL : 0);
            if (ret == 0) {
                live[n] = d;
                n++;
            }
        } else if (rnd(400) == 0) {
            while (n > 0) {
                assert_int_equal(kvm_bus_unregister(vm, KVM_BUS_MEM, live[--n]), 0);
                assert_int_equal(kvm_bus_unregister(vm, KVM_BUS_MEM, live[n]), -ENOENT);
            }
        }
        (void)slot;
        nlog = nwant = 0;
        assert_int_equal(write_bus(KVM_BUS_MEM, addr, len, 0),
                         model_write(live, n, addr, len, want, &nwant));
        assert_int_equal(nlog, nwant);
        assert_memory_equal(log, want, (size_t)nlog * sizeof(int));
        assert_int_equal(write_bus(KVM_BUS_PORT, addr, len, 0), -EOPNOTSUPP);
    }
}

static int ioevent(uint64_t addr, uint32_t len, int fd, uint32_t flags, uint64_t match)
{
    struct kvm_ioeventfd e = {.addr = addr, .len = len, .fd = fd, .flags = flags, .datamatch = match};

    return kvm_ioeventfd_change(vm, &e);
}

static uint64_t count(int fd)
{
    uint64_t n = 0;

    return read(fd, &n, sizeof(n)) < 0 ? 0 : n;
}

static void test_eventfds(void **state)
{
    int any = eventfd(0, EFD_NONBLOCK), two = eventfd(0, EFD_NONBLOCK), seven = eventfd(0, EFD_NONBLOCK);

    (void)state;
    assert_int_equal(ioevent(0x1000, 0, any, 0, 0), 0);
    assert_int_equal(ioevent(0x2000, 2, two, 0, 0), 0);
    assert_int_equal(ioevent(0x2000, 4, seven, KVM_IOEVENTFD_FLAG_DATAMATCH, 7), 0);
    assert_int_equal(ioevent(0x30, 1, two, KVM_IOEVENTFD_FLAG_PIO, 0), 0);
    for (unsigned len = 1; len <= 8; len *= 2) {
        assert_int_equal(write_bus(KVM_BUS_MEM, 0x1000, len, 7), 0);
        assert_int_equal(write_bus(KVM_BUS_MEM, 0x2000, len, 7), len == 2 || len == 4 ? 0 : -EOPNOTSUPP);
        assert_int_equal(write_bus(KVM_BUS_MEM, 0x2000, len, 0x107), len == 2 ? 0 : -EOPNOTSUPP);
        assert_int_equal(write_bus(KVM_BUS_MEM, 0x1001, len, 7), -EOPNOTSUPP);
        assert_int_equal(write_bus(KVM_BUS_PORT, 0x30, len, 7), len == 1 ? 0 : -EOPNOTSUPP);
    }
    assert_int_equal(count(any), 4);
    assert_int_equal(count(two), 3);
    assert_int_equal(count(seven), 1);
    assert_int_equal(ioevent(0x1000, 0, any, KVM_IOEVENTFD_FLAG_DEASSIGN, 0), 0);
    assert_int_equal(write_bus(KVM_BUS_MEM, 0x1000, 4, 7), -EOPNOTSUPP);
    close(any);
    close(two);
    close(seven);
}

static int zone(uint64_t addr, uint32_t size, uint32_t pio, bool add)
{
    struct kvm_coalesced_mmio_zone z = {.addr = addr, .size = size, .pio = pio};

    return add ? kvm_coalesced_register(vm, &z) : kvm_coalesced_unregister(vm, &z);
}

static void test_ring(void **state)
{
    struct kvm_coalesced_mmio_ring *ring = aligned_alloc(4096, 4096);

    (void)state;
    memset(ring, 0, 4096);
    assert_int_equal(KVM_COALESCED_MMIO_MAX, 170);
    atomic_store(&vm->buses->ring, ring);
    assert_int_equal(zone(0x1000, 16, 0, true), 0);
    assert_int_equal(zone(0x70, 2, 1, true), 0);
    assert_int_equal(write_bus(KVM_BUS_MEM, 0x100c, 8, 1), -EOPNOTSUPP); /* hangs over */
    assert_int_equal(write_bus(KVM_BUS_MEM, 0xfff, 1, 1), -EOPNOTSUPP);
    assert_int_equal(write_bus(KVM_BUS_PORT, 0x71, 1, 0xab), 0);
    for (unsigned i = 1; i < 169; i++) {
        assert_int_equal(write_bus(KVM_BUS_MEM, 0x1008, 8, i), 0);
    }
    assert_int_equal(write_bus(KVM_BUS_MEM, 0x1008, 8, 1), -EOPNOTSUPP); /* one is always empty */
    assert_int_equal(ring->last, 169);
    assert_int_equal(ring->coalesced_mmio[0].pio, 1);
    assert_int_equal(ring->coalesced_mmio[0].data[0], 0xab);
    assert_int_equal(ring->coalesced_mmio[168].phys_addr, 0x1008);
    assert_int_equal(ring->coalesced_mmio[168].data[0], 168);
    ring->first = 1;
    assert_int_equal(write_bus(KVM_BUS_MEM, 0x1000, 4, 5), 0);
    assert_int_equal(ring->last, 0);
    /* What user space may write there must not be believed. */
    for (unsigned i = 0; i < 4; i++) {
        static const uint32_t junk[] = {170, 171, 0x7fffffff, 0xffffffff};

        ring->last = junk[i];
        assert_int_equal(write_bus(KVM_BUS_MEM, 0x1000, 4, 5), -EOPNOTSUPP);
        ring->last = 0;
        ring->first = junk[i];
        (void)write_bus(KVM_BUS_MEM, 0x1000, 4, 5);
        assert_true(ring->last < 170);
        ring->last = 0;
    }
    assert_int_equal(zone(0x1004, 4, 0, false), 0); /* goes with all that contain it */
    assert_int_equal(write_bus(KVM_BUS_MEM, 0x1000, 4, 5), -EOPNOTSUPP);
    assert_int_equal(zone(0x70, 2, 0, false), 0); /* of the other bus: stays */
    ring->first = ring->last = 0;
    assert_int_equal(write_bus(KVM_BUS_PORT, 0x70, 1, 5), 0);
    atomic_store(&vm->buses->ring, NULL);
    free(ring);
}

/* Fail the n-th allocation until none fails; nothing may be left half done. */
static void test_no_memory(void **state)
{
    int fd = eventfd(0, EFD_NONBLOCK);
    unsigned n = 0;
    int ret;

    (void)state;
    failing = true;
    do {
        fail_after = n++;
        ret = ioevent(0x1000, 4, fd, 0, 0);
        assert_true(ret == 0 || ret == -ENOMEM);
        assert_int_equal(write_bus(KVM_BUS_MEM, 0x1000, 4, 0), ret == 0 ? 0 : -EOPNOTSUPP);
    } while (ret != 0);
    for (n = 0, ret = -1; ret != 0; n++) {
        fail_after = n;
        ret = ioevent(0x1000, 4, fd, KVM_IOEVENTFD_FLAG_DEASSIGN, 0);
        assert_true(ret == 0 || ret == -ENOMEM);
        assert_int_equal(write_bus(KVM_BUS_MEM, 0x1000, 4, 0), ret == 0 ? -EOPNOTSUPP : 0);
    }
    assert_true(n > 1);
    failing = false;
    close(fd);
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void test_cost(void **state)
{
    struct kvm_coalesced_mmio_ring *ring = aligned_alloc(4096, 4096);
    int fd = eventfd(0, EFD_NONBLOCK);
    uint64_t start;

    (void)state;
    memset(ring, 0, 4096);
    atomic_store(&vm->buses->ring, ring);
    assert_int_equal(zone(0x1000, 16, 0, true), 0);
    assert_int_equal(ioevent(0x2000, 4, fd, 0, 0), 0);
    start = now_ns();
    for (unsigned i = 0; i < 100000; i++) {
        __atomic_store_n(&ring->first, ring->last, __ATOMIC_RELAXED);
        assert_int_equal(write_bus(KVM_BUS_MEM, 0x1000, 4, i), 0);
    }
    print_message("# coalesced write: %llu ns\n", (unsigned long long)((now_ns() - start) / 100000));
    start = now_ns();
    for (unsigned i = 0; i < 100000; i++) {
        assert_int_equal(write_bus(KVM_BUS_MEM, 0x2000, 4, i), 0);
    }
    print_message("# ioeventfd write: %llu ns\n", (unsigned long long)((now_ns() - start) / 100000));
    assert_int_equal(count(fd), 100000);
    close(fd);
    atomic_store(&vm->buses->ring, NULL);
    free(ring);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_random, setup, teardown),
        cmocka_unit_test_setup_teardown(test_eventfds, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ring, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_memory, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cost, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
