/* The report as JSON: the same facts, integers as integers. Trees and views are the library's own JSON. */
#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "accel/accel.h"
#include "accel/inspect.h"
#include "cli/report.h"
#include "strata/print.h"

#define MAX_SLOTS 64
#define MAX_EXITS 32

static void put_u64(struct json_object *to, const char *key, uint64_t value)
{
    json_object_object_add(to, key, json_object_new_uint64(value));
}

static void put_text(struct json_object *to, const char *key, const char *value)
{
    json_object_object_add(to, key, json_object_new_string(value));
}

static struct json_object *slots_of(struct accel *a)
{
    struct accel_slot_info slots[MAX_SLOTS];
    unsigned i, n = accel_slots(a, slots, MAX_SLOTS);
    struct json_object *list = json_object_new_array();

    for (i = 0; i < n; i++) {
        struct json_object *slot = json_object_new_object();

        put_u64(slot, "id", slots[i].id);
        put_u64(slot, "gpa", slots[i].gpa);
        put_u64(slot, "size", slots[i].size);
        put_u64(slot, "hva", slots[i].hva);
        put_u64(slot, "flags", slots[i].flags);
        json_object_array_add(list, slot);
    }
    return list;
}

static struct json_object *exits_of(struct accel *a)
{
    struct accel_exit_count exits[MAX_EXITS];
    unsigned i, n = accel_exit_counts(a, exits, MAX_EXITS);
    struct json_object *map = json_object_new_object();

    for (i = 0; i < n; i++) {
        put_u64(map, exits[i].name, exits[i].count);
    }
    return map;
}

struct stat_map {
    struct json_object *sums, *of_vm;
};

/* A name that the VM has is the VM's: its value covers the vCPUs. */
static void add_stat(void *opaque, int vcpu, const char *name, const uint64_t *values, unsigned count)
{
    struct stat_map *stats = opaque;
    struct json_object *map = stats->sums, *old;
    uint64_t sum = 0;
    unsigned i;

    if (vcpu >= 0 && json_object_object_get_ex(stats->of_vm, name, &old)) {
        return;
    }
    if (vcpu < 0) {
        put_u64(stats->of_vm, name, 1);
    }

    for (i = 0; i < count; i++) {
        sum += values[i];
    }
    if (json_object_object_get_ex(map, name, &old)) {
        sum += json_object_get_uint64(old);
    }
    put_u64(map, name, sum);
}

static void add_counter(void *opaque, const char *name, uint64_t value)
{
    put_u64(opaque, name, value);
}

static void put_run(const struct cli_run *run, struct json_object *root)
{
    const struct machine_result *r = run->result;

    put_text(root, "boot", machine_boot_text(run->machine));
    put_text(root, "outcome", cli_outcome_name(r->outcome));
    put_text(root, "detail", r->detail);
    put_u64(root, "value", r->value);
    json_object_object_add(root, "seconds_to_user_space",
                           r->mark_seconds < 0 ? NULL : json_object_new_double(r->mark_seconds));
    json_object_object_add(root, "seconds_total", json_object_new_double(r->total_seconds));
    put_u64(root, "processors", run->config->processors);
}

static void put_memory(const struct cli_run *run, struct json_object *root)
{
    struct json_object *memory = json_object_new_object();
    struct cli_memory_use use;

    cli_memory_use(run->machine, &use);
    put_u64(memory, "guest_bytes", run->config->ram_bytes);
    put_u64(memory, "guest_resident_bytes", use.guest_resident);
    put_u64(memory, "process_resident_bytes", use.process_resident);
    put_u64(memory, "process_peak_bytes", use.process_peak);
    json_object_object_add(root, "memory", memory);
}

static void put_engine(struct accel *a, struct json_object *root)
{
    struct json_object *stats = json_object_new_object(), *counters = json_object_new_object();
    struct stat_map map = {stats, json_object_new_object()};
    struct accel_mapping_counts maps;

    put_text(root, "engine", accel_engine(a));
    put_text(root, "engine_reason", accel_engine_reason(a));
    json_object_object_add(root, "slots", slots_of(a));
    json_object_object_add(root, "exits", exits_of(a));
    if (accel_stats_read(a, add_stat, &map) == 0) {
        json_object_object_add(root, "stats", json_object_get(stats));
    }
    if (accel_counters_read(a, add_counter, counters) == 0) {
        json_object_object_add(root, "counters", json_object_get(counters));
    }
    if (accel_mappings_count(a, &maps) == 0) {
        struct json_object *m = json_object_new_object();

        put_u64(m, "leaves_4k", maps.leaves[0]);
        put_u64(m, "leaves_2m", maps.leaves[1]);
        put_u64(m, "leaves_1g", maps.leaves[2]);
        put_u64(m, "leaves_mmio", maps.mmio);
        put_u64(m, "tables", maps.tables);
        json_object_object_add(root, "second_stage", m);
    }
    json_object_put(stats);
    json_object_put(counters);
    json_object_put(map.of_vm);
}

struct text {
    char *data;
    size_t length;
    int failed;
};

static void collect(void *opaque, const char *piece, size_t length)
{
    struct text *t = opaque;
    char *data = t->failed ? NULL : realloc(t->data, t->length + length + 1);

    if (!data) {
        t->failed = 1;
        return;
    }
    memcpy(data + t->length, piece, length);
    t->data = data;
    t->length += length;
    t->data[t->length] = '\0';
}

static void put_tree(struct strata_memory *mem, struct json_object *root, const char *key, unsigned flags)
{
    struct text t = {NULL, 0, 0};

    if (strata_print(mem, NULL, flags | STRATA_PRINT_JSON, collect, &t) == 0 && t.data && !t.failed) {
        json_object_object_add(root, key, json_tokener_parse(t.data));
    }
    free(t.data);
}

/*
 * Write the report as one JSON object and a newline.
 * Returns: 0; -ENOMEM; -EIO. Lock: vCPUs are stopped. Source: own.
 */
int cli_report_json(const struct cli_run *run, FILE *to)
{
    struct json_object *root = json_object_new_object();
    const char *text;
    int ret;

    if (!root) {
        return -ENOMEM;
    }
    put_run(run, root);
    put_memory(run, root);
    put_engine(machine_accel(run->machine), root);
    put_tree(machine_memory(run->machine), root, "region_tree", 0);
    put_tree(machine_memory(run->machine), root, "flat_views", STRATA_PRINT_FLAT);
    text = json_object_to_json_string_ext(root, JSON_C_TO_STRING_PRETTY);
    ret = !text ? -ENOMEM : fprintf(to, "%s\n", text) < 0 ? -EIO : 0;
    json_object_put(root);
    return ret;
}
