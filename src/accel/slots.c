/*
 * The commit of memory slots. Additions and deletions of a topology change are queued while the flat views
 * are compared, and told to the engine together: deletions first. Where an old and a new slot cover one
 * address every vCPU is kept out of KVM_RUN for the switch, so that none meets the hole between; and so it
 * is where a slot goes whose writes are logged, so that none is lost between reading its log and its end.
 *
 * Place in the flow: topology change, last step on this side of the ABI.
 */
#include "accel/slots.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "softkvm/kvm_abi.h"

/*
 * Remember the first update that failed and end the run: the guest's memory is no longer what the tree
 * says. fmt: what was being done. Lock: topology or s->lock. Source: own.
 */
void accel_slots_fail(struct accel_slots *s, int code, const char *fmt, ...)
{
    va_list args;
    size_t n;

    if (s->error || s->closing) {
        return;
    }
    s->error = code;
    va_start(args, fmt);
    vsnprintf(s->error_text, sizeof(s->error_text), fmt, args);
    va_end(args);
    n = strlen(s->error_text);
    snprintf(s->error_text + n, sizeof(s->error_text) - n, ": %s", strerror(-code));
    accel_tell_stop(s->accel, ACCEL_STOP_INTERNAL_ERROR, s->error_text);
}

/* The same for what was refused for a slot. Lock: as above. Source: own. */
void accel_slot_fail(struct accel_slots *s, int code, const struct accel_slot *slot, const char *what)
{
    accel_slots_fail(s, code, "%s of memory slot %u (address 0x%llx, size 0x%llx, flags 0x%x, memory at 0x%llx)",
                     what, slot->id, (unsigned long long)slot->d.gpa, (unsigned long long)slot->d.size,
                     slot->d.flags, (unsigned long long)slot->d.hva);
}

/*
 * What slot a flat range becomes: RAM always; a ROM or a ROM device while reads are direct, if the engine
 * has read-only slots. Its start is rounded up and its end down to whole host pages.
 * Returns: false when nothing is left, or such a range gets no slot. Lock: topology. Source: KVM slot rules.
 */
bool accel_slot_of_section(const struct accel_slots *s, const struct strata_section *section,
                           struct accel_slot_desc *out)
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
    out->flags = (section->log_mask ? (uint32_t)KVM_MEM_LOG_DIRTY_PAGES : 0) |
                 (readonly ? (uint32_t)KVM_MEM_READONLY : 0);
    out->ram = strata_region_ram(section->region);
    out->ram_offset = section->offset + skip;
    if (s->accel->confidential && out->ram && strata_ram_flags(out->ram) & STRATA_RAM_GUEST_MEMFD) {
        out->flags |= KVM_MEM_GUEST_MEMFD;
    }
    return true;
}

/*
 * Cut the first piece, of at most the largest slot's size, off *rest.
 * Returns: false when *rest was empty. Lock: none. Source: own; QEMU's kvm_max_slot_size.
 */
bool accel_slot_piece(const struct accel_slots *s, struct accel_slot_desc *rest, struct accel_slot_desc *piece)
{
    if (!rest->size) {
        return false;
    }
    *piece = *rest;
    if (piece->size > s->accel->max_slot_size) {
        piece->size = s->accel->max_slot_size;
    }
    rest->gpa += piece->size;
    rest->hva += piece->size;
    rest->ram_offset += piece->size;
    rest->size -= piece->size;
    return true;
}

/* Lock: none. Source: own. */
uint64_t accel_slot_pieces(const struct accel_slots *s, const struct accel_slot_desc *d)
{
    return d->size ? (d->size - 1) / s->accel->max_slot_size + 1 : 0;
}

/* Make room for `more` entries. Returns: 0 or -ENOMEM. Lock: the list's owner's. Source: own. */
int accel_slot_list_reserve(struct accel *a, struct accel_slot_list *l, size_t more)
{
    size_t room = l->room ? l->room : 16;
    struct accel_slot_desc *v;

    if (l->count + more <= l->room) {
        return 0;
    }
    while (room < l->count + more) {
        room *= 2;
    }
    v = accel_calloc(a, room, sizeof(*v));
    if (!v) {
        return -ENOMEM;
    }
    if (l->count) {
        memcpy(v, l->v, l->count * sizeof(*v));
    }
    free(l->v);
    l->v = v;
    l->room = room;
    return 0;
}

