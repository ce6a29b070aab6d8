/*
 * Slot transactions, ours alone: several changes of memory slots that become visible together, while vCPUs run.
 * A client asks KVM_CHECK_EXTENSION(SOFTKVM_CAP_SLOT_TRANSACTION): the value is the largest `count`, 0 where there
 * are none (as from the kernel's KVM).
 *
 * Each change names a slot (id and address space) and what it is to be: memory_size 0 deletes it; anything else makes
 * it so, whatever it was, userspace_addr, size and read-only flag included. A slot is named once. Only the outcome
 * is judged: slots may change places.
 *
 * No vCPU sees anything in between: an access to what changes waits. Dirty pages are carried over by userspace_addr: a
 * page that is dirty in the log of a slot that goes (or changes) is dirty in the log of every slot of the transaction
 * that maps it then. dirty_lost counts those that no such slot took over.
 *
 * Returns 0; or with nothing changed and `failed` = the index of the change (count: none in particular)
 *   EFAULT      a pointer
 *   E2BIG       count above the capability's value
 *   EINVAL      flags; what KVM_SET_USER_MEMORY_REGION2 would refuse; a slot named twice; deletion of none
 *   EEXIST      two slots of the outcome overlap
 *   EBADF       no guest_memfd; EINVAL also for a range of it that is bound, be it to a slot that goes
 *   EOPNOTSUPP  dirty rings are on, and a logging slot changes: its entries in the rings would change meaning
 *   ENOMEM
 */
#ifndef SOFTKVM_SLOTS_H
#define SOFTKVM_SLOTS_H

#include <softkvm/kvm_abi.h>

#define SOFTKVM_CAP_SLOT_TRANSACTION 0x53540001

struct softkvm_slot_transaction {
    __u32 size;       /* sizeof(struct softkvm_slot_transaction) */
    __u32 count;
    __u64 changes;    /* pointer to struct kvm_userspace_memory_region2[count] */
    __u32 flags;      /* 0 */
    __u32 failed;     /* out */
    __u64 generation; /* out: of the slots, at which all of it became visible */
    __u64 dirty_lost; /* out */
};

#define SOFTKVM_SLOT_TRANSACTION _IOWR(0xAF, 0x10, struct softkvm_slot_transaction)

#endif
