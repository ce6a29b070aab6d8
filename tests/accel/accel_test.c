/*
 * The client of the KVM ABI against every engine that is to be had: slots follow the flat view, also while
 * a guest runs; dirty logs, event descriptors and coalesced writes arrive; exits end the run as they should.
 *
 * Guests are 16-bit code at 0x1000 of a 64 KiB machine, assembled below.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "accel/accel.h"
#include "strata/access.h"
#include "strata/address_space.h"
#include "strata/dirty.h"
#include "strata/eventfd.h"
#include "strata/memory.h"
#include "strata/ram.h"
#include "strata/region.h"

#define RAM_SIZE  0x10000u
#define CODE_ADDR 0x1000u
#define DONE_PORT 0x10u /* a write of any value: the guest is through */
#define SEEN_PORT 0x18u
#define EVENT_PORT 0x30u

#define GUEST(name, body)                                                                          \
    extern const char name[], name##_end[];                                                        \
    __asm__(".pushsection .rodata\n.code16\n" #name ":\n" body "\n" #name                          \
            "_end:\n.code64\n.popsection\n")

/* Watch a word that is always 0x5a5a; tell of any other value; end when byte 0x9000 is set. */
GUEST(guest_watch, "1: mov 0x8000, %ax\n cmp $0x5a5a, %ax\n jne 2f\n cmpb $0, 0x9000\n je 1b\n"
                   "mov $1, %al\n out %al, $0x10\n hlt\n"
                   "2: mov $2, %al\n out %al, $0x10\n hlt\n");
/* Write into pages 2, 5 and 7. */
GUEST(guest_dirty, "movb $1, 0x2000\n movb $1, 0x5fff\n movw $1, 0x7800\n mov $1, %al\n out %al, $0x10\n hlt\n");
/* Three writes to an event port and one that does not match. */
GUEST(guest_events, "mov $7, %al\n out %al, $0x30\n out %al, $0x30\n mov $8, %al\n out %al, $0x30\n mov $7, %al\n"
                    "out %al, $0x30\n out %al, $0x10\n hlt\n");
/* Writes that may be coalesced, at 0xf000 of segment 0x2000, then a port. */
GUEST(guest_coalesced, "mov $0x2000, %ax\n mov %ax, %ds\n movb $1, 0xf000\n movb $2, 0xf001\n movw $0x0403, 0xf002\n"
                       "mov $9, %al\n out %al, $0x18\n mov $1, %al\n out %al, $0x10\n hlt\n");
/* Reads of a device and of nothing; what came goes out of a port. */
GUEST(guest_reads, "mov $0x2000, %ax\n mov %ax, %ds\n mov 0xf004, %ax\n out %ax, $0x18\n mov 0xe000, %al\n out %al, $0x18\n"
                   "in $0x77, %al\n out %al, $0x18\n mov $1, %al\n out %al, $0x10\n hlt\n");
/* An interrupt table that is not there: a triple fault. */
GUEST(guest_crash, "lidtl 0x1100\n mov $0x10, %ax\n lgdtl 0x1100\n mov %cr0, %eax\n or $1, %al\n mov %eax, %cr0\n"
                   "ljmp $8, $0\n");

struct rig {
    const char *engine;
    struct strata_memory *memory;
    struct strata_region *system, *ram, *ports, *done, *window;
    struct strata_space *space, *io;
    struct accel *accel;
    sem_t ended;
    int stop_reason;
    unsigned done_value;
    unsigned seen[32], seen_count;
};

static void on_stop(void *opaque, enum accel_stop why, const char *detail)
{
    struct rig *r = opaque;

    r->stop_reason = why;
    sem_post(&r->ended);
}

static void done_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct rig *r = opaque;

    if (addr == DONE_PORT) {
        r->done_value = value;
        accel_request_stop(r->accel);
        sem_post(&r->ended);
    } else if (addr == SEEN_PORT && r->seen_count < 32) {
        r->seen[r->seen_count++] = value;
    }
}

