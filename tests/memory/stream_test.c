/*
 * Random access streams against the naive bus, random change streams against the painter, and every
 * file of the fuzzers' kept corpora. STRATA_LONG=1: a million accesses and more.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory/stream.h"

typedef bool (*stream_fn)(const uint8_t *data, size_t len, char why[256]);

static uint64_t next(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

static void random_streams(stream_fn fn, unsigned count, size_t len)
{
    uint64_t x = 0x9e3779b97f4a7c15u;
    uint8_t data[512];
    char why[256];

    for (unsigned i = 0; i < count; i++) {
        for (size_t k = 0; k < len; k++) {
            data[k] = (uint8_t)(next(&x) >> 32);
        }
        if (!fn(data, len, why)) {
            fail_msg("stream %u: %s", i, why);
        }
    }
}

static void corpus(stream_fn fn, const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    uint8_t data[4096];
    char path[512], why[256];

    while (d && (e = readdir(d))) {
        FILE *f;

        snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
        f = e->d_name[0] != '.' ? fopen(path, "rb") : NULL;
        if (!f) {
            continue;
        }
        if (!fn(data, fread(data, 1, sizeof(data), f), why)) {
            fail_msg("%s: %s", path, why);
        }
        fclose(f);
    }
    if (d) {
        closedir(d);
    }
}

static void access_streams(void **state)
{
    random_streams(stream_access, getenv("STRATA_LONG") ? 20000 : 1500, 240);
    corpus(stream_access, STRATA_TEST_DATA "/../fuzz/memory_access");
}

static void topology_streams(void **state)
{
    random_streams(stream_topology, getenv("STRATA_LONG") ? 20000 : 100, 300);
    corpus(stream_topology, STRATA_TEST_DATA "/../fuzz/memory_topology");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(access_streams),
        cmocka_unit_test(topology_streams),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
