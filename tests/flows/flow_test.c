/*
 * The flows of docs/flows against a traced run. Each section of such a document whose heading a scenario
 * here bears has a table of steps; a scenario makes the steps happen, and the trace points that fire, in
 * order and with their file and function, must be the table's. Repeats of one step in a row count once.
 *
 * Usage: flow_test DOCS_FOLDER [--print]: with --print, tables as the run gives them.
 */
#include "flow.h"

#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "accel/accel.h"
#include "accel/endpoint.h"
#include "strata/address_space.h"
#include "strata/memory.h"
#include "strata/ram.h"
#include "strata/region.h"

#define MAX_STEPS 64

struct step {
    char name[48], file[64], function[64];
};

struct steps {
    struct step at[MAX_STEPS];
    unsigned n;
};

static struct steps seen;
static bool recording;
static const char *const *wanted; /* prefixes of the names that belong to the flow */

static const char *const access_names[] = {"access_", NULL};
static const char *const dirty_names[] = {"access_", "dirty_", "mmu_", "slots_", NULL};
static const char *const invalidate_names[] = {"access_", "invalidate_", "mmu_", NULL};
static const char *const topology_names[] = {"topology_", "slots_", NULL};

static bool is_wanted(const char *name)
{
    for (const char *const *w = wanted; *w; w++) {
        if (strncmp(name, *w, strlen(*w)) == 0) {
            return true;
        }
    }
    return false;
}

void flow_record(void *opaque, const char *name, const char *file, const char *function, const char *text)
{
    const char *src = strstr(file, "src/");
    struct step *s = &seen.at[seen.n];

    if (!recording || seen.n == MAX_STEPS || !is_wanted(name)) {
        return;
    }
    snprintf(s->name, sizeof(s->name), "%s", name);
    snprintf(s->file, sizeof(s->file), "%s", src ? src : file);
    snprintf(s->function, sizeof(s->function), "%s", function);
    if (seen.n == 0 || memcmp(s, s - 1, sizeof(*s)) != 0) {
        seen.n++;
    } else {
        memset(s, 0, sizeof(*s));
    }
}

static void record_point(void *opaque, const struct base_trace_point *p, const uint64_t *args)
{
    flow_record(opaque, p->name, p->file, p->function, "");
}

void flow_start(const char *const *prefixes)
{
    memset(&seen, 0, sizeof(seen));
    wanted = prefixes;
    recording = true;
}

void flow_stop(void)
{
    recording = false;
}

/* ---- scenarios ---- */

struct vm {
    struct accel_endpoint *ep;
    int sys, vm, vcpu;
    struct kvm_run *run;
    unsigned char *ram, *all;
};

#define RAM_SIZE (8u << 20)