static void window_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct rig *r = opaque;

    if (r->seen_count < 32) {
        r->seen[r->seen_count++] = (unsigned)(addr << 16 | value);
    }
}

static uint64_t window_read(void *opaque, strata_addr addr, unsigned size)
{
    return 0xb000 + addr;
}

static const struct strata_io_ops done_ops = {.write = done_write, .impl = {1, 4, true}, .valid = {1, 4, true, NULL}};
static const struct strata_io_ops window_ops = {
    .read = window_read, .write = window_write, .impl = {1, 2, true}, .valid = {1, 4, true, NULL}};

static struct strata_region *region(struct rig *r, const struct strata_region_desc *desc)
{
    struct strata_region *out;

    assert_int_equal(strata_region_new(r->memory, desc, &out), 0);
    return out;
}

static void rig_init(struct rig *r, const char *engine, const char *code, const char *code_end)
{
    struct strata_region_desc container = {.kind = STRATA_CONTAINER, .name = "system", .size = STRATA_SIZE_ALL};
    struct strata_region_desc ram = {.kind = STRATA_RAM, .name = "ram", .size = RAM_SIZE};
    struct strata_region_desc done = {.kind = STRATA_IO, .name = "done", .size = 0x30, .ops = &done_ops, .opaque = r};
    struct strata_region_desc window = {.kind = STRATA_IO, .name = "window", .size = 0x1000, .ops = &window_ops,
                                        .opaque = r};
    struct accel_options opts = {.engine = engine, .vcpus = 1, .stop = on_stop, .opaque = r};
    struct accel_boot_state cpu = {.mode = ACCEL_MODE_REAL, .rip = CODE_ADDR, .rsp = 0xf00};
    struct base_error err = {""};

    memset(r, 0, sizeof(*r));
    r->engine = engine;
    r->stop_reason = -1;
    sem_init(&r->ended, 0, 0);
    assert_int_equal(strata_memory_new(NULL, &r->memory), 0);
    r->system = region(r, &container);
    container.name = "io";
    container.size = 65536;
    r->ports = region(r, &container);
    r->ram = region(r, &ram);
    r->done = region(r, &done);
    r->window = region(r, &window);
    assert_int_equal(strata_region_add(r->system, 0, r->ram), 0);
    assert_int_equal(strata_region_add(r->system, 0x2f000, r->window), 0);
    assert_int_equal(strata_region_add(r->ports, 0, r->done), 0);
    assert_int_equal(strata_space_new(r->memory, "memory", r->system, &r->space), 0);
    assert_int_equal(strata_space_new(r->memory, "I/O", r->ports, &r->io), 0);
    strata_space_set_open_bus(r->io, true);
    if (accel_open(&r->accel, &opts, &err) < 0) {
        fail_msg("%s", err.text);
    }
    assert_int_equal(accel_attach(r->accel, r->space, r->io, &err), 0);
    assert_int_equal(strata_write(r->space, CODE_ADDR, STRATA_ATTRS_NONE, code, code_end - code), STRATA_OK);
    assert_int_equal(accel_boot_cpu_set(r->accel, &cpu, &err), 0);
}

static void rig_fini(struct rig *r)
{
    accel_free(r->accel);
    strata_space_free(r->space);
    strata_space_free(r->io);
    strata_region_destroy(r->window);
    strata_region_destroy(r->done);
    strata_region_destroy(r->ram);
    strata_region_destroy(r->ports);
    strata_region_destroy(r->system);
    strata_memory_free(r->memory);
    sem_destroy(&r->ended);
}

static void rig_wait(struct rig *r)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 60;
    if (sem_timedwait(&r->ended, &until) < 0) {
        accel_stop(r->accel);
        accel_registers_show(r->accel, stderr);
        fail_msg("the guest did not end");
    }
    accel_stop(r->accel);
}

static void rig_run(struct rig *r)
{
    struct base_error err = {""};

    assert_int_equal(accel_start(r->accel, &err), 0);
    rig_wait(r);
}

