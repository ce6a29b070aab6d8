/* Streams of bytes as programs: a map and accesses to it, or changes of a topology; for random tests
 * and fuzzers. False, with words: the library and the oracle disagree. */
#ifndef STRATA_TESTS_MEMORY_STREAM_H
#define STRATA_TESTS_MEMORY_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

bool stream_access(const uint8_t *data, size_t len, char why[256]);
bool stream_topology(const uint8_t *data, size_t len, char why[256]);

#endif