/* Page tables of one size, or as the host maps. */
static int vm_new_with(struct vm *v, unsigned max_page_level)
{
    struct accel_soft_options options = {.trace = flow_record, .max_page_level = max_page_level};
    struct kvm_userspace_memory_region m = {.memory_size = RAM_SIZE};
    struct kvm_sregs s;
    int err;

    v->ep = accel_endpoint_soft_new(&options, NULL);
    v->all = mmap(NULL, 2 * RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    v->ram = v->all + (RAM_SIZE - (uintptr_t)v->all % RAM_SIZE) % RAM_SIZE; /* huge pages are possible */
    m.userspace_addr = (uintptr_t)v->ram;
    v->sys = v->ep->ops->open_system(v->ep);
    v->vm = accel_ioctl(v->ep, v->sys, KVM_CREATE_VM, 0);
    v->vcpu = accel_ioctl(v->ep, v->vm, KVM_CREATE_VCPU, 0);
    v->run = v->ep->ops->mmap(v->ep, v->vcpu,
                              (size_t)accel_ioctl(v->ep, v->sys, KVM_GET_VCPU_MMAP_SIZE, 0), 0, &err);
    if (v->vcpu < 0 || !v->run || accel_ioctl_ptr(v->ep, v->vm, KVM_SET_USER_MEMORY_REGION, &m) != 0) {
        return -1;
    }
    accel_ioctl_ptr(v->ep, v->vcpu, KVM_GET_SREGS, &s);
    s.cs.base = s.ds.base = 0;
    s.cs.selector = s.ds.selector = 0;
    s.cs.limit = s.ds.limit = 0xffffffff;
    s.ds.g = s.cs.g = 1;
    accel_ioctl_ptr(v->ep, v->vcpu, KVM_SET_SREGS, &s);
    return 0;
}

static int vm_new(struct vm *v)
{
    return vm_new_with(v, 1);
}

static void vm_free(struct vm *v)
{
    v->ep->ops->free(v->ep);
    munmap(v->all, 2 * RAM_SIZE);
}

/* Run code at 0x1000 until it halts, answering device reads. */
static int vm_run(struct vm *v, const void *code, size_t len)
{
    struct kvm_regs r = {.rip = 0x1000, .rflags = 2, .rbx = 0x300000, .rcx = 0x900000};

    memcpy(v->ram + 0x1000, code, len);
    accel_ioctl_ptr(v->ep, v->vcpu, KVM_SET_REGS, &r);
    for (int i = 0; i < 10; i++) {
        if (accel_ioctl(v->ep, v->vcpu, KVM_RUN, 0) < 0) {
            return -1;
        }
        if (v->run->exit_reason != KVM_EXIT_MMIO) {
            return v->run->exit_reason == KVM_EXIT_HLT ? 0 : -1;
        }
    }
    return -1;
}

static const unsigned char hlt[] = {0xf4};
static const unsigned char load[] = {0x67, 0x8a, 0x03, 0xf4};        /* mov (%ebx), %al; hlt */
static const unsigned char load_device[] = {0x67, 0x8a, 0x01, 0xf4}; /* mov (%ecx), %al; hlt */

/* First with a halt alone, so that fetching is over and done before the flow is watched. */
static int run_access(const unsigned char *code, size_t len, bool twice)
{
    struct vm v;
    int ret = vm_new(&v);

    ret = ret ? ret : vm_run(&v, hlt, sizeof(hlt));
    if (!ret && twice) {
        ret = vm_run(&v, code, len);
    }
    flow_start(access_names);
    ret = ret ? ret : vm_run(&v, code, len);
    recording = false;
    vm_free(&v);
    return ret;
}

static int scenario_load(void)
{
    return run_access(load, sizeof(load), false);
}

static int scenario_device(void)
{
    return run_access(load_device, sizeof(load_device), false);
}

static int scenario_device_again(void)
{
    return run_access(load_device, sizeof(load_device), true);
}

/* ---- dirty log ---- */

static const unsigned char store[] = {0x67, 0x88, 0x03, 0xf4}; /* mov %al, (%ebx); hlt */

static int set_logging(struct vm *v, bool on)
{
    struct kvm_userspace_memory_region m = {.flags = on ? KVM_MEM_LOG_DIRTY_PAGES : 0, .memory_size = RAM_SIZE,
                                            .userspace_addr = (uintptr_t)v->ram};

    return accel_ioctl_ptr(v->ep, v->vm, KVM_SET_USER_MEMORY_REGION, &m);
}

static int get_log(struct vm *v)
{
    uint64_t bits[RAM_SIZE / 4096 / 64];
    struct kvm_dirty_log log = {.dirty_bitmap = bits};

    return accel_ioctl_ptr(v->ep, v->vm, KVM_GET_DIRTY_LOG, &log);
}

/* Steps of the dirty log in order; the watched one is the step of that number. */
static int run_dirty(int watched)
{
    struct vm v;
    int ret = vm_new_with(&v, 2);

    ret = ret ? ret : vm_run(&v, store, sizeof(store));
    for (int step = 0; !ret && step <= watched; step++) {
        if (step == watched) {
            flow_start(dirty_names);
        }
        switch (step) {
        case 0:
            ret = set_logging(&v, true);
            break;
        case 1:
        case 3:
            ret = vm_run(&v, store, sizeof(store));
            break;
        case 2:
            ret = get_log(&v);
            break;
        default:
            ret = set_logging(&v, false);
            break;
        }
    }
    recording = false;
    vm_free(&v);
    return ret;
}

static int scenario_logging_on(void)
{
    return run_dirty(0);
}

static int scenario_logged_write(void)
{
    return run_dirty(1);
}

static int scenario_harvest(void)
{
    return run_dirty(2);
}

static int scenario_logging_off(void)
{
    return run_dirty(4);
}

/* ---- invalidation ---- */

/* The process discards the page that the guest reads; watched is that, or the guest's next read. */
static int run_discard(bool next)
{
    struct vm v;
    int ret = vm_new(&v);

    ret = ret ? ret : vm_run(&v, load, sizeof(load));
    flow_start(invalidate_names);
    if (!ret) {
        v.ep->ops->memory_discarded(v.ep, v.ram + 0x300000, 4096);
    }
    if (next) {
        flow_start(invalidate_names);
        ret = ret ? ret : vm_run(&v, load, sizeof(load));
    }
    recording = false;
    vm_free(&v);
    return ret;
}

static int scenario_discard(void)
{
    return run_discard(false);
}

static int scenario_after_discard(void)
{
    return run_discard(true);
}

/* A tree with RAM, attached to the software engine; `change` is watched. */
static int run_topology(int (*change)(struct strata_region *ram))
{
    struct strata_memory_config config = {.trace = flow_record};
    struct accel_soft_options soft = {.trace = flow_record};
    struct accel_options options = {.engine = "soft", .vcpus = 1, .soft = &soft};
    struct strata_ram_desc ram_desc = {.name = "ram", .size = RAM_SIZE};
    struct strata_region_desc system_desc = {.kind = STRATA_CONTAINER, .name = "system", .size = UINT64_MAX};
    struct strata_region_desc io_desc = {.kind = STRATA_CONTAINER, .name = "io", .size = 0x10000};
    struct strata_region_desc hole = {.kind = STRATA_RESERVATION, .name = "reserved", .size = 0x1000};
    struct strata_region_desc desc = {.kind = STRATA_RAM, .name = "ram", .size = RAM_SIZE};
    struct strata_memory *mem;
    struct strata_region *system, *io, *region, *reserved;
    struct strata_space *space, *ports;
    struct strata_ram *ram;
    struct accel *accel;
    int err = strata_memory_new(&config, &mem);

    err = err ? err : strata_region_new(mem, &system_desc, &system);
    err = err ? err : strata_region_new(mem, &io_desc, &io);
    err = err ? err : strata_space_new(mem, "memory", system, &space);
    err = err ? err : strata_space_new(mem, "I/O", io, &ports);
    err = err ? err : strata_ram_new(mem, &ram_desc, &ram);
    desc.ram = ram;
    err = err ? err : strata_region_new(mem, &desc, &region);
    err = err ? err : strata_region_new(mem, &hole, &reserved);
    err = err ? err : strata_region_add(system, 0, region);
    err = err ? err : strata_region_add(system, 0x80000000, reserved);
    err = err ? err : accel_open(&accel, &options, NULL);
    if (err) {
        return err;
    }
    err = accel_attach(accel, space, ports, NULL);
    accel_trace_set(accel, record_point, NULL);
    flow_start(topology_names);
    err = err ? err : change(region);
    recording = false;
    accel_free(accel);
    strata_memory_free(mem);
    return err;
}

static int move_ram(struct strata_region *ram)
{
    return strata_region_set_address(ram, 0x1000000);
}

static int scenario_move(void)
{
    return run_topology(move_ram);
}

static const struct {
    const char *doc, *heading;
    int (*run)(void);
} scenarios[] = {
    {"access.md", "A load from memory that is not mapped yet", scenario_load},
    {"access.md", "The first read of a device", scenario_device},
    {"access.md", "A later read of the same device", scenario_device_again},
    {"topology.md", "RAM moves", scenario_move},
    {"shadow.md", "The first access to a page", flow_shadow_map},
    {"shadow.md", "A store to a directory", flow_shadow_upper},
    {"shadow.md", "A store to a last-level table, then a load of CR3", flow_shadow_unsync},
    {"shadow.md", "The guest's own fault", flow_shadow_guest},
    {"dirty.md", "Logging goes on", scenario_logging_on},
    {"dirty.md", "The first write to a page", scenario_logged_write},
    {"dirty.md", "A harvest", scenario_harvest},
    {"dirty.md", "Logging goes off", scenario_logging_off},
    {"invalidation.md", "The process discards a page", scenario_discard},
    {"invalidation.md", "The next access", scenario_after_discard},
};

/* ---- documents ---- */

/* "| `name` | `file` | `function` | words |" */
static bool parse_row(char *line, struct step *s)
{
    char *cell[3];
    char *at = line;

    for (int i = 0; i < 3; i++) {
        char *open = strchr(at, '`'), *close = open ? strchr(open + 1, '`') : NULL;

        if (line[0] != '|' || !close) {
            return false;
        }
        *close = 0;
        cell[i] = open + 1;
        at = close + 1;
    }
    memset(s, 0, sizeof(*s));
    snprintf(s->name, sizeof(s->name), "%s", cell[0]);
    snprintf(s->file, sizeof(s->file), "%s", cell[1]);
    snprintf(s->function, sizeof(s->function), "%s", cell[2]);
    return true;
}

static bool read_doc(const char *folder, const char *doc, const char *heading, struct steps *steps)
{
    char path[512], line[512];
    bool inside = false;
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", folder, doc);
    f = fopen(path, "r");
    memset(steps, 0, sizeof(*steps));
    while (f && fgets(line, sizeof(line), f)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, "## ", 3) == 0) {
            inside = strcmp(line + 3, heading) == 0;
        } else if (inside && steps->n < MAX_STEPS && parse_row(line, &steps->at[steps->n])) {
            steps->n++;
        }
    }
    if (f) {
        fclose(f);
    }
    return f && steps->n;
}

