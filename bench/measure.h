/* Timing and reporting for benchmarks: medians of rounds in process CPU time, a table on stdout, JSON. */
#ifndef STRATA_BENCH_MEASURE_H
#define STRATA_BENCH_MEASURE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MEASURE_ROUNDS 5

struct measure {
    FILE *json;
    int rows;
};

static inline double measure_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static inline int measure_by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* The median of what fn takes per operation, in ns, over a few rounds. */
static inline double measure_run(void (*fn)(void *ctx, uint64_t n), void *ctx, uint64_t n)
{
    double took[MEASURE_ROUNDS];

    for (int i = 0; i < MEASURE_ROUNDS; i++) {
        double start = measure_now();

        fn(ctx, n);
        took[i] = (measure_now() - start) / (double)n;
    }
    qsort(took, MEASURE_ROUNDS, sizeof(took[0]), measure_by_value);
    return took[MEASURE_ROUNDS / 2];
}

static inline struct measure measure_open(int argc, char **argv)
{
    struct measure m = {0};

    if (argc == 3 && strcmp(argv[1], "--json") == 0) {
        m.json = fopen(argv[2], "w");
    }
    if (m.json) {
        fputs("[", m.json);
    }
    printf("%-44s %12s %12s %12s\n", "what", "strata", "peer", "bar");
    return m;
}

/* One row; peer, bar < 0: there is none. unit: ns, us, ms. */
static inline void measure_row(struct measure *m, const char *what, const char *unit,
                               const double value[3])
{
    printf("%-44s", what);
    for (int i = 0; i < 3; i++) {
        if (value[i] < 0) {
            printf(" %12s", "-");
        } else {
            printf(" %9.2f %s", value[i], unit);
        }
    }
    printf("\n");
    if (m->json) {
        fprintf(m->json, "%s{\"what\":\"%s\",\"unit\":\"%s\",\"strata\":%.3f", m->rows++ ? "," : "",
                what, unit, value[0]);
        fprintf(m->json, value[1] < 0 ? ",\"peer\":null" : ",\"peer\":%.3f", value[1]);
        fprintf(m->json, value[2] < 0 ? ",\"bar\":null}" : ",\"bar\":%.3f}", value[2]);
    }
}

static inline void measure_close(struct measure *m)
{
    if (m->json) {
        fputs("]\n", m->json);
        fclose(m->json);
    }
}

#endif
