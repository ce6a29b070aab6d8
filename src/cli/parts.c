/*
 * Options that are lists: "first,key=value,...". Parts are copied, split at commas (a doubled comma is one
 * of text, as in QEMU), and handed one by one to the option's own function.
 */
#include "cli/parts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/value.h"

typedef int part_fn(struct cli_options *o, const char *key, const char *value, struct base_error *err);

static char *keep(struct cli_options *o, const char *text)
{
    char *copy = o->kept_count < ARRAY_LEN(o->kept) ? strdup(text) : NULL;

    if (copy) {
        o->kept[o->kept_count++] = copy;
    }
    return copy;
}

/* Cut the next part off: *rest moves on; ",," becomes ",". */
static char *next_part(char **rest)
{
    char *start = *rest, *from = start, *to = start;

    while (*from && !(*from == ',' && from[1] != ',')) {
        from += *from == ',';
        *to++ = *from++;
    }
    *rest = *from ? from + 1 : NULL;
    *to = '\0';
    return start;
}

/* Call fn for each part: key NULL for one without '='. */
static int for_each_part(struct cli_options *o, const char *text, part_fn *fn, struct base_error *err)
{
    char *rest = keep(o, text);
    int ret = rest ? 0 : base_error_set(err, ENOMEM, "too many options with parts");

    while (ret == 0 && rest) {
        char *part = next_part(&rest), *value = strchr(part, '=');

        if (value) {
            *value++ = '\0';
            ret = fn(o, part, value, err);
        } else {
            ret = fn(o, NULL, part, err);
        }
    }
    return ret;
}

static int unknown_key(struct base_error *err, const char *option, const char *key, const char *value)
{
    return base_error_set(err, EINVAL, "%s: unknown part '%s%s%s'", option, key ? key : "", key ? "=" : "",
                          value);
}

static int parse_bytes(const char *option, const char *text, uint64_t unit, uint64_t *out,
                       struct base_error *err)
{
    int ret = cli_size_parse(text, unit, out);

    if (ret == -EINVAL) {
        return base_error_set(err, EINVAL, "%s '%s': not a size; a number with k, M, G, T, P or E behind it",
                              option, text);
    }
    if (ret == -ERANGE || *out < MACHINE_RAM_MIN || *out > MACHINE_RAM_MAX) {
        return base_error_set(err, EINVAL, "%s '%s': out of range; from 1M to 32T", option, text);
    }
    return 0;
}

static int memory_part(struct cli_options *o, const char *key, const char *value, struct base_error *err)
{
    uint64_t ignored;

    if (!key || strcmp(key, "size") == 0) {
        return parse_bytes("-m", value, UINT64_C(1) << 20, &o->machine.ram_bytes, err);
    }
    if (strcmp(key, "slots") == 0) {
        return cli_number_parse("-m slots", value, 256, &ignored, err);
    }
    if (strcmp(key, "maxmem") == 0) {
        return parse_bytes("-m maxmem", value, UINT64_C(1) << 20, &ignored, err);
    }
    return unknown_key(err, "-m", key, value);
}

/* -m size[,slots=,maxmem=]. Source: QEMU; slots and maxmem are accepted, memory is not plugged in later. */
int cli_memory_parse(struct cli_options *o, const char *value, struct base_error *err)
{
    return for_each_part(o, value, memory_part, err);
}

static int smp_part(struct cli_options *o, const char *key, const char *value, struct base_error *err)
{
    uint64_t n;
    int ret;

    if (key && strcmp(key, "cpus") != 0 && strcmp(key, "cores") != 0 && strcmp(key, "maxcpus") != 0 &&
        strcmp(key, "sockets") != 0 && strcmp(key, "threads") != 0) {
        return unknown_key(err, "-smp", key, value);
    }
    ret = cli_number_parse("-smp", value, 64, &n, err);
    if (ret < 0 || n == 0) {
        return base_error_set(err, EINVAL, "-smp '%s': a number of processors from 1 to 64", value);
    }
    if (key && (strcmp(key, "sockets") == 0 || strcmp(key, "threads") == 0) && n != 1) {
        return base_error_set(err, EINVAL, "-smp %s='%s': one socket of single-threaded cores only", key,
                              value);
    }
    if (!key || strcmp(key, "cpus") == 0) {
        o->machine.processors = n;
    }
    return 0;
}