static bool compare(const struct steps *doc)
{
    bool same = doc->n == seen.n;

    for (unsigned i = 0; i < doc->n || i < seen.n; i++) {
        const struct step *d = &doc->at[i], *s = &seen.at[i];

        if (i >= doc->n || i >= seen.n || memcmp(d, s, sizeof(*d)) != 0) {
            same = false;
            printf("# step %u: document has %s %s:%s, the run %s %s:%s\n", i + 1,
                   i < doc->n ? d->name : "nothing", d->file, d->function,
                   i < seen.n ? s->name : "nothing", s->file, s->function);
        }
    }
    return same;
}

int main(int argc, char **argv)
{
    const unsigned n = sizeof(scenarios) / sizeof(scenarios[0]);
    bool print = argc > 2 && strcmp(argv[2], "--print") == 0;
    static struct steps doc;
    int failed = 0;

    if (argc < 2) {
        return 2;
    }
    printf("1..%u\n", n);
    for (unsigned i = 0; i < n; i++) {
        int ret = scenarios[i].run();
        bool ok;

        if (print) {
            printf("\n## %s (%d)\n\n", scenarios[i].heading, ret);
            for (unsigned s = 0; s < seen.n; s++) {
                printf("| `%s` | `%s` | `%s` |  |\n", seen.at[s].name, seen.at[s].file, seen.at[s].function);
            }
            continue;
        }
        ok = ret == 0 && read_doc(argv[1], scenarios[i].doc, scenarios[i].heading, &doc) && compare(&doc);
        printf("%s %u - %s: %s\n", ok ? "ok" : "not ok", i + 1, scenarios[i].doc, scenarios[i].heading);
        failed += !ok;
    }
    return failed ? 1 : 0;
}
