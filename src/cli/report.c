/* The report as text; see report.h. Sections appear in the order of the layers, guest first. */
#include "cli/report.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "accel/accel.h"
#include "accel/inspect.h"
#include "strata/print.h"
#include "strata/ram.h"

#define MAX_SLOTS   64
#define MAX_EXITS   32
#define CHUNK_BYTES (UINT64_C(1) << 30)

/* See report.h. Source: own. */
const char *cli_outcome_name(enum machine_outcome outcome)
{
    static const char *const names[] = {
        [MACHINE_POWEROFF] = "poweroff", [MACHINE_RESET] = "reset",   [MACHINE_CRASH] = "crash",
        [MACHINE_DEBUG_EXIT] = "debug-exit", [MACHINE_QUIT] = "quit", [MACHINE_SIGNAL] = "signal",
        [MACHINE_FAILED] = "failed",
    };

    return names[outcome];
}

static uint64_t status_kib(const char *line, const char *key)
{
    size_t n = strlen(key);

    return strncmp(line, key, n) == 0 ? strtoull(line + n, NULL, 10) : 0;
}

static void read_process_status(struct cli_memory_use *out)
{
    char line[256];
    FILE *f = fopen("/proc/self/status", "re");

    while (f && fgets(line, sizeof(line), f)) {
        out->process_resident += status_kib(line, "VmRSS:") << 10;
        out->process_peak += status_kib(line, "VmHWM:") << 10;
    }
    if (f) {
        fclose(f);
    }
}

/* See report.h. Pages are asked for chunk by chunk, so that a large guest needs little here. Source: mincore. */
void cli_memory_use(struct machine *m, struct cli_memory_use *out)
{
    struct strata_ram *ram = machine_ram(m);
    uint64_t at, i, size = strata_ram_size(ram);
    unsigned char *map = malloc(CHUNK_BYTES >> 12);

    memset(out, 0, sizeof(*out));
    for (at = 0; map && at < size; at += CHUNK_BYTES) {
        uint64_t n = size - at < CHUNK_BYTES ? size - at : CHUNK_BYTES;

        if (mincore((char *)strata_ram_host(ram) + at, n, map) < 0) {
            break;
        }
        for (i = 0; i < (n + 4095) >> 12; i++) {
            out->guest_resident += (uint64_t)(map[i] & 1) << 12;
        }
    }
    free(map);
    read_process_status(out);
}

static void sink(void *opaque, const char *text, size_t length)
{
    fwrite(text, 1, length, opaque);
}

static double mib(uint64_t bytes)
{
    return bytes / 1048576.0;
}

static void show_time(const struct cli_run *run, FILE *to)
{
    const struct machine_result *r = run->result;

    fprintf(to, "run\n  boot        %s\n  ended by    %s%s%s\n", machine_boot_text(run->machine),
            cli_outcome_name(r->outcome), r->detail[0] ? ": " : "", r->detail);
    if (r->mark_seconds >= 0) {
        fprintf(to, "  user space  after %.3f s\n", r->mark_seconds);
    } else {
        fprintf(to, "  user space  not seen on the console\n");
    }
    fprintf(to, "  total       %.3f s\n", r->total_seconds);
}

static void show_memory_use(const struct cli_run *run, FILE *to)
{
    struct cli_memory_use use;

    cli_memory_use(run->machine, &use);
    fprintf(to, "\nmemory\n  guest size           %10.1f MiB\n  guest RAM resident   %10.1f MiB\n"
                "  process resident     %10.1f MiB, peak %.1f MiB\n",
            mib(run->config->ram_bytes), mib(use.guest_resident), mib(use.process_resident),
            mib(use.process_peak));
}

static void show_slots(const struct cli_run *run, FILE *to)
{
    struct accel_slot_info slots[MAX_SLOTS];
    unsigned i, n = accel_slots(machine_accel(run->machine), slots, MAX_SLOTS);

    fprintf(to, "\nmemory slots\n");
    for (i = 0; i < n; i++) {
        fprintf(to, "  slot %-3u gpa %016llx-%016llx at hva %016llx%s%s\n", slots[i].id,
                (unsigned long long)slots[i].gpa,
                (unsigned long long)(slots[i].gpa + slots[i].size - 1), (unsigned long long)slots[i].hva,
                slots[i].flags & 1 ? " dirty-log" : "", slots[i].flags & 2 ? " read-only" : "");
    }
}

static void show_exits(const struct cli_run *run, FILE *to)
{
    struct accel_exit_count exits[MAX_EXITS];
    unsigned i, n = accel_exit_counts(machine_accel(run->machine), exits, MAX_EXITS);

    fprintf(to, "\nexits to this program\n");
    for (i = 0; i < n; i++) {
        fprintf(to, "  %-16s %llu\n", exits[i].name, (unsigned long long)exits[i].count);
    }
}