/* -smp n | cpus=n[,cores=,sockets=1,threads=1]. Source: QEMU. */
int cli_smp_parse(struct cli_options *o, const char *value, struct base_error *err)
{
    return for_each_part(o, value, smp_part, err);
}

static int debug_exit_part(struct cli_options *o, const char *key, const char *value,
                           struct base_error *err)
{
    uint64_t n;
    int ret;

    if (!key) {
        return 0; /* the name itself */
    }
    if (strcmp(key, "iobase") == 0) {
        ret = cli_number_parse("-device isa-debug-exit,iobase", value, 0xfffc, &n, err);
        o->machine.debug_exit_base = ret == 0 ? n : 0;
        return ret;
    }
    if (strcmp(key, "iosize") == 0) {
        ret = cli_number_parse("-device isa-debug-exit,iosize", value, 4, &n, err);
        if (ret == 0 && (n == 0 || n == 3)) {
            return base_error_set(err, EINVAL, "-device isa-debug-exit,iosize '%s': 1, 2 or 4", value);
        }
        o->machine.debug_exit_size = ret == 0 ? n : 0;
        return ret;
    }
    return unknown_key(err, "-device isa-debug-exit", key, value);
}

/* -device NAME,... for the devices that have no slot. Source: QEMU's names. */
int cli_device_parse(struct cli_options *o, const char *value, struct base_error *err)
{
    size_t n = strcspn(value, ",");

    if (n == 14 && memcmp(value, "isa-debug-exit", n) == 0) {
        o->machine.has_debug_exit = true;
        o->machine.debug_exit_base = 0x501;
        o->machine.debug_exit_size = 2;
        return for_each_part(o, value, debug_exit_part, err);
    }
    return base_error_set(err, EINVAL, "-device '%.*s': unknown device (isa-debug-exit)", (int)n, value);
}

static int log_part(struct cli_options *o, const char *key, const char *value, struct base_error *err)
{
    static const char *const names[] = {"boot", "slots", "mtree", "cpu", "trace"};
    unsigned i;

    for (i = 0; !key && i < ARRAY_LEN(names); i++) {
        if (strcmp(value, names[i]) == 0) {
            o->log_mask |= 1u << i;
            return 0;
        }
    }
    return base_error_set(err, EINVAL, "-d '%s': one of boot, slots, mtree, cpu, trace", value);
}

/* -d ITEM[,ITEM]. Source: QEMU's form, items of our own. */
int cli_log_parse(struct cli_options *o, const char *value, struct base_error *err)
{
    return for_each_part(o, value, log_part, err);
}

static int object_part(struct cli_options *o, const char *key, const char *value, struct base_error *err)
{
    if (!key) {
        return 0;
    }
    if (strcmp(key, "id") == 0) {
        o->object.id = value;
        return 0;
    }
    if (strcmp(key, "size") == 0) {
        return parse_bytes("-object size", value, 1, &o->object.size, err);
    }
    if (strcmp(key, "mem-path") == 0 && o->object.kind == MACHINE_RAM_FILE) {
        o->object.path = value;
        return 0;
    }
    if (strcmp(key, "share") == 0) {
        return cli_bool_parse("-object share", value, &o->object.share, err);
    }
    if (strcmp(key, "prealloc") == 0) {
        return cli_bool_parse("-object prealloc", value, &o->object.prealloc, err);
    }
    return unknown_key(err, "-object", key, value);
}

