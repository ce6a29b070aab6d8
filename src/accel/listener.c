/*
 * The memory listener: from flat ranges of the attached spaces to slots, event descriptors and coalesced
 * zones. Callbacks run under the topology lock of the memory handle and only queue; accel/slots.c acts at
 * commit. A commit that would need more slots than the engine has is refused before anybody is told.
 */
#include "accel/slots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "strata/address_space.h"

static void queue(struct accel_slots *s, struct accel_slot_list *l, const struct strata_section *section)
{
    struct accel_slot_desc rest, piece;

    if (!accel_slot_of_section(s, section, &rest)) {
        return;
    }
    while (accel_slot_piece(s, &rest, &piece)) {
        if (accel_slot_list_push(s->accel, l, &piece) < 0) {
            accel_slots_fail(s, -ENOMEM, "queueing a memory slot for address 0x%llx", (unsigned long long)piece.gpa);
        }
    }
}

static void on_add(void *opaque, const struct strata_section *section)
{
    struct accel_slots *s = opaque;

    queue(s, &s->adding, section);
}

static void on_del(void *opaque, const struct strata_section *section)
{
    struct accel_slots *s = opaque;

    queue(s, &s->going, section);
}

static void on_commit(void *opaque)
{
    accel_slots_commit(opaque);
}

static void on_log_start(void *opaque, const struct strata_section *section, unsigned old_mask,
                         unsigned new_mask)
{
    if (!old_mask && new_mask) {
        accel_dirty_log_set(opaque, section, true);
    }
}

static void on_log_stop(void *opaque, const struct strata_section *section, unsigned old_mask,
                        unsigned new_mask)
{
    if (old_mask && !new_mask) {
        accel_dirty_log_set(opaque, section, false);
    }
}

static void on_log_sync(void *opaque, const struct strata_section *section)
{
    accel_dirty_sync(opaque, section);
}

static void on_log_sync_global(void *opaque, bool last_stage)
{
    accel_ring_sync(opaque, last_stage);
}

static void on_log_clear(void *opaque, const struct strata_section *section)
{
    accel_dirty_clear(opaque, section);
}

static void on_coalesced_flush(void *opaque)
{
    struct accel_slots *s = opaque;

    accel_coalesced_flush(s->accel);
}

static void on_memory_eventfd_add(void *opaque, struct strata_space *space, const struct strata_eventfd *ev)
{
    accel_eventfd_assign(opaque, ev, false, true);
}

static void on_memory_eventfd_del(void *opaque, struct strata_space *space, const struct strata_eventfd *ev)
{
    accel_eventfd_assign(opaque, ev, false, false);
}

static void on_io_eventfd_add(void *opaque, struct strata_space *space, const struct strata_eventfd *ev)
{
    accel_eventfd_assign(opaque, ev, true, true);
}

static void on_io_eventfd_del(void *opaque, struct strata_space *space, const struct strata_eventfd *ev)
{
    accel_eventfd_assign(opaque, ev, true, false);
}

static void on_memory_coalesced_add(void *opaque, const struct strata_section *section, strata_addr start,
                                    uint64_t size)
{
    accel_coalesced_zone(opaque, start, size, false, true);
}

static void on_memory_coalesced_del(void *opaque, const struct strata_section *section, strata_addr start,
                                    uint64_t size)
{
    accel_coalesced_zone(opaque, start, size, false, false);
}

static void on_io_coalesced_add(void *opaque, const struct strata_section *section, strata_addr start,
                                uint64_t size)
{
    accel_coalesced_zone(opaque, start, size, true, true);
}

static void on_io_coalesced_del(void *opaque, const struct strata_section *section, strata_addr start,
                                uint64_t size)
{
    accel_coalesced_zone(opaque, start, size, true, false);
}

/* Slots that a change set takes away and brings. A range that is split is told once per part that is left,
 * one that grew once per part that it had: each counts once. */
struct tally {
    const struct accel_slots *s;
    uint64_t going, adding;
    strata_addr split, merged; /* where the last such range began, + 1 */
};

static uint64_t pieces_of(const struct tally *t, const struct strata_section *section)
{
    struct accel_slot_desc d;

    return section->region && accel_slot_of_section(t->s, section, &d) ? accel_slot_pieces(t->s, &d) : 0;
}

static void tally_change(struct tally *t, const struct strata_change *c)
{
    bool going = c->kind != STRATA_CHANGE_ADD && c->kind != STRATA_CHANGE_LOG;
    bool adding = c->kind != STRATA_CHANGE_DEL && c->kind != STRATA_CHANGE_LOG;

    if (c->kind == STRATA_CHANGE_SPLIT) {
        going = t->split != c->old.start + 1;
        t->split = c->old.start + 1;
    }
    if (c->kind == STRATA_CHANGE_MERGE) {
        adding = t->merged != c->now.start + 1;
        t->merged = c->now.start + 1;
    }
    t->going += going ? pieces_of(t, &c->old) : 0;
    t->adding += adding ? pieces_of(t, &c->now) : 0;
}

