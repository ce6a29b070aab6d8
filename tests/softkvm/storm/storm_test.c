/*
 * The storm, stepped. STRATA_STORM_SEED=n runs one seed and shows its whole schedule; STRATA_LONG=1 runs
 * 100,000 of them; STRATA_STORM_FIRST and STRATA_STORM_SEEDS choose which and how many.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storm.h"

#define STEPS 250u

static void run_seed(uint64_t seed, bool verbose, uint64_t sums[4])
{
    struct storm *w = storm_new(seed, verbose);

    for (w->step = 0; w->step < STEPS; w->step++) {
        uint64_t kind = storm_random(w, 16);

        if (kind < 10) {
            w->failing = w->config.inject && storm_random(w, 8) == 0;
            storm_guest_step(w);
            w->failing = false;
        } else if (kind < 14) {
            storm_host_step(w);
        } else {
            storm_slot_step(w);
        }
        if (w->step % 32 == 31) {
            storm_check(w);
        }
        if (w->step % 128 == 127) {
            storm_compare(w);
        }
    }
    storm_compare(w);
    storm_check(w);
    sums[0] += w->efaults;
    sums[1] += w->enomems;
    sums[2] += w->guest_faults;
    sums[3] += w->mmios;
    storm_free(w);
}

int main(void)
{
    const char *one = getenv("STRATA_STORM_SEED"), *is_long = getenv("STRATA_LONG");
    const char *many = getenv("STRATA_STORM_SEEDS"), *from = getenv("STRATA_STORM_FIRST");
    uint64_t first = from ? strtoull(from, NULL, 0) : 1;
    uint64_t n = is_long && strcmp(is_long, "1") == 0 ? 100000 : 200, sums[4] = {0};

    if (one) {
        run_seed(strtoull(one, NULL, 0), true, sums);
        n = 1;
    } else {
        n = many ? strtoull(many, NULL, 0) : n;
        for (uint64_t seed = first; seed < first + n; seed++) {
            run_seed(seed, false, sums);
        }
    }
    printf("ok 1 - storm: %llu seeds; %llu page faults of the guest, %llu device accesses, %llu pages that were gone, "
           "%llu failures injected\n1..1\n",
           (unsigned long long)n, (unsigned long long)sums[2], (unsigned long long)sums[3],
           (unsigned long long)sums[0], (unsigned long long)sums[1]);
    return sums[0] && sums[2] && sums[3] ? 0 : one ? 0 : 1;
}
