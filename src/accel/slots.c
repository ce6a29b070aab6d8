/*
 * The slot table and its commit. Additions and deletions of a topology change are queued while the flat
 * views are compared, and told to the engine together: deletions first. Where an old and a new slot cover
 * one address, every vCPU is kept out of KVM_RUN for the switch, so that none meets the hole between.
 *
 * Place in the flow: topology change, last step on this side of the ABI.
 */
#include "accel/slots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Remember the first update that failed and end the run: the guest's memory is no longer what the tree
 * says. Lock: topology. Source: own. */
void accel_slots_fail(struct accel_slots *s, int code, const char *what)
{
    if (s->error) {
        return;
    }
    s->error = code;
    snprintf(s->error_text, sizeof(s->error_text), "%s: %s", what, strerror(-code));
    accel_tell_stop(s->accel, ACCEL_STOP_INTERNAL_ERROR, s->error_text);
}

/*
 * What slot a flat range becomes: RAM always; a ROM or a ROM device while reads are direct, if the engine
 * has read-only slots. Its start is rounded up and its end down to whole host pages.
 * Returns: false when nothing is left, or such a range gets no slot. Lock: topology. Source: KVM slot rules.
 */
bool accel_slot_of_section(const struct accel_slots *s, const struct strata_section *section,
                           struct accel_slot *out)
{
    bool readonly = section->readonly;
    uint64_t start, last, skip;

    if (!section->host || !strata_region_is_memory(section->region)) {
        return false;
    }
    if (strata_region_kind(section->region) == STRATA_ROM_DEVICE) {
        readonly = true;
        if (!section->romd) {
            return false;
        }
    }
    if (readonly && !s->accel->has_readonly_mem) {
        return false;
    }
    start = (section->start + PAGE_SIZE - 1) & PAGE_MASK;
    last = section->last == UINT64_MAX ? UINT64_MAX : ((section->last + 1) & PAGE_MASK) - 1;
    if (start < section->start || last < start || last == UINT64_MAX) {
        return false;
    }
    skip = start - section->start;
    memset(out, 0, sizeof(*out));
    out->gpa = start;
    out->size = last - start + 1;
    out->hva = (uint64_t)(uintptr_t)section->host + skip;
    out->flags = (section->log_mask ? (uint32_t)KVM_MEM_LOG_DIRTY_PAGES : 0) | (readonly ? (uint32_t)KVM_MEM_READONLY : 0);
    out->ram = strata_region_ram(section->region);
    out->ram_offset = section->offset + skip;
    return true;
}

/* Append. Returns: 0 or -ENOMEM. Lock: the list's owner's. Source: own. */
int accel_slot_list_push(struct accel_slot_list *l, const struct accel_slot *slot)
{
    if (l->count == l->room) {
        size_t room = l->room ? l->room * 2 : 16;
        struct accel_slot *v = realloc(l->v, room * sizeof(*v));

        if (!v) {
            return -ENOMEM;
        }
        l->v = v;
        l->room = room;
    }
    l->v[l->count++] = *slot;
    return 0;
}