/* Append. Returns: 0 or -ENOMEM, never after reserve(). Lock: the list's owner's. Source: own. */
int accel_slot_list_push(struct accel *a, struct accel_slot_list *l, const struct accel_slot_desc *d)
{
    int ret = accel_slot_list_reserve(a, l, 1);

    if (ret == 0) {
        l->v[l->count++] = *d;
    }
    return ret;
}

/* KVM_SET_USER_MEMORY_REGION, or its successor for slots with a private half. size: bytes, 0 deletes.
 * Returns: 0 or -errno. Lock: s->lock. Source: KVM's API document. */
int accel_slot_tell(struct accel_slots *s, const struct accel_slot *slot, uint64_t size)
{
    struct accel *a = s->accel;
    struct kvm_userspace_memory_region2 region = {
        .slot = slot->id,
        .flags = slot->d.flags,
        .guest_phys_addr = slot->d.gpa,
        .memory_size = size,
        .userspace_addr = slot->d.hva,
        .guest_memfd_offset = slot->d.ram_offset,
    };
    struct kvm_userspace_memory_region plain = {
        .slot = slot->id,
        .flags = slot->d.flags,
        .guest_phys_addr = slot->d.gpa,
        .memory_size = size,
        .userspace_addr = slot->d.hva,
    };
    int fd;

    if (!(slot->d.flags & KVM_MEM_GUEST_MEMFD)) {
        return accel_ioctl_ptr(a->ep, a->vm_fd, KVM_SET_USER_MEMORY_REGION, &plain);
    }
    fd = accel_private_fd(s, slot->d.ram);
    if (fd < 0) {
        return fd;
    }
    region.guest_memfd = (uint32_t)fd;
    return accel_ioctl_ptr(a->ep, a->vm_fd, KVM_SET_USER_MEMORY_REGION2, &region);
}

static void delete_slot(struct accel_slots *s, const struct accel_slot_desc *gone)
{
    struct accel_slot *slot = accel_slot_table_find(&s->table, gone->gpa, gone->size);
    int ret;

    if (!slot) {
        return; /* it had been refused when it was added */
    }
    if (slot->d.flags & KVM_MEM_LOG_DIRTY_PAGES) {
        accel_dirty_sync_slot(s, slot);
    }
    TRACE(&s->accel->trace, topology_slot_delete, "slot %llu gpa %llx size %llx", slot->id, slot->d.gpa,
          slot->d.size);
    ret = accel_slot_tell(s, slot, 0);
    if (ret < 0) {
        accel_slot_fail(s, ret, slot, "deletion");
        return;
    }
    accel_slot_table_remove(&s->table, slot);
}

static void add_slot(struct accel_slots *s, const struct accel_slot_desc *wanted)
{
    int ret = accel_slot_table_reserve(&s->table, 1);
    struct accel_slot *slot = ret == 0 ? accel_slot_table_insert(&s->table, wanted) : NULL;

    if (!slot) {
        accel_slots_fail(s, ret, "no memory slot for address 0x%llx, size 0x%llx, flags 0x%x (%u are in use)",
                         (unsigned long long)wanted->gpa, (unsigned long long)wanted->size, wanted->flags,
                         s->table.live);
        return;
    }
    TRACE(&s->accel->trace, topology_slot_create, "slot %llu gpa %llx size %llx hva %llx", slot->id, slot->d.gpa,
          slot->d.size, slot->d.hva);
    ret = accel_slot_tell(s, slot, slot->d.size);
    if (ret == 0 && slot->d.flags & KVM_MEM_GUEST_MEMFD) {
        ret = accel_private_begin(s, slot);
    }
    if (ret < 0) {
        accel_slot_fail(s, ret, slot, "creation");
        accel_slot_table_remove(&s->table, slot);
    }
}

static int compare_gpa(const void *a, const void *b)
{
    const struct accel_slot_desc *x = a, *y = b;

    return x->gpa < y->gpa ? -1 : x->gpa > y->gpa;
}

static void list_sort(struct accel_slot_list *l)
{
    if (l->count > 1) {
        qsort(l->v, l->count, sizeof(l->v[0]), compare_gpa);
    }
}

/* Is the live slot of x's range what y asks for? */
static bool is_live(struct accel_slots *s, const struct accel_slot_desc *x, const struct accel_slot_desc *y)
{
    struct accel_slot *slot = accel_slot_table_find(&s->table, x->gpa, x->size);

    return slot && y->gpa == x->gpa && y->size == x->size && slot->d.hva == y->hva && slot->d.ram == y->ram &&
           slot->d.flags == y->flags;
}

