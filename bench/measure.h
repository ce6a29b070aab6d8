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
    const char *peer[2]; /* names; null: "peer" and none */
};

/* One of several things measured side by side. */
struct measure_job {
    void (*fn)(void *ctx, uint64_t n);
    void *ctx;
    uint64_t n;  /* operations a round; 0: not measured */
    double cost; /* out: the median, ns per operation; -1: not measured */
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

/* Measure jobs in turns, round by round, so that a noisy machine is noisy for all of them. */
static inline void measure_together(struct measure_job *jobs, int njobs)
{
    double took[4][MEASURE_ROUNDS];

    for (int i = 0; i < MEASURE_ROUNDS; i++) {
        for (int k = 0; k < njobs && k < 4; k++) {
            double start = measure_now();

            if (jobs[k].n) {
                jobs[k].fn(jobs[k].ctx, jobs[k].n);
                took[k][i] = (measure_now() - start) / (double)jobs[k].n;
            }
        }
    }
    for (int k = 0; k < njobs && k < 4; k++) {
        jobs[k].cost = -1;
        if (jobs[k].n) {
            qsort(took[k], MEASURE_ROUNDS, sizeof(took[k][0]), measure_by_value);
            jobs[k].cost = took[k][MEASURE_ROUNDS / 2];
        }
    }
}

/* peer: names of two peers, for measure_row_peers(); null: measure_row() alone is used. */
static inline struct measure measure_open_peers(int argc, char **argv, const char *const peer[2])
{
    struct measure m = {.peer = {peer ? peer[0] : NULL, peer ? peer[1] : NULL}};

    if (argc == 3 && strcmp(argv[1], "--json") == 0) {
        m.json = fopen(argv[2], "w");
    }
    if (m.json) {
        fputs("[", m.json);
    }
    printf("%-44s %12s %12s", "what", "strata", m.peer[0] ? m.peer[0] : "peer");
    if (m.peer[1]) {
        printf(" %12s", m.peer[1]);
    }
    printf(" %12s\n", "bar");
    return m;
}

static inline struct measure measure_open(int argc, char **argv)
{
    return measure_open_peers(argc, argv, NULL);
}

/* One row with two peers: ours, first peer, second peer, bar; below 0: there is none. */
static inline void measure_row_peers(struct measure *m, const char *what, const char *unit,
                                     const double value[4])
{
    static const char *const key[4] = {"strata", NULL, NULL, "bar"};

    printf("%-44s", what);
    if (m->json) {
        fprintf(m->json, "%s{\"what\":\"%s\",\"unit\":\"%s\"", m->rows++ ? "," : "", what, unit);
    }
    for (int i = 0; i < 4; i++) {
        const char *name = key[i] ? key[i] : m->peer[i - 1];

        if (value[i] < 0) {
            printf(" %12s", "-");
        } else {
            printf(" %9.2f %s", value[i], unit);
        }
        if (m->json) {
            fprintf(m->json, value[i] < 0 ? ",\"%s\":null" : ",\"%s\":%.3f", name, value[i]);
        }
    }
    printf("\n");
    if (m->json) {
        fputs("}", m->json);
    }
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
