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

static void on_add(void *opaque, const struct strata_section *section)
{
    struct accel_slots *s = opaque;
    struct accel_slot slot;

    if (accel_slot_of_section(s, section, &slot) && accel_slot_list_push(&s->adding, &slot) < 0) {
        accel_slots_fail(s, -ENOMEM, "queueing a memory slot");
    }
}

static void on_del(void *opaque, const struct strata_section *section)
{
    struct accel_slots *s = opaque;
    struct accel_slot slot;

    if (accel_slot_of_section(s, section, &slot) && accel_slot_list_push(&s->going, &slot) < 0) {
        accel_slots_fail(s, -ENOMEM, "queueing a memory slot");
    }
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

static bool gets_slot(const struct accel_slots *s, const struct strata_section *section)
{
    struct accel_slot slot;

    return section->region && accel_slot_of_section(s, section, &slot);
}

/* Would the engine's slots suffice? */
static int on_prepare(void *opaque, const struct strata_change_set *sets, size_t count)
{
    struct accel_slots *s = opaque;
    size_t i, j, slots = s->live.count;

    for (i = 0; i < count; i++) {
        if (sets[i].space != s->accel->memory) {
            continue;
        }
        for (j = 0; j < sets[i].count; j++) {
            const struct strata_change *c = &sets[i].changes[j];

            slots += c->kind == STRATA_CHANGE_ADD && gets_slot(s, &c->now);
            slots -= c->kind == STRATA_CHANGE_DEL && slots && gets_slot(s, &c->old);
        }
    }
    return slots > s->accel->max_slots ? -ENOSPC : 0;
}

static const struct strata_listener_ops memory_ops = {
    .region_add = on_add,
    .region_del = on_del,
    .commit = on_commit,
    .log_start = on_log_start,
    .log_stop = on_log_stop,
    .log_sync = on_log_sync,
    .eventfd_add = on_memory_eventfd_add,
    .eventfd_del = on_memory_eventfd_del,
    .coalesced_add = on_memory_coalesced_add,
    .coalesced_del = on_memory_coalesced_del,
    .prepare = on_prepare,
};

static const struct strata_listener_ops io_ops = {
    .eventfd_add = on_io_eventfd_add,
    .eventfd_del = on_io_eventfd_del,
    .coalesced_add = on_io_coalesced_add,
    .coalesced_del = on_io_coalesced_del,
};

static int register_listeners(struct accel_slots *s, struct base_error *err)
{
    struct strata_memory *mem = strata_space_memory(s->accel->memory);
    struct strata_listener_desc desc = {
        .name = "kvm-memory", .priority = 10, .ops = &memory_ops, .opaque = s, .space = s->accel->memory};
    int ret = strata_listener_register(mem, &desc, &s->memory_listener);

    if (ret == 0) {
        desc = (struct strata_listener_desc){
            .name = "kvm-io", .priority = 10, .ops = &io_ops, .opaque = s, .space = s->accel->io};
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
    struct accel_slots *s = calloc(1, sizeof(*s));

    if (!s) {
        return base_error_set(err, ENOMEM, "out of memory");
    }
    s->accel = a;
    pthread_mutex_init(&s->info_lock, NULL);
    a->slots = s;
    s->free_ids = calloc(a->max_slots, sizeof(*s->free_ids));
    if (!s->free_ids) {
        return base_error_set(err, ENOMEM, "out of memory");
    }
    return register_listeners(s, err);
}

/* Stop listening and free the table; s may be NULL. vCPUs are stopped. Lock: none. Source: own. */
void accel_slots_free(struct accel_slots *s)
{
    if (!s) {
        return;
    }
    if (s->io_listener) {
        strata_listener_unregister(s->io_listener);
    }
    if (s->memory_listener) {
        strata_listener_unregister(s->memory_listener);
    }
    pthread_mutex_destroy(&s->info_lock);
    free(s->live.v);
    free(s->adding.v);
    free(s->going.v);
    free(s->free_ids);
    free(s);
}
