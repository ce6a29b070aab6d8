/*
 * What the simulated host costs, beside what the real one costs in the same run: faults of 4 KiB and
 * 2 MiB, walks, frames, unmapping, swap. Figures are processor time per operation, medians of rounds, so
 * that a busy machine spoils them little. Usage: bench_host [--json FILE] [--rounds N]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "host/buddy.h"
#include "host/mm.h"

#define MIB        (UINT64_C(1) << 20)
#define RAM        (256 * MIB)
#define MAX_ROUNDS 25

struct bench {
    struct host_memory *hm;
    struct host_mm *mm;
    char *ram;
};

typedef uint64_t bench_fn(struct bench *b); /* returns how many operations it did, 0 on failure */

static double cpu_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static hva_t at(struct bench *b, uint64_t offset)
{
    return ptr_to_hva(b->ram + offset);
}

static uint64_t fault(struct bench *b, uint64_t step, unsigned flags)
{
    uint64_t n = 0;

    for (uint64_t off = 0; off < RAM; off += step, n++) {
        if (host_handle_mm_fault(b->mm, at(b, off), flags | HOST_FAULT_WRITE)) {
            return 0;
        }
    }
    return n;
}

static uint64_t fault_4k(struct bench *b)
{
    return fault(b, PAGE_SIZE, HOST_FAULT_NOTHP);
}

static uint64_t fault_2m(struct bench *b)
{
    return fault(b, 2 * MIB, 0);
}

static uint64_t discard(struct bench *b)
{
    return host_mm_discard(b->mm, at(b, 0), at(b, RAM)) ? 0 : RAM / PAGE_SIZE;
}

static uint64_t gup(struct bench *b, unsigned flags)
{
    struct host_page p;

    for (uint64_t off = 0; off < RAM; off += PAGE_SIZE) {
        if (host_gup_fast(b->mm, at(b, off), flags, &p)) {
            return 0;
        }
        if (flags & HOST_FAULT_PIN) {
            host_page_put(b->mm, &p);
        }
    }
    return RAM / PAGE_SIZE;
}

static uint64_t gup_fast(struct bench *b)
{
    return gup(b, 0);
}

static uint64_t gup_fast_pin(struct bench *b)
{
    return gup(b, HOST_FAULT_PIN);
}

static uint64_t frame_4k(struct bench *b)
{
    const uint64_t n = 100000;

    for (uint64_t i = 0; i < n; i++) {
        pfn_t p;

        if (host_frames_alloc(b->hm, 0, HOST_GFP_MOVABLE, &p)) {
            return 0;
        }
        host_frames_free(b->hm, p, 0);
    }
    return n;
}

static uint64_t table(struct bench *b)
{
    const uint64_t n = 100000;

    for (uint64_t i = 0; i < n; i++) {
        hpa_t t;

        if (host_table_alloc(b->hm, HOST_FRAME_TABLE, &t)) {
            return 0;
        }
        host_table_free(b->hm, t);
    }
    return n;
}

/* The real host's turn. */
static uint64_t real_fault_4k(struct bench *b)
{
    (void)madvise(b->ram, RAM, MADV_NOHUGEPAGE);
    for (uint64_t off = 0; off < RAM; off += PAGE_SIZE) {
        b->ram[off] = 1;
    }
    return RAM / PAGE_SIZE;
}

static uint64_t real_discard(struct bench *b)
{
    return madvise(b->ram, RAM, MADV_DONTNEED) ? 0 : RAM / PAGE_SIZE;
}

static uint64_t swap_out(struct bench *b)
{
    return host_mm_reclaim(b->mm, RAM / PAGE_SIZE);
}

static uint64_t swap_in(struct bench *b)
{
    struct host_mm_stats before, after;

    host_mm_get_stats(b->mm, &before);
    if (!fault_4k(b)) {
        return 0;
    }
    host_mm_get_stats(b->mm, &after);
    return after.swap_in - before.swap_in;
}

static const struct {
    const char *name, *what;
    bench_fn *run;
} steps[] = {
    {"fault_2m", "2 MiB fault", fault_2m},
    {"gup_fast", "get-user-page, lock-free, huge", gup_fast},
    {"discard_2m", "unmap, per 4 KiB of huge pages", discard},
    {"fault_4k", "4 KiB fault", fault_4k},
    {"gup_fast_4k", "get-user-page, lock-free", gup_fast},
    {"gup_fast_pin", "the same with pin and put", gup_fast_pin},
    {"discard_4k", "unmap, per page", discard},
    {"frame", "frame allocated and freed", frame_4k},
    {"table", "zeroed table allocated and freed", table},
    {"real_fault_4k", "the real host: first touch of 4 KiB", real_fault_4k},
    {"refault_4k", "4 KiB fault of a touched page", fault_4k},
    {"swap_out", "page reclaimed, compressed, given back", swap_out},
    {"swap_in", "page faulted back from swap", swap_in},
    {"discard_end", "unmap, per page", discard},
    {"real_discard", "the real host: MADV_DONTNEED per page", real_discard},
};
#define NR_STEPS (sizeof(steps) / sizeof(steps[0]))

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void report(double times[NR_STEPS][MAX_ROUNDS], unsigned rounds, FILE *json)
{
    if (json) {
        fprintf(json, "{\"unit\": \"ns\", \"rounds\": %u", rounds);
    }
    for (unsigned s = 0; s < NR_STEPS; s++) {
        qsort(times[s], rounds, sizeof(times[s][0]), compare);
        printf("%10.1f ns  %-14s %s\n", times[s][rounds / 2], steps[s].name, steps[s].what);
        if (json) {
            fprintf(json, ", \"%s\": %.1f", steps[s].name, times[s][rounds / 2]);
        }
    }
    if (json) {
        fprintf(json, "}\n");
    }
}

static int run(unsigned rounds, FILE *json)
{
    static double times[NR_STEPS][MAX_ROUNDS];
    struct host_mm_options mo = {.swap_pages = RAM / PAGE_SIZE, .announced = true};
    struct bench b;

    b.ram = mmap(NULL, RAM + 2 * MIB, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (b.ram == MAP_FAILED || host_memory_new(NULL, &b.hm)) {
        return 1;
    }
    b.ram = (char *)(((uintptr_t)b.ram + 2 * MIB - 1) & ~(uintptr_t)(2 * MIB - 1));
    if (host_mm_new(b.hm, &mo, &b.mm)) {
        return 1;
    }
    for (unsigned r = 0; r < rounds; r++) {
        for (unsigned s = 0; s < NR_STEPS; s++) {
            double start = cpu_ns();
            uint64_t n = steps[s].run(&b);

            if (!n) {
                fprintf(stderr, "bench_host: %s failed\n", steps[s].name);
                return 1;
            }
            times[s][r] = (cpu_ns() - start) / (double)n;
        }
    }
    report(times, rounds, json);
    host_mm_free(b.mm);
    host_memory_free(b.hm);
    return 0;
}

int main(int argc, char **argv)
{
    unsigned rounds = 5;
    FILE *json = NULL;
    int status;

    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--json") == 0) {
            json = fopen(argv[i + 1], "w");
        } else if (strcmp(argv[i], "--rounds") == 0) {
            rounds = (unsigned)atoi(argv[i + 1]);
        }
    }
    if (rounds < 1 || rounds > MAX_ROUNDS) {
        fprintf(stderr, "bench_host: rounds are 1 to %d\n", MAX_ROUNDS);
        return 2;
    }
    status = run(rounds, json);
    if (json) {
        fclose(json);
    }
    return status;
}
