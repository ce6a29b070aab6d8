/*
 * RAM with a private half: beside the mapped, shared memory of a block the engine keeps memory that nobody
 * outside the guest can reach (a guest_memfd), and an attribute of each page says which of the two the guest
 * sees. Pages of such a block begin private. A guest asks for a conversion by hypercall, or by touching a
 * page the other way (a memory-fault exit); either way the attribute changes first, then the half that is
 * no longer seen is given back to the host.
 *
 * Place in the flow: slots.c asks for the descriptor when it makes a slot; exits.c hands conversions here.
 * Locks: s->lock guards the list of descriptors. A conversion runs under the device lock, so the topology
 * stands still, and takes s->lock only to look the pieces up.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "softkvm/kvm_abi.h"
#include "accel/slots.h"
#include "strata/discard.h"

/* One block's private half; owner: accel_slots. */
struct accel_private {
    struct strata_ram *ram;
    int fd; /* of the endpoint */
    struct accel_private *next;
};

static struct accel_private **find(struct accel_slots *s, const struct strata_ram *ram)
{
    struct accel_private **at = &s->privates;

    while (*at && (*at)->ram != ram) {
        at = &(*at)->next;
    }
    return at;
}

/*
 * The descriptor of a block's private half.
 * Returns: it, borrowed as long as the block lives; -ENOMEM; what KVM_CREATE_GUEST_MEMFD says.
 * Lock: s->lock held. Source: KVM's API document.
 */
int accel_private_fd(struct accel_slots *s, struct strata_ram *ram)
{
    struct kvm_create_guest_memfd args = {.size = strata_ram_max_size(ram)};
    struct accel_private **at = find(s, ram), *p;
    int fd;

    if (*at) {
        return (*at)->fd;
    }
    p = accel_calloc(s->accel, 1, sizeof(*p));
    if (!p) {
        return -ENOMEM;
    }
    fd = accel_ioctl_ptr(s->accel->ep, s->accel->vm_fd, KVM_CREATE_GUEST_MEMFD, &args);
    if (fd < 0) {
        free(p);
        return fd;
    }
    p->ram = ram;
    p->fd = fd;
    *at = p;
    return fd;
}

/* A block goes. Lock: topology; takes s->lock. Source: own. */
void accel_private_removed(struct accel_slots *s, struct strata_ram *ram)
{
    struct accel_private **at, *p;

    pthread_mutex_lock(&s->lock);
    at = find(s, ram);
    p = *at;
    if (p) {
        *at = p->next;
    }
    pthread_mutex_unlock(&s->lock);
    if (p) {
        s->accel->ep->ops->close(s->accel->ep, p->fd);
        free(p);
    }
}

/* All of them; nothing runs. Lock: none. Source: own. */
void accel_private_fini(struct accel_slots *s)
{
    while (s->privates) {
        accel_private_removed(s, s->privates->ram);
    }
}

static int set_attributes(struct accel *a, uint64_t gpa, uint64_t size, bool is_private)
{
    struct kvm_memory_attributes args = {
        .address = gpa, .size = size, .attributes = is_private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0};

    return accel_ioctl_ptr(a->ep, a->vm_fd, KVM_SET_MEMORY_ATTRIBUTES, &args);
}

/* Returns: 0 or -errno of the ioctl. Lock: s->lock. Source: QEMU's rule that such memory starts private. */
int accel_private_begin(struct accel_slots *s, const struct accel_slot *slot)
{
    return set_attributes(s->accel, slot->d.gpa, slot->d.size, true);
}

static int punch(struct accel_endpoint *ep, int fd, uint64_t offset, uint64_t size)
{
    if (!ep->ops->fallocate) {
        return -EOPNOTSUPP;
    }
    return ep->ops->fallocate(ep, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size);
}

/* Part of a block was given back: its private half goes with it. Lock: topology; takes s->lock. Source: own. */
void accel_private_discarded(struct accel_slots *s, struct strata_ram *ram, uint64_t start, uint64_t len)
{
    struct accel_private *p;
    int ret = 0;

    pthread_mutex_lock(&s->lock);
    p = *find(s, ram);
    if (p) {
        ret = punch(s->accel->ep, p->fd, start, len);
    }
    pthread_mutex_unlock(&s->lock);
    if (ret < 0) {
        accel_slots_fail(s, ret, "giving back private memory at offset 0x%llx, size 0x%llx",
                         (unsigned long long)start, (unsigned long long)len);
    }
}

/* The slot that holds gpa and has a private half; NULL: none. */
static struct accel_slot *private_slot(struct accel_slots *s, uint64_t gpa)
{
    struct accel_slot *slot = accel_slot_table_from(&s->table, gpa);

    return slot && slot->d.gpa <= gpa && slot->d.flags & KVM_MEM_GUEST_MEMFD ? slot : NULL;
}

/* Does every byte of [gpa, gpa + size) lie in slots with a private half? */
static bool all_private_slots(struct accel_slots *s, uint64_t gpa, uint64_t size)
{
    uint64_t end = gpa + size;

    while (gpa < end) {
        struct accel_slot *slot = private_slot(s, gpa);

        if (!slot) {
            return false;
        }
        gpa = slot->d.gpa + slot->d.size;
    }
    return true;
}

