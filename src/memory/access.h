/* Accesses, seen from inside the folder. */
#ifndef STRATA_MEMORY_ACCESS_H
#define STRATA_MEMORY_ACCESS_H

#include "memory/translate.h"
#include "strata/access.h"

bool memory_place_is_direct(const struct memory_place *place, const struct memory_access *access);
void memory_place_mark_dirty(const struct memory_place *place, uint64_t len);
unsigned memory_place_piece(const struct memory_place *place, const struct memory_access *access);
enum strata_result memory_place_read(const struct memory_place *place,
                                     const struct memory_access *access, unsigned size,
                                     uint64_t *value);
enum strata_result memory_place_write(const struct memory_place *place,
                                      const struct memory_access *access, unsigned size,
                                      uint64_t value);

#endif
