/* Eventfds and coalesced ranges of regions: kept here, told to listeners by the commit. */
#ifndef STRATA_MEMORY_EVENTS_H
#define STRATA_MEMORY_EVENTS_H

#include "memory/region.h"

struct memory_range;
struct strata_section;

struct memory_events *memory_events_get(struct memory_events *events);
void memory_events_put(struct strata_memory *mem, struct memory_events *events);
int memory_event_compare(const struct strata_eventfd *a, const struct strata_eventfd *b);
bool memory_events_signal(struct strata_region *region, strata_addr addr, unsigned size,
                          uint64_t data);
bool memory_coalesced_clip(const struct strata_section *section, const struct memory_coalesced *c,
                           strata_addr *start, uint64_t *size);

#endif