/* -object memory-backend-ram|memfd|file,id=,size=[,mem-path=,share=,prealloc=]. Source: QEMU. */
int cli_object_parse(struct cli_options *o, const char *value, struct base_error *err)
{
    static const char *const names[] = {"memory-backend-ram", "memory-backend-memfd", "memory-backend-file"};
    size_t n = strcspn(value, ",");
    unsigned i;
    int ret;

    for (i = 0; i < ARRAY_LEN(names); i++) {
        if (strlen(names[i]) == n && memcmp(names[i], value, n) == 0) {
            break;
        }
    }
    if (i == ARRAY_LEN(names)) {
        return base_error_set(err, EINVAL,
                              "-object '%.*s': memory-backend-ram, memory-backend-memfd or memory-backend-file",
                              (int)n, value);
    }
    if (o->object.id) {
        return base_error_set(err, EINVAL, "-object: one memory backend at most");
    }
    o->object.kind = (enum machine_ram_kind)i;
    ret = for_each_part(o, value, object_part, err);
    if (ret == 0 && (!o->object.id || !o->object.size)) {
        return base_error_set(err, EINVAL, "-object %s: id= and size= are needed", names[i]);
    }
    if (ret == 0 && o->object.kind == MACHINE_RAM_FILE && !o->object.path) {
        return base_error_set(err, EINVAL, "-object %s: mem-path= is needed", names[i]);
    }
    return ret;
}

static int machine_part(struct cli_options *o, const char *key, const char *value, struct base_error *err)
{
    if (!key || strcmp(key, "type") == 0) {
        return strcmp(value, "pc") == 0
                   ? 0
                   : base_error_set(err, EINVAL, "-machine '%s': unknown machine (pc)", value);
    }
    if (strcmp(key, "accel") == 0) {
        o->machine.engine = value;
        return 0;
    }
    if (strcmp(key, "memory-backend") == 0) {
        o->memory_backend = value;
        return 0;
    }
    if (strcmp(key, "unpack") == 0) {
        return cli_bool_parse("-machine unpack", value, &o->machine.unpack, err);
    }
    return unknown_key(err, "-machine", key, value);
}

/* -machine pc[,accel=,memory-backend=,unpack=]. Source: QEMU; unpack is own. */
int cli_machine_parse(struct cli_options *o, const char *value, struct base_error *err)
{
    return for_each_part(o, value, machine_part, err);
}

static int action_part(struct cli_options *o, const char *key, const char *value, struct base_error *err)
{
    if (key && strcmp(key, "reboot") == 0 &&
        (strcmp(value, "reset") == 0 || strcmp(value, "shutdown") == 0)) {
        o->no_reboot = value[0] == 's';
        return 0;
    }
    return base_error_set(err, EINVAL, "-action '%s%s%s': reboot=reset or reboot=shutdown", key ? key : "",
                          key ? "=" : "", value);
}

/* -action reboot=.... Source: QEMU. */
int cli_action_parse(struct cli_options *o, const char *value, struct base_error *err)
{
    return for_each_part(o, value, action_part, err);
}

/* What -m, -object and -machine memory-backend= say together. Returns: 0 or -EINVAL. Source: QEMU. */
int cli_memory_settle(struct cli_options *o, struct base_error *err)
{
    if (!o->memory_backend) {
        return 0;
    }
    if (!o->object.id || strcmp(o->object.id, o->memory_backend) != 0) {
        return base_error_set(err, EINVAL, "-machine memory-backend='%s': no such -object",
                              o->memory_backend);
    }
    if (o->object.size != o->machine.ram_bytes) {
        return base_error_set(err, EINVAL, "-m and the size of memory backend '%s' differ",
                              o->memory_backend);
    }
    o->machine.ram_kind = o->object.kind;
    o->machine.ram_path = o->object.path;
    o->machine.ram_share = o->object.share;
    o->machine.ram_prealloc |= o->object.prealloc;
    return 0;
}