static void start(void **state, struct rig *r, const char *code, const char *code_end)
{
    rig_init(r, *state, code, code_end);
}

/* The slots are the RAM ranges of the flat view, and stay so through changes. */
static void slots_follow(void **state)
{
    struct strata_region_desc hole = {.kind = STRATA_RESERVATION, .name = "hole", .size = 0x2000};
    struct accel_slot_info s[8];
    struct strata_region *over;
    struct rig r;

    start(state, &r, guest_dirty, guest_dirty_end);
    assert_int_equal(accel_slots(r.accel, s, 8), 1);
    assert_int_equal(s[0].gpa, 0);
    assert_int_equal(s[0].size, RAM_SIZE);
    assert_int_equal(s[0].hva, (uintptr_t)strata_region_host(r.ram));
    over = region(&r, &hole);
    assert_int_equal(strata_region_add_overlap(r.system, 0x4000, over, 1), 0);
    assert_int_equal(accel_slots(r.accel, s, 8), 2);
    assert_int_equal(s[0].size, 0x4000);
    assert_int_equal(s[1].gpa, 0x6000);
    assert_int_equal(s[1].size, RAM_SIZE - 0x6000);
    assert_int_equal(s[1].hva, (uintptr_t)strata_region_host(r.ram) + 0x6000);
    assert_int_not_equal(s[0].id, s[1].id);
    /* Not whole pages: the slot shrinks inwards. */
    assert_int_equal(strata_region_set_address(over, 0x4800), 0);
    assert_int_equal(accel_slots(r.accel, s, 8), 2);
    assert_int_equal(s[0].size, 0x4000);
    assert_int_equal(s[1].gpa, 0x7000);
    assert_int_equal(strata_region_set_enabled(over, false), 0);
    assert_int_equal(accel_slots(r.accel, s, 8), 1);
    assert_int_equal(s[0].size, RAM_SIZE);
    assert_int_equal(strata_region_set_readonly(r.ram, true), 0);
    assert_int_equal(accel_slots(r.accel, s, 8), 1);
    assert_int_equal(s[0].flags, 2);
    assert_int_equal(strata_region_set_enabled(r.ram, false), 0);
    assert_int_equal(accel_slots(r.accel, s, 8), 0);
    strata_region_destroy(over);
    rig_fini(&r);
}

/* While the guest reads and runs in it, its slot is split and joined: it must never meet a hole. */
static void no_hole(void **state)
{
    struct strata_region_desc hole = {.kind = STRATA_RESERVATION, .name = "hole", .size = 0x1000};
    struct base_error err = {""};
    struct strata_region *over;
    uint16_t word = 0x5a5a;
    uint8_t one = 1;
    struct rig r;
    int i;

    start(state, &r, guest_watch, guest_watch_end);
    strata_write(r.space, 0x8000, STRATA_ATTRS_NONE, &word, 2);
    over = region(&r, &hole);
    assert_int_equal(strata_region_add_overlap(r.system, 0xc000, over, 1), 0);
    assert_int_equal(accel_start(r.accel, &err), 0);
    for (i = 0; i < 400; i++) {
        assert_int_equal(strata_region_set_enabled(over, i & 1), 0);
    }
    strata_write(r.space, 0x9000, STRATA_ATTRS_NONE, &one, 1);
    rig_wait(&r);
    assert_int_equal(r.stop_reason, -1);
    assert_int_equal(r.done_value, 1);
    strata_region_destroy(over);
    rig_fini(&r);
}