/* Give the mapped half of a piece back to the host; the private one stays. */
static int drop_shared(struct accel_slots *s, const struct accel_slot_desc *piece)
{
    struct accel_endpoint *ep = s->accel->ep;
    bool shared = strata_ram_flags(piece->ram) & STRATA_RAM_SHARED || strata_ram_fd(piece->ram) >= 0;
    void *start = (void *)(uintptr_t)piece->hva;

    if (strata_ram_page_size(piece->ram) != PAGE_SIZE) {
        return 0; /* huge pages go back whole or not at all */
    }
    if (madvise(start, piece->size, shared ? MADV_REMOVE : MADV_DONTNEED) < 0) {
        return -errno;
    }
    if (ep->ops->memory_discarded) {
        ep->ops->memory_discarded(ep, start, piece->size);
    }
    return 0;
}

/* Whoever maps the shared half for a device hears that it comes or goes. */
static int tell_managers(const struct accel_slot_desc *piece, bool to_private)
{
    struct strata_region *region = strata_ram_region(piece->ram);
    struct strata_discard_manager *m = region ? strata_region_discard_manager(region) : NULL;

    if (!m) {
        return 0;
    }
    return to_private ? strata_discard_drop(m, piece->ram_offset, piece->size)
                      : strata_discard_populate(m, piece->ram_offset, piece->size);
}

/* Give back the half of one piece that is seen no more. */
static int drop_half(struct accel_slots *s, const struct accel_slot_desc *piece, bool to_private)
{
    struct accel_endpoint *ep = s->accel->ep;
    int fd, ret = tell_managers(piece, to_private);

    if (ret < 0) {
        return ret;
    }
    if (to_private) {
        return drop_shared(s, piece);
    }
    pthread_mutex_lock(&s->lock);
    fd = accel_private_fd(s, piece->ram);
    ret = fd < 0 ? fd : punch(ep, fd, piece->ram_offset, piece->size);
    pthread_mutex_unlock(&s->lock);
    return ret;
}

static int drop_halves(struct accel_slots *s, uint64_t gpa, uint64_t size, bool to_private)
{
    uint64_t end = gpa + size;
    int ret = 0;

    while (gpa < end && ret == 0) {
        struct accel_slot_desc piece;
        struct accel_slot *slot;

        pthread_mutex_lock(&s->lock);
        slot = private_slot(s, gpa);
        if (slot) {
            piece = slot->d;
        }
        pthread_mutex_unlock(&s->lock);
        if (!slot) {
            return -EINVAL;
        }
        piece.ram_offset += gpa - piece.gpa;
        piece.hva += gpa - piece.gpa;
        piece.size -= gpa - piece.gpa;
        piece.size = piece.size < end - gpa ? piece.size : end - gpa;
        ret = drop_half(s, &piece, to_private);
        gpa += piece.size;
    }
    return ret;
}

/*
 * Make [gpa, gpa + size) private or shared.
 * gpa, size: bytes, whole pages, size > 0. to_private: which way.
 * Returns: 0; -EINVAL not whole pages, or not all of it is memory with a private half (what is no memory at
 * all is shared already: then 0 for a conversion to shared); what the engine says. On error the attributes are
 * as before, or what was given back reads as zero.
 * Lock: the device lock held. Source: QEMU kvm_convert_memory(), by rule.
 */
int accel_private_convert(struct accel *a, uint64_t gpa, uint64_t size, bool to_private)
{
    struct accel_slots *s = a->slots;
    struct accel_slot *first;
    bool fits;
    int ret;

    if (!s || !size || (gpa | size) & ~PAGE_MASK || gpa + (size - 1) < gpa) {
        return -EINVAL;
    }
    pthread_mutex_lock(&s->lock);
    fits = all_private_slots(s, gpa, size);
    first = accel_slot_table_from(&s->table, gpa);
    ret = fits ? 0 : !to_private && (!first || first->d.gpa > gpa + (size - 1)) ? 1 : -EINVAL;
    if (ret == 0) {
        ret = set_attributes(a, gpa, size, to_private);
    }
    pthread_mutex_unlock(&s->lock);
    if (ret) {
        return ret > 0 ? 0 : ret;
    }
    TRACE(&a->trace, private_convert, "gpa %llx size %llx private %llu", gpa, size, to_private);
    return drop_halves(s, gpa, size, to_private);
}

/*
 * Have the second stage filled before the guest gets there.
 * gpa, size: bytes, whole pages. Returns: 0; -EOPNOTSUPP the engine cannot; -ENOENT no slot there; what it says.
 * Lock: vCPUs are stopped. Source: KVM_PRE_FAULT_MEMORY, which may do a part and be asked again.
 */
int accel_prefault(struct accel *a, uint64_t gpa, uint64_t size)
{
    struct kvm_pre_fault_memory args = {.gpa = gpa, .size = size};
    int ret = 0;

    if (!a->has_prefault) {
        return -EOPNOTSUPP;
    }
    while (args.size && ret >= 0) {
        ret = accel_ioctl_ptr(a->ep, a->vcpus[0].fd, KVM_PRE_FAULT_MEMORY, &args);
        if (ret == -EINTR || ret == -EAGAIN) {
            ret = 0;
        }
    }
    return ret < 0 ? ret : 0;
}
