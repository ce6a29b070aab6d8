/* See rig.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "accel/rig.h"

#define CODE_ADDR 0x1000u
#define GDT_ADDR  0x800u

static void on_stop(void *opaque, enum accel_stop why, const char *detail)
{
    struct rig *r = opaque;

    r->stop_reason = why;
    snprintf(r->stop_text, sizeof(r->stop_text), "%s", detail);
    sem_post(&r->ended);
}

static void done_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct rig *r = opaque;

    r->done_value = (unsigned)value;
    accel_request_stop(r->accel);
    sem_post(&r->ended);
}

static const struct strata_io_ops done_ops = {.write = done_write, .impl = {1, 4, true}, .valid = {1, 4, true, NULL}};

static struct strata_region *region(struct rig *r, const struct strata_region_desc *desc)
{
    struct strata_region *out;

    assert_int_equal(strata_region_new(r->memory, desc, &out), 0);
    return out;
}

struct strata_region *rig_ram(struct rig *r, const char *name, uint64_t bytes)
{
    struct strata_region_desc desc = {.kind = STRATA_RAM, .name = name, .size = bytes};

    return region(r, &desc);
}

struct strata_region *rig_alias(struct rig *r, const char *name, struct strata_region *of, uint64_t bytes)
{
    struct strata_region_desc desc = {.kind = STRATA_ALIAS, .name = name, .size = bytes, .target = of};

    return region(r, &desc);
}

static void make_memory(struct rig *r, uint64_t low)
{
    struct strata_region_desc container = {.kind = STRATA_CONTAINER, .name = "system", .size = STRATA_SIZE_ALL};
    struct strata_region_desc done = {.kind = STRATA_IO, .name = "done", .size = 1, .ops = &done_ops, .opaque = r};

    assert_int_equal(strata_memory_new(NULL, &r->memory), 0);
    r->system = region(r, &container);
    container.name = "io";
    container.size = 65536;
    r->ports = region(r, &container);
    r->ram = rig_ram(r, "ram", low);
    r->done = region(r, &done);
    assert_int_equal(strata_region_add(r->system, 0, r->ram), 0);
    assert_int_equal(strata_region_add(r->ports, 0x10, r->done), 0);
    assert_int_equal(strata_space_new(r->memory, "memory", r->system, &r->space), 0);
    assert_int_equal(strata_space_new(r->memory, "I/O", r->ports, &r->io), 0);
}

int rig_try(struct rig *r, const char *engine, uint64_t low)
{
    struct accel_options opts = {.engine = engine, .vcpus = 1, .stop = on_stop, .opaque = r};
    struct base_error err = {""};
    int ret;

    opts.fail_alloc = r->fail_alloc;
    opts.fail_opaque = r->fail_opaque;
    memset(r, 0, sizeof(*r));
    r->stop_reason = -1;
    sem_init(&r->ended, 0, 0);
    make_memory(r, low);
    ret = accel_open(&r->accel, &opts, &err);
    if (ret == 0) {
        ret = accel_attach(r->accel, r->space, r->io, &err);
    } else {
        r->accel = NULL;
    }
    if (ret < 0) {
        assert_true(err.text[0] != '\0');
        rig_fini(r);
    }
    return ret;
}

void rig_init(struct rig *r, const char *engine, uint64_t low)
{
    memset(r, 0, sizeof(*r));
    assert_int_equal(rig_try(r, engine, low), 0);
}

void rig_fini(struct rig *r)
{
    accel_free(r->accel);
    strata_space_free(r->space);
    strata_space_free(r->io);
    if (r->big) {
        strata_region_destroy(r->big);
    }
    strata_region_destroy(r->done);
    strata_region_destroy(r->ram);
    strata_region_destroy(r->ports);
    strata_region_destroy(r->system);
    strata_memory_free(r->memory);
    sem_destroy(&r->ended);
}

void rig_load(struct rig *r, const void *code, size_t bytes)
{
    static const uint64_t gdt[] = {0, UINT64_C(0x00cf9b000000ffff), UINT64_C(0x00cf93000000ffff)};

    assert_int_equal(strata_write(r->space, CODE_ADDR, STRATA_ATTRS_NONE, code, bytes), STRATA_OK);
    assert_int_equal(strata_write(r->space, GDT_ADDR, STRATA_ATTRS_NONE, gdt, sizeof(gdt)), STRATA_OK);
}

void rig_boot_flat(struct rig *r)
{
    struct accel_boot_state cpu = {.mode = ACCEL_MODE_PROT32, .rip = CODE_ADDR, .rsp = 0xf00, .gdt_base = GDT_ADDR,
                                   .gdt_limit = 23, .code = 8, .data = 16};
    struct base_error err = {""};

    assert_int_equal(accel_boot_cpu_set(r->accel, &cpu, &err), 0);
}

void rig_start(struct rig *r)
{
    struct base_error err = {""};

    assert_int_equal(accel_start(r->accel, &err), 0);
}

void rig_wait(struct rig *r)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 120;
    if (sem_timedwait(&r->ended, &until) < 0) {
        accel_stop(r->accel);
        accel_registers_show(r->accel, stderr);
        fail_msg("the guest did not end");
    }
    accel_stop(r->accel);
}