static void dirty_log(void **state)
{
    struct strata_ram *ram;
    struct rig r;
    unsigned page;

    start(state, &r, guest_dirty, guest_dirty_end);
    ram = strata_region_ram(r.ram);
    assert_int_equal(strata_region_set_log(r.ram, true, STRATA_DIRTY_DISPLAY), 0);
    assert_int_equal(strata_region_sync_dirty(r.ram), 0); /* an engine may begin with all of it dirty */
    strata_ram_test_clear_dirty(ram, 0, RAM_SIZE, STRATA_DIRTY_DISPLAY);
    rig_run(&r);
    assert_int_equal(r.done_value, 1);
    assert_int_equal(strata_region_sync_dirty(r.ram), 0);
    for (page = 0; page < 16; page++) {
        bool dirty = strata_ram_get_dirty(ram, page * 4096, 4096, STRATA_DIRTY_DISPLAY);

        if (page == 2 || page == 5 || page == 7) {
            assert_true(dirty);
        } else if (page > 7) {
            assert_false(dirty); /* the guest was nowhere near */
        }
    }
    assert_int_equal(strata_region_set_log(r.ram, false, STRATA_DIRTY_DISPLAY), 0);
    rig_fini(&r);
}

static void events(void **state)
{
    struct strata_eventfd ev = {.addr = 0, .size = 1, .match_data = true, .data = 7};
    struct strata_region_desc port = {.kind = STRATA_IO, .name = "event", .size = 1, .ops = &done_ops};
    struct strata_region *at;
    uint64_t count = 0;
    struct rig r;

    start(state, &r, guest_events, guest_events_end);
    port.opaque = &r;
    at = region(&r, &port);
    ev.fd = eventfd(0, EFD_NONBLOCK);
    assert_int_equal(strata_region_add(r.ports, EVENT_PORT, at), 0);
    assert_int_equal(strata_region_add_eventfd(at, &ev), 0);
    rig_run(&r);
    assert_int_equal(read(ev.fd, &count, sizeof(count)), 8);
    assert_int_equal(count, 3);
    assert_int_equal(strata_region_del_eventfd(at, &ev), 0);
    strata_region_destroy(at);
    close(ev.fd);
    rig_fini(&r);
}

static void coalesced(void **state)
{
    struct accel_exit_count exits[8];
    unsigned i, n, mmio = 0;
    struct rig r;

    start(state, &r, guest_coalesced, guest_coalesced_end);
    assert_int_equal(strata_region_add_coalesced(r.window, 0, 0x1000), 0);
    rig_run(&r);
    assert_int_equal(r.seen_count, 4);
    assert_int_equal(r.seen[0], 1);
    assert_int_equal(r.seen[1], 1u << 16 | 2);
    assert_int_equal(r.seen[2], 2u << 16 | 0x0403);
    assert_int_equal(r.seen[3], 9);
    n = accel_exit_counts(r.accel, exits, 8);
    for (i = 0; i < n; i++) {
        mmio += strcmp(exits[i].name, "mmio") == 0 ? exits[i].count : 0;
    }
    assert_int_equal(mmio, 0);
    rig_fini(&r);
}

static void reads(void **state)
{
    struct rig r;

    start(state, &r, guest_reads, guest_reads_end);
    rig_run(&r);
    assert_int_equal(r.seen_count, 3);
    assert_int_equal(r.seen[0], 0xb004);
    assert_int_equal(r.seen[1], 0);
    assert_int_equal(r.seen[2], 0xff);
    rig_fini(&r);
}

static void crash(void **state)
{
    struct rig r;

    start(state, &r, guest_crash, guest_crash_end);
    rig_run(&r);
    assert_int_equal(r.stop_reason, ACCEL_STOP_SHUTDOWN);
    rig_fini(&r);
}

struct stats_seen {
    unsigned vm, vcpu;
};

static void count_stat(void *opaque, int vcpu, const char *name, const uint64_t *values, unsigned count)
{
    struct stats_seen *s = opaque;

    assert_true(name[0] && count > 0);
    s->vm += vcpu < 0;
    s->vcpu += vcpu == 0;
}

static void statistics(void **state)
{
    struct stats_seen seen = {0, 0};
    struct rig r;

    start(state, &r, guest_reads, guest_reads_end);
    rig_run(&r);
    assert_int_equal(accel_stats_read(r.accel, count_stat, &seen), 0);
    assert_true(seen.vm > 2 && seen.vcpu > 5);
    assert_true(accel_clock_ns(r.accel) > 0);
    rig_fini(&r);
}