struct stat_sums {
    struct {
        char name[64];
        uint64_t value;
        bool is_vm; /* a value of the VM, which an engine may have summed up itself */
    } v[256];
    unsigned count;
};

/* Values of all vCPUs under one name are added up; of histograms, the buckets. A name that the VM has too is
 * the VM's: its value covers the vCPUs. */
static void add_stat(void *opaque, int vcpu, const char *name, const uint64_t *values, unsigned count)
{
    struct stat_sums *s = opaque;
    uint64_t sum = 0;
    unsigned i;

    for (i = 0; i < count; i++) {
        sum += values[i];
    }
    for (i = 0; i < s->count && strcmp(s->v[i].name, name) != 0; i++) {
    }
    if (i == 256) {
        return;
    }
    if (i == s->count) {
        s->count++;
        snprintf(s->v[i].name, sizeof(s->v[i].name), "%s", name);
        s->v[i].value = 0;
        s->v[i].is_vm = vcpu < 0;
    }
    if (vcpu < 0 || !s->v[i].is_vm) {
        s->v[i].value += sum;
    }
}

static void show_stats(const struct cli_run *run, FILE *to)
{
    struct stat_sums *s = calloc(1, sizeof(*s));
    unsigned i;

    if (!s || accel_stats_read(machine_accel(run->machine), add_stat, s) < 0) {
        free(s);
        return;
    }
    fprintf(to, "\nengine statistics (KVM_GET_STATS_FD, vCPUs added up, zeros left out)\n");
    for (i = 0; i < s->count; i++) {
        if (s->v[i].value) {
            fprintf(to, "  %-36s %llu\n", s->v[i].name, (unsigned long long)s->v[i].value);
        }
    }
    free(s);
}

static void show_counter(void *opaque, const char *name, uint64_t value)
{
    if (value) {
        fprintf(opaque, "  %-36s %llu\n", name, (unsigned long long)value);
    }
}

static void show_engine_inside(const struct cli_run *run, FILE *to)
{
    struct accel *a = machine_accel(run->machine);
    struct accel_mapping_counts maps;

    if (accel_mappings_count(a, &maps) < 0) {
        return;
    }
    fprintf(to, "\nsecond stage\n  leaves 4 KiB %llu, 2 MiB %llu, 1 GiB %llu, MMIO %llu; tables %llu\n",
            (unsigned long long)maps.leaves[0], (unsigned long long)maps.leaves[1],
            (unsigned long long)maps.leaves[2], (unsigned long long)maps.mmio,
            (unsigned long long)maps.tables);
    fprintf(to, "\nengine counters\n");
    if (accel_counters_read(a, show_counter, to) < 0) {
        fprintf(to, "  not to be had\n");
    }
}

/* What the guest asked for while it ran; false: nothing. */
static bool show_explanations(const struct cli_run *run, FILE *to)
{
    const char *text;
    unsigned i;

    for (i = 0; (text = machine_explanation(run->machine, i)); i++) {
        fprintf(to, "\nan address that the guest asked about, entry by entry\n%s", text);
    }
    return i > 0;
}

static void explain(const struct cli_run *run, FILE *to)
{
    struct accel *a = machine_accel(run->machine);
    unsigned vcpu;
    gva_t addr;

    if (show_explanations(run, to)) {
        return;
    }
    if (accel_rip_get(a, 0, &addr) < 0) {
        return;
    }
    fprintf(to, "\none kernel address (where processor 0 stands), entry by entry\n");
    if (accel_explain_show(a, 0, addr, to) < 0) {
        fprintf(to, "  gva 0x%llx: this engine cannot be looked into\n", (unsigned long long)addr.v);
        return;
    }
    for (vcpu = 0; vcpu < run->config->processors; vcpu++) {
        if (accel_user_address_find(a, vcpu, &addr) == 0) {
            fprintf(to, "\none user address (the lowest that processor %u's program has mapped)\n", vcpu);
            if (accel_explain_show(a, vcpu, addr, to) < 0) {
                fprintf(to, "  gva 0x%llx: not to be had\n", (unsigned long long)addr.v);
            }
            return;
        }
    }
}

/* Write the report. to: an open stream. Lock: vCPUs are stopped. Source: own. */
void cli_report_text(const struct cli_run *run, FILE *to)
{
    struct accel *a = machine_accel(run->machine);
    struct strata_memory *mem = machine_memory(run->machine);

    fprintf(to, "\n==== strata report\nengine\n  %s (%s), %u processor(s)\n\n", accel_engine(a),
            accel_engine_reason(a), run->config->processors);
    show_time(run, to);
    show_memory_use(run, to);
    fprintf(to, "\nregion tree\n");
    strata_print(mem, NULL, 0, sink, to);
    fprintf(to, "\nflat views\n");
    strata_print(mem, NULL, STRATA_PRINT_FLAT, sink, to);
    show_slots(run, to);
    show_engine_inside(run, to);
    show_exits(run, to);
    show_stats(run, to);
    explain(run, to);
    fflush(to);
}