/* Would the engine's slots suffice, and memory for ours? After this nothing of a commit can fail here. */
static int on_prepare(void *opaque, const struct strata_change_set *sets, size_t count)
{
    struct accel_slots *s = opaque;
    struct tally t = {.s = s};
    uint64_t live, more;
    size_t i, j;
    int ret;

    for (i = 0; i < count; i++) {
        for (j = 0; sets[i].space == s->accel->memory && j < sets[i].count; j++) {
            tally_change(&t, &sets[i].changes[j]);
        }
    }
    ret = accel_slot_list_reserve(s->accel, &s->going, t.going);
    if (ret == 0) {
        ret = accel_slot_list_reserve(s->accel, &s->adding, t.adding);
    }
    if (ret < 0) {
        return ret;
    }
    pthread_mutex_lock(&s->lock);
    live = s->table.live;
    more = t.adding > t.going ? t.adding - t.going : 0;
    ret = live + more > s->table.limit ? -ENOSPC : accel_slot_table_reserve(&s->table, (uint32_t)more);
    pthread_mutex_unlock(&s->lock);
    return ret;
}

#define MEMORY_OPS                                                                                 \
    .region_add = on_add, .region_del = on_del, .commit = on_commit, .log_start = on_log_start,    \
    .log_stop = on_log_stop, .eventfd_add = on_memory_eventfd_add,                                 \
    .eventfd_del = on_memory_eventfd_del, .coalesced_add = on_memory_coalesced_add,                \
    .coalesced_del = on_memory_coalesced_del, .coalesced_flush = on_coalesced_flush,               \
    .prepare = on_prepare

static const struct strata_listener_ops bitmap_ops = {
    MEMORY_OPS,
    .log_sync = on_log_sync,
    .log_clear = on_log_clear,
};

/* A ring knows no slots: it is collected as a whole. */
static const struct strata_listener_ops ring_ops = {
    MEMORY_OPS,
    .log_sync_global = on_log_sync_global,
};

static const struct strata_listener_ops io_ops = {
    .eventfd_add = on_io_eventfd_add,
    .eventfd_del = on_io_eventfd_del,
    .coalesced_add = on_io_coalesced_add,
    .coalesced_del = on_io_coalesced_del,
};

static void on_ram_removed(struct strata_ram_notifier *n, struct strata_ram *ram)
{
    struct accel_slots *s = container_of(n, struct accel_slots, ram_notifier);
    struct accel_endpoint *ep = s->accel->ep;

    if (ep->ops->memory_discarded && strata_ram_max_size(ram)) {
        ep->ops->memory_discarded(ep, strata_ram_host(ram), strata_ram_max_size(ram));
    }
    accel_private_removed(s, ram);
}

static void on_ram_discarded(struct strata_ram_notifier *n, struct strata_ram *ram, uint64_t start,
                             uint64_t len)
{
    struct accel_slots *s = container_of(n, struct accel_slots, ram_notifier);
    struct accel_endpoint *ep = s->accel->ep;

    if (ep->ops->memory_discarded) {
        ep->ops->memory_discarded(ep, (char *)strata_ram_host(ram) + start, len);
    }
    accel_private_discarded(s, ram, start, len);
}

static int register_listeners(struct accel_slots *s, struct base_error *err)
{
    struct strata_memory *mem = strata_space_memory(s->accel->memory);
    struct strata_listener_desc desc = {
        .name = "kvm-memory", .priority = 10, .opaque = s, .space = s->accel->memory};
    int ret;

    s->ram_notifier.removed = on_ram_removed;
    s->ram_notifier.discarded = on_ram_discarded;
    strata_ram_notifier_add(mem, &s->ram_notifier);
    s->notified = true;
    desc.ops = s->accel->ring_entries ? &ring_ops : &bitmap_ops;
    ret = strata_listener_register(mem, &desc, &s->memory_listener);
    if (ret == 0) {
        desc.name = "kvm-io";
        desc.ops = &io_ops;
        desc.space = s->accel->io;
        ret = strata_listener_register(mem, &desc, &s->io_listener);
    }
    if (ret < 0) {
        return base_error_set(err, -ret, "memory listener: %s", strerror(-ret));
    }
    return s->error ? base_error_set(err, -s->error, "%s", s->error_text) : 0;
}

/* Make the slot table of a->memory and listen. Returns: 0, or -errno with err. Lock: none. Source: own. */
int accel_slots_new(struct accel *a, struct base_error *err)
{
    struct accel_slots *s = accel_calloc(a, 1, sizeof(*s));

    if (!s) {
        return base_error_set(err, ENOMEM, "out of memory");
    }
    s->accel = a;
    pthread_mutex_init(&s->lock, NULL);
    accel_slot_table_init(&s->table, a, a->max_slots);
    a->slots = s;
    return register_listeners(s, err);
}

/* Stop listening and free the table; s may be NULL. vCPUs are stopped. Lock: none. Source: own. */
void accel_slots_free(struct accel_slots *s)
{
    if (!s) {
        return;
    }
    s->closing = true;
    if (s->io_listener) {
        strata_listener_unregister(s->io_listener);
    }
    if (s->memory_listener) {
        strata_listener_unregister(s->memory_listener);
    }
    if (s->notified) {
        strata_ram_notifier_del(&s->ram_notifier);
    }
    accel_private_fini(s);
    s->accel->slots = NULL;
    accel_slot_table_fini(&s->table);
    pthread_mutex_destroy(&s->lock);
    free(s->adding.v);
    free(s->going.v);
    free(s);
}
