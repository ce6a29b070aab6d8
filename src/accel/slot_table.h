/*
 * The table of memory slots: which ids the engine knows, and which ranges they map, in order of address.
 *
 * Slots are allocated once and reused: an id whose size is 0 is free. The table begins with 16 ids and
 * doubles up to the engine's limit. Live slots hang in a treap by address, so that adding or removing
 * one costs the logarithm of their number.
 *
 * Invariants: 1. live slots are disjoint; 2. an id is either live or on the free list; 3. by_id[i]->id == i.
 * Locks: struct accel_slots.lock; the table knows nothing of it.
 */
#ifndef STRATA_ACCEL_SLOT_TABLE_H
#define STRATA_ACCEL_SLOT_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct accel;
struct strata_ram;

/* What a slot is to be; everything but the id. */
struct accel_slot_desc {
    uint64_t gpa, size, hva;
    uint32_t flags;         /* KVM_MEM_* */
    struct strata_ram *ram; /* block behind it, or NULL; borrowed as long as the slot lives */
    uint64_t ram_offset;    /* of gpa in the block */
};

struct accel_slot {
    struct accel_slot_desc d; /* d.size 0: the id is free */
    uint32_t id, prio;
    /* Pages that the engine reported dirty and was not yet asked to clear, one bit each, LSB first, then
     * as many words of scratch; NULL: none is kept. Manual protection only, but the buffer of every log. */
    uint64_t *reported;
    size_t words;
    struct accel_slot *left, *right, *next_free;
};

struct accel_slot_table {
    struct accel *accel;         /* for allocations */
    struct accel_slot *root;     /* live, by gpa */
    struct accel_slot **by_id;   /* `room` of them, the first `made` are there */
    struct accel_slot *free;
    uint32_t room, made, live, limit;
};

void accel_slot_table_init(struct accel_slot_table *t, struct accel *a, uint32_t limit);
void accel_slot_table_fini(struct accel_slot_table *t);
/* See to it that n slots can be taken. 0; -ENOSPC beyond the limit; -ENOMEM. */
int accel_slot_table_reserve(struct accel_slot_table *t, uint32_t n);
/* How many more slots the engine would take. */
uint32_t accel_slot_table_free_count(const struct accel_slot_table *t);
/* Make a free id live as d; NULL when none is reserved. */
struct accel_slot *accel_slot_table_insert(struct accel_slot_table *t, const struct accel_slot_desc *d);
/* The id is free again. */
void accel_slot_table_remove(struct accel_slot_table *t, struct accel_slot *slot);
/* The live slot of exactly this range, or NULL. */
struct accel_slot *accel_slot_table_find(const struct accel_slot_table *t, uint64_t gpa, uint64_t size);
/* The lowest live slot that ends beyond gpa, or NULL. */
struct accel_slot *accel_slot_table_from(const struct accel_slot_table *t, uint64_t gpa);
/* The live slot with this id, or NULL. */
struct accel_slot *accel_slot_table_by_id(const struct accel_slot_table *t, uint32_t id);

#endif