/* What goes and comes back as it was (another attribute of the region has changed) stays. Both lists
 * sorted; keeps their order. Lock: s->lock. */
static void drop_unchanged(struct accel_slots *s)
{
    struct accel_slot_list *g = &s->going, *a = &s->adding;
    size_t i = 0, j = 0, ni = 0, nj = 0;

    while (i < g->count || j < a->count) {
        struct accel_slot_desc *x = i < g->count ? &g->v[i] : NULL, *y = j < a->count ? &a->v[j] : NULL;

        if (x && y && is_live(s, x, y)) {
            i++, j++;
        } else if (!y || (x && x->gpa <= y->gpa)) {
            g->v[ni++] = g->v[i++];
        } else {
            a->v[nj++] = a->v[j++];
        }
    }
    g->count = ni;
    a->count = nj;
}

/* Both lists sorted: does any range of one meet any of the other? */
static bool lists_overlap(const struct accel_slot_list *a, const struct accel_slot_list *b)
{
    size_t i = 0, j = 0;

    while (i < a->count && j < b->count) {
        const struct accel_slot_desc *x = &a->v[i], *y = &b->v[j];

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

static bool any_logs(struct accel_slots *s, const struct accel_slot_list *l)
{
    size_t i;

    for (i = 0; i < l->count; i++) {
        struct accel_slot *slot = accel_slot_table_find(&s->table, l->v[i].gpa, l->v[i].size);

        if (slot && slot->d.flags & KVM_MEM_LOG_DIRTY_PAGES) {
            return true;
        }
    }
    return false;
}

static void apply(struct accel_slots *s, bool logged)
{
    size_t i;

    if (logged && s->accel->ring_entries) {
        accel_ring_collect_locked(s);
    }
    for (i = 0; i < s->going.count; i++) {
        delete_slot(s, &s->going.v[i]);
    }
    for (i = 0; i < s->adding.count; i++) {
        add_slot(s, &s->adding.v[i]);
    }
}

/*
 * Tell the engine what was queued since the last commit.
 * Lock: topology; takes s->lock; vCPUs are out of KVM_RUN meanwhile when ranges overlap or a logged slot
 * goes. Errors: accel_slots_fail(). Source: own; the order is QEMU's.
 */
void accel_slots_commit(struct accel_slots *s)
{
    bool overlap, logged, hold;

    list_sort(&s->adding);
    list_sort(&s->going);
    pthread_mutex_lock(&s->lock);
    drop_unchanged(s);
    logged = any_logs(s, &s->going);
    pthread_mutex_unlock(&s->lock);
    if (s->adding.count == 0 && s->going.count == 0) {
        return;
    }
    overlap = lists_overlap(&s->adding, &s->going);
    hold = overlap || logged;
    TRACE(&s->accel->trace, topology_slots_commit, "del %llu add %llu overlap %llu", s->going.count,
          s->adding.count, overlap);
    if (!overlap || logged || !accel_slots_apply_together(s)) {
        if (hold) {
            accel_gate_close(s->accel);
        }
        pthread_mutex_lock(&s->lock);
        apply(s, logged);
        pthread_mutex_unlock(&s->lock);
        if (hold) {
            accel_gate_open(s->accel);
        }
    }
    s->adding.count = s->going.count = 0;
}

/*
 * The live slots, in order of guest-physical address.
 * out: room for max. Returns: how many there are filled. Lock: takes the slots' lock. Source: own.
 */
unsigned accel_slots(struct accel *a, struct accel_slot_info *out, unsigned max)
{
    struct accel_slots *s = a->slots;
    struct accel_slot *slot;
    unsigned n = 0;

    if (!s) {
        return 0;
    }
    pthread_mutex_lock(&s->lock);
    for (slot = accel_slot_table_from(&s->table, 0); slot && n < max;
         slot = accel_slot_table_from(&s->table, slot->d.gpa + slot->d.size)) {
        out[n++] = (struct accel_slot_info){slot->id, slot->d.flags, slot->d.gpa, slot->d.size, slot->d.hva};
    }
    pthread_mutex_unlock(&s->lock);
    return n;
}

/* How many more slots the engine takes. Lock: takes the slots' lock. Source: QEMU kvm_get_free_memslots(). */
unsigned accel_slots_free_count(struct accel *a)
{
    struct accel_slots *s = a->slots;
    unsigned n = a->max_slots;

    if (s) {
        pthread_mutex_lock(&s->lock);
        n = accel_slot_table_free_count(&s->table);
        pthread_mutex_unlock(&s->lock);
    }
    return n;
}
