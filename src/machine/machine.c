/* Making and freeing a machine, part after part; see machine.h. */
#include "machine/machine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "accel/endpoint.h"
#include "machine/pc.h"

/* What init announces itself by in a kernel's log. */
#define DEFAULT_MARK "as init process"

static void on_stop(void *opaque, enum accel_stop why, const char *detail)
{
    static const enum machine_outcome outcomes[] = {
        [ACCEL_STOP_SHUTDOWN] = MACHINE_CRASH,
        [ACCEL_STOP_RESET] = MACHINE_RESET,
        [ACCEL_STOP_POWEROFF] = MACHINE_POWEROFF,
        [ACCEL_STOP_CRASH] = MACHINE_CRASH,
        [ACCEL_STOP_INTERNAL_ERROR] = MACHINE_FAILED,
    };

    machine_end(opaque, outcomes[why], 0, detail);
}

/* accel's trace points, put into words. */
static void on_trace(void *opaque, const struct base_trace_point *point, const uint64_t *args)
{
    struct machine *m = opaque;
    char text[200];

    base_trace_format(point, args, text, sizeof(text));
    m->config.trace(m->config.opaque, point->name, point->file, point->function, text);
}

static int open_engine(struct machine *m, struct base_error *err)
{
    struct accel_soft_options soft = {.trace = m->config.trace, .trace_opaque = m->config.opaque};
    struct accel_options opts = {
        .engine = m->config.engine,
        .vcpus = m->config.processors,
        .cpu = m->config.cpu,
        .soft = &soft,
        .stop = on_stop,
        .opaque = m,
    };
    int ret;

    ret = accel_open(&m->accel, &opts, err);
    if (ret == 0 && m->config.trace) {
        accel_trace_set(m->accel, on_trace, m);
    }
    return ret;
}

static int build(struct machine *m, enum machine_stage *stage, struct base_error *err)
{
    int ret;

    *stage = MACHINE_STAGE_ENGINE;
    m->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (m->wake_fd < 0) {
        return base_error_set(err, errno, "eventfd: %s", strerror(errno));
    }
    ret = open_engine(m, err);
    if (ret == 0) {
        *stage = MACHINE_STAGE_MEMORY;
        ret = machine_memory_new(m, err);
    }
    if (ret == 0) {
        ret = accel_attach(m->accel, m->memory_space, m->io_space, err);
    }
    if (ret == 0) {
        ret = machine_devices_new(m, err);
    }
    if (ret == 0) {
        *stage = MACHINE_STAGE_BOOT;
        ret = machine_boot(m, err);
    }
    return ret;
}

/*
 * Make a machine ready to run.
 * config: copied, its strings borrowed until machine_free().
 * stage: which part failed; may be NULL.
 * Returns: 0 with *out; -EINVAL a value out of range; otherwise what failed, in one line of err.
 * Lock: none. Source: own.
 */
int machine_new(struct machine **out, const struct machine_config *config, enum machine_stage *stage,
                struct base_error *err)
{
    enum machine_stage ignored;
    const char *mark = config->mark && *config->mark ? config->mark : DEFAULT_MARK;
    struct machine *m;
    int ret;

    stage = stage ? stage : &ignored;
    *stage = MACHINE_STAGE_CHECK;
    if (config->ram_bytes < MACHINE_RAM_MIN || config->ram_bytes > MACHINE_RAM_MAX) {
        return base_error_set(err, EINVAL, "-m: %llu bytes; between 1M and 32T",
                              (unsigned long long)config->ram_bytes);
    }
    if (!config->kernel) {
        return base_error_set(err, EINVAL, "-kernel: nothing to boot is named");
    }
    m = calloc(1, sizeof(*m));
    if (!m) {
        return base_error_set(err, ENOMEM, "out of memory");
    }
    m->config = *config;
    m->wake_fd = -1;
    m->start_seconds = machine_now();
    m->result.mark_seconds = -1;
    m->mark_length = strlen(mark) < sizeof(m->mark) ? strlen(mark) : sizeof(m->mark) - 1;
    memcpy(m->mark, mark, m->mark_length);
    ret = build(m, stage, err);
    if (ret < 0) {
        machine_free(m);
        return ret;
    }
    *out = m;
    return 0;
}

/* Stop and free; NULL is allowed. Lock: none. Source: own. */
void machine_free(struct machine *m)
{
    if (!m) {
        return;
    }
    if (m->accel) {
        accel_stop(m->accel);
    }
    machine_devices_free(m);
    machine_explain_free(m);
    accel_free(m->accel);
    machine_memory_free(m);
    if (m->wake_fd >= 0) {
        close(m->wake_fd);
    }
    free(m);
}

/* Borrowed parts, for reports. Lock: none. Source: own. */
struct accel *machine_accel(struct machine *m)
{
    return m->accel;
}

/* See machine_accel(). */
struct strata_memory *machine_memory(struct machine *m)
{
    return m->memory;
}

/* See machine_accel(). */
struct strata_ram *machine_ram(struct machine *m)
{
    return m->ram;
}

/* How the kernel was loaded, one line. See machine_accel(). */
const char *machine_boot_text(const struct machine *m)
{
    return m->boot_text;
}
