/* The table of memory slots; see slot_table.h. A treap whose priorities come from the ids. */
#include "accel/slot_table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "accel/internal.h"

#define FIRST_ROOM 16u

/* Lock: the owner's. limit: ids that the engine takes. Source: own. */
void accel_slot_table_init(struct accel_slot_table *t, struct accel *a, uint32_t limit)
{
    memset(t, 0, sizeof(*t));
    t->accel = a;
    t->limit = limit;
}

/* Free every slot. Lock: the owner's. Source: own. */
void accel_slot_table_fini(struct accel_slot_table *t)
{
    uint32_t i;

    for (i = 0; i < t->made; i++) {
        free(t->by_id[i]->reported);
        free(t->by_id[i]);
    }
    free(t->by_id);
    memset(t, 0, sizeof(*t));
}

static int grow_room(struct accel_slot_table *t)
{
    uint32_t room = t->room ? t->room * 2 : FIRST_ROOM;
    struct accel_slot **by_id;

    if (room > t->limit) {
        room = t->limit;
    }
    by_id = accel_calloc(t->accel, room, sizeof(*by_id));
    if (!by_id) {
        return -ENOMEM;
    }
    if (t->by_id) {
        memcpy(by_id, t->by_id, t->made * sizeof(*by_id));
    }
    free(t->by_id);
    t->by_id = by_id;
    t->room = room;
    return 0;
}

/*
 * Make sure that n calls of insert() will succeed.
 * Returns: 0; -ENOSPC the engine has not that many; -ENOMEM. What was made already stays.
 * Lock: the owner's. Source: own; the doubling is QEMU's.
 */
int accel_slot_table_reserve(struct accel_slot_table *t, uint32_t n)
{
    if (n > t->limit || t->live > t->limit - n) {
        return -ENOSPC;
    }
    while (t->made < t->live + n) {
        struct accel_slot *slot;

        if (t->made == t->room && grow_room(t) < 0) {
            return -ENOMEM;
        }
        slot = accel_calloc(t->accel, 1, sizeof(*slot));
        if (!slot) {
            return -ENOMEM;
        }
        slot->id = t->made;
        slot->prio = (slot->id + 1) * 0x9e3779b1u;
        slot->prio ^= slot->prio >> 15;
        slot->prio *= 0x85ebca6bu;
        slot->next_free = t->free;
        t->free = slot;
        t->by_id[t->made++] = slot;
    }
    return 0;
}

/* Lock: the owner's. Source: own. */
uint32_t accel_slot_table_free_count(const struct accel_slot_table *t)
{
    return t->limit - t->live;
}

/* Split at gpa: what begins below it to *low, the rest to *high. */
static void split(struct accel_slot *at, uint64_t gpa, struct accel_slot **low, struct accel_slot **high)
{
    while (at) {
        if (at->d.gpa < gpa) {
            *low = at;
            low = &at->right;
            at = at->right;
        } else {
            *high = at;
            high = &at->left;
            at = at->left;
        }
    }
    *low = *high = NULL;
}

static struct accel_slot *merge(struct accel_slot *low, struct accel_slot *high)
{
    struct accel_slot *root = NULL, **to = &root;

    while (low && high) {
        if (low->prio > high->prio) {
            *to = low;
            to = &low->right;
            low = low->right;
        } else {
            *to = high;
            to = &high->left;
            high = high->left;
        }
    }
    *to = low ? low : high;
    return root;
}

/*
 * A free id becomes live as d, which overlaps no live slot.
 * Returns: the slot, or NULL when reserve() was not asked. Lock: the owner's. Source: own.
 */
struct accel_slot *accel_slot_table_insert(struct accel_slot_table *t, const struct accel_slot_desc *d)
{
    struct accel_slot *slot = t->free, **at = &t->root;

    if (!slot) {
        return NULL;
    }
    t->free = slot->next_free;
    slot->next_free = NULL;
    slot->d = *d;
    while (*at && (*at)->prio > slot->prio) {
        at = d->gpa < (*at)->d.gpa ? &(*at)->left : &(*at)->right;
    }
    split(*at, d->gpa, &slot->left, &slot->right);
    *at = slot;
    t->live++;
    return slot;
}

/* A live slot's id is free again, its bitmap gone. Lock: the owner's. Source: own. */
void accel_slot_table_remove(struct accel_slot_table *t, struct accel_slot *slot)
{
    struct accel_slot **at = &t->root;

    while (*at && *at != slot) {
        at = slot->d.gpa < (*at)->d.gpa ? &(*at)->left : &(*at)->right;
    }
    if (!*at) {
        return;
    }
    *at = merge(slot->left, slot->right);
    free(slot->reported);
    slot->reported = NULL;
    slot->left = slot->right = NULL;
    slot->d.size = 0;
    slot->next_free = t->free;
    t->free = slot;
    t->live--;
}

/* Lock: the owner's. Source: own. */
struct accel_slot *accel_slot_table_from(const struct accel_slot_table *t, uint64_t gpa)
{
    struct accel_slot *at = t->root, *best = NULL;

    while (at) {
        if (at->d.gpa + (at->d.size - 1) >= gpa) {
            best = at;
            at = at->left;
        } else {
            at = at->right;
        }
    }
    return best;
}

/* Lock: the owner's. Source: own; the exact match is QEMU's. */
struct accel_slot *accel_slot_table_find(const struct accel_slot_table *t, uint64_t gpa, uint64_t size)
{
    struct accel_slot *slot = accel_slot_table_from(t, gpa);

    return slot && slot->d.gpa == gpa && slot->d.size == size ? slot : NULL;
}

/* Lock: the owner's. Source: own. */
struct accel_slot *accel_slot_table_by_id(const struct accel_slot_table *t, uint32_t id)
{
    return id < t->made && t->by_id[id]->d.size ? t->by_id[id] : NULL;
}