/* Two machines in one process share nothing. */
static void two_machines(void **state)
{
    struct rig a, b;

    start(state, &a, guest_reads, guest_reads_end);
    start(state, &b, guest_dirty, guest_dirty_end);
    rig_run(&a);
    rig_run(&b);
    assert_int_equal(a.seen_count, 3);
    assert_int_equal(b.seen_count, 0);
    rig_fini(&a);
    rig_fini(&b);
}

static void choices(void **state)
{
    static const struct {
        const char *text, *names;
    } refused[] = {
        {"soft,dirty-ring-size=77", "77"},       {"soft,dirty-ring-size=131072", "131072"},
        {"soft,dirty-ring-size=4095", "4095"},   {"soft,dirty-ring-size=", "dirty-ring-size"},
        {"soft,max-slot-size=5000", "5000"},     {"soft,max-slot-size=0", "max-slot-size"},
        {"soft,max-slot-size=5T", "5T"},         {"soft,manual-dirty-log=maybe", "maybe"},
        {"soft,kernel-irqchip=split", "split"},  {"soft,nosuch=1", "nosuch"},
        {"soft,mmu=none", "none"},               {"xen,dirty-ring-size=4096", "xen"},
    };
    struct accel_options opts = {.engine = "xen", .vcpus = 1};
    struct base_error err = {""};
    struct accel *a;

    assert_int_equal(accel_open(&a, &opts, &err), -EINVAL);
    assert_non_null(strstr(err.text, "xen"));
    opts.engine = "";
    assert_int_equal(accel_open(&a, &opts, &err), -EINVAL);
    opts.engine = "soft";
    opts.vcpus = 65;
    assert_int_equal(accel_open(&a, &opts, &err), -EINVAL);
    opts.vcpus = 1;
    opts.cpu = "max,-nosuch";
    assert_int_equal(accel_open(&a, &opts, &err), -EINVAL);
    assert_non_null(strstr(err.text, "nosuch"));
    opts.cpu = NULL;
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        opts.engine = refused[i].text;
        assert_int_equal(accel_engine_check(refused[i].text, &err), -EINVAL);
        assert_non_null(strstr(err.text, refused[i].names));
        assert_int_equal(accel_open(&a, &opts, &err), -EINVAL);
        assert_non_null(strstr(err.text, refused[i].names));
    }
    opts.engine = "soft,manual-dirty-log=on,initially-dirty=off,max-slot-size=1M,kernel-irqchip=on";
    opts.cpu = "max,-x2apic,kvmclock=off";
    assert_int_equal(accel_open(&a, &opts, &err), 0);
    assert_string_equal(accel_engine(a), "soft");
    accel_free(a);
}

/* argv[1]: the engine; 77 (skipped) when it is not to be had. */
int main(int argc, char **argv)
{
    const char *engine = argc > 1 ? argv[1] : "soft";
    struct accel_options opts = {.engine = engine, .vcpus = 1};
    struct accel *a;
    char name[32];
    struct CMUnitTest tests[] = {
        cmocka_unit_test(slots_follow), cmocka_unit_test(no_hole),    cmocka_unit_test(dirty_log),
        cmocka_unit_test(events),       cmocka_unit_test(coalesced),  cmocka_unit_test(reads),
        cmocka_unit_test(crash),        cmocka_unit_test(statistics), cmocka_unit_test(two_machines),
        cmocka_unit_test(choices),
    };
    size_t i;

    if (accel_open(&a, &opts, NULL) < 0) {
        return 77;
    }
    accel_free(a);
    for (i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
        tests[i].initial_state = (void *)engine;
    }
    snprintf(name, sizeof(name), "accel/%s", engine);
    return _cmocka_run_group_tests(name, tests, sizeof(tests) / sizeof(tests[0]), NULL, NULL);
}