/* Binary search in the live slots. Returns: index, at most live.count. Lock: topology. Source: own. */
size_t accel_slots_find(const struct accel_slots *s, uint64_t gpa)
{
    size_t low = 0, high = s->live.count;

    while (low < high) {
        size_t mid = low + (high - low) / 2;

        if (s->live.v[mid].gpa < gpa) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

/* KVM_SET_USER_MEMORY_REGION. size: bytes, 0 deletes. Returns: 0 or -errno. Lock: topology. */
int accel_slot_tell(struct accel_slots *s, const struct accel_slot *slot, uint64_t size)
{
    struct kvm_userspace_memory_region region = {
        .slot = slot->id,
        .flags = slot->flags,
        .guest_phys_addr = slot->gpa,
        .memory_size = size,
        .userspace_addr = slot->hva,
    };

    return accel_ioctl_ptr(s->accel->ep, s->accel->vm_fd, KVM_SET_USER_MEMORY_REGION, &region);
}

static void delete_slot(struct accel_slots *s, const struct accel_slot *gone)
{
    size_t i = accel_slots_find(s, gone->gpa);
    struct accel_slot slot;
    int ret;

    if (i == s->live.count || s->live.v[i].gpa != gone->gpa || s->live.v[i].size != gone->size) {
        return; /* it had been refused when it was added */
    }
    slot = s->live.v[i];
    if (slot.flags & KVM_MEM_LOG_DIRTY_PAGES) {
        accel_dirty_sync_slot(s, &slot);
    }
    TRACE(&s->accel->trace, topology_slot_delete, "slot %llu gpa %llx size %llx", slot.id, slot.gpa, slot.size);
    ret = accel_slot_tell(s, &slot, 0);
    if (ret < 0) {
        accel_slots_fail(s, ret, "deleting a memory slot");
        return;
    }
    pthread_mutex_lock(&s->info_lock);
    memmove(&s->live.v[i], &s->live.v[i + 1], (s->live.count - i - 1) * sizeof(slot));
    s->live.count--;
    pthread_mutex_unlock(&s->info_lock);
    s->free_ids[s->free_count++] = slot.id;
}

static void add_slot(struct accel_slots *s, const struct accel_slot *wanted)
{
    struct accel_slot slot = *wanted;
    size_t i;
    int ret;

    if (s->free_count == 0 && s->next_id >= s->accel->max_slots) {
        accel_slots_fail(s, -ENOSPC, "adding a memory slot");
        return;
    }
    slot.id = s->free_count ? s->free_ids[--s->free_count] : s->next_id++;
    TRACE(&s->accel->trace, topology_slot_create, "slot %llu gpa %llx size %llx hva %llx", slot.id, slot.gpa,
          slot.size, slot.hva);
    ret = accel_slot_tell(s, &slot, slot.size);
    if (ret == 0) {
        pthread_mutex_lock(&s->info_lock);
        ret = accel_slot_list_push(&s->live, &slot);
        if (ret == 0) {
            s->live.count--;
            i = accel_slots_find(s, slot.gpa);
            memmove(&s->live.v[i + 1], &s->live.v[i], (s->live.count - i) * sizeof(slot));
            s->live.v[i] = slot;
            s->live.count++;
        }
        pthread_mutex_unlock(&s->info_lock);
    }
    if (ret < 0) {
        s->free_ids[s->free_count++] = slot.id;
        accel_slots_fail(s, ret, "adding a memory slot");
    }
}

static int compare_gpa(const void *a, const void *b)
{
    const struct accel_slot *x = a, *y = b;

    return x->gpa < y->gpa ? -1 : x->gpa > y->gpa;
}

static void list_sort(struct accel_slot_list *l)
{
    if (l->count > 1) {
        qsort(l->v, l->count, sizeof(l->v[0]), compare_gpa);
    }
}

/* Both lists sorted: does any range of one meet any of the other? */
static bool lists_overlap(const struct accel_slot_list *a, const struct accel_slot_list *b)
{
    size_t i = 0, j = 0;

    while (i < a->count && j < b->count) {
        const struct accel_slot *x = &a->v[i], *y = &b->v[j];

        if (x->gpa + (x->size - 1) < y->gpa) {
            i++;
        } else if (y->gpa + (y->size - 1) < x->gpa) {
            j++;
        } else {
            return true;
        }
    }
    return false;
}

/*
 * Tell the engine what was queued since the last commit.
 * Lock: topology; vCPUs are out of KVM_RUN meanwhile when ranges overlap. Errors: accel_slots_fail(). Source: own.
 */
void accel_slots_commit(struct accel_slots *s)
{
    bool overlap;
    size_t i;

    if (s->adding.count == 0 && s->going.count == 0) {
        return;
    }
    list_sort(&s->adding);
    list_sort(&s->going);
    overlap = lists_overlap(&s->adding, &s->going);
    TRACE(&s->accel->trace, topology_slots_commit, "del %llu add %llu overlap %llu", s->going.count,
          s->adding.count, overlap);
    if (overlap) {
        accel_gate_close(s->accel);
    }
    for (i = 0; i < s->going.count; i++) {
        delete_slot(s, &s->going.v[i]);
    }
    for (i = 0; i < s->adding.count; i++) {
        add_slot(s, &s->adding.v[i]);
    }
    if (overlap) {
        accel_gate_open(s->accel);
    }
    s->adding.count = s->going.count = 0;
}

/*
 * The live slots, in order of guest-physical address.
 * out: room for max. Returns: how many there are filled. Lock: takes info_lock. Source: own.
 */
unsigned accel_slots(struct accel *a, struct accel_slot_info *out, unsigned max)
{
    struct accel_slots *s = a->slots;
    unsigned i, n;

    if (!s) {
        return 0;
    }
    pthread_mutex_lock(&s->info_lock);
    n = s->live.count < max ? s->live.count : max;
    for (i = 0; i < n; i++) {
        const struct accel_slot *slot = &s->live.v[i];

        out[i] = (struct accel_slot_info){slot->id, slot->flags, slot->gpa, slot->size, slot->hva};
    }
    pthread_mutex_unlock(&s->info_lock);
    return n;
}
