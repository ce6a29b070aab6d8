/*
 * The hypervisor's own reads and writes of guest memory, by guest-physical address: through slots
 * straight to the bytes, which need no second stage.
 *
 * Lock: the caller is in a read section or holds slots_lock. The bytes are shared with running guests:
 * word-wise where aligned, so that a guest never sees a torn aligned value.
 */
#include <errno.h>
#include <string.h>

#include "base/guard.h"
#include "softkvm/user.h"
#include "softkvm/vcpu.h"

/* The bytes behind addr and how many of len lie in the same slot. */
static char *locate(struct kvm_vm *vm, gpa_t addr, size_t len, struct kvm_memslot **slot, size_t *n)
{
    struct kvm_memslot *s = kvm_slots_find(kvm_slots_active(&vm->slots), gpa_to_gfn(addr));
    uint64_t left;

    if (!s || (s->flags & KVM_SLOT_INVALID)) {
        return NULL;
    }
    left = ((s->base_gfn + s->npages) << PAGE_SHIFT) - addr.v;
    *slot = s;
    *n = left < len ? left : len;
    return (char *)hva_to_ptr(hva(s->hva + (addr.v - (s->base_gfn << PAGE_SHIFT))));
}

static int copy_out(char *dst, const char *src, size_t n)
{
    if (n == 8 && !((uintptr_t)src & 7)) {
        uint64_t v = 0;

        if (!base_guard_is_on()) {
            v = __atomic_load_n((const uint64_t *)(const void *)src, __ATOMIC_RELAXED);
        } else if (!base_guard_load64(src, &v)) {
            return -EFAULT;
        }
        memcpy(dst, &v, 8);
        return 0;
    }
    return kvm_user_read(dst, src, n);
}

static int copy_in(char *dst, const char *src, size_t n)
{
    /* Small aligned words: clocks and flags that the guest polls. */
    if (n == 4 && !((uintptr_t)dst & 3)) {
        uint32_t v;

        memcpy(&v, src, 4);
        if (base_guard_is_on()) {
            return base_guard_store32(dst, v) ? 0 : -EFAULT;
        }
        __atomic_store_n((uint32_t *)(void *)dst, v, __ATOMIC_RELEASE);
        return 0;
    }
    if (n == 8 && !((uintptr_t)dst & 7)) {
        uint64_t v;

        memcpy(&v, src, 8);
        if (base_guard_is_on()) {
            return base_guard_store64(dst, v) ? 0 : -EFAULT;
        }
        __atomic_store_n((uint64_t *)(void *)dst, v, __ATOMIC_RELEASE);
        return 0;
    }
    return kvm_user_write(dst, src, n);
}

/*
 * Copy len bytes from guest memory at addr. 0, or -EFAULT where there is no slot, or no host memory
 * behind it.
 */
int kvm_guest_read(struct kvm_vm *vm, gpa_t addr, void *buf, size_t len)
{
    char *dst = buf;

    while (len) {
        struct kvm_memslot *slot;
        size_t n;
        char *src = locate(vm, addr, len, &slot, &n);

        if (!src || copy_out(dst, src, n) < 0) {
            return -EFAULT;
        }
        addr.v += n;
        dst += n;
        len -= n;
    }
    return 0;
}

/*
 * Copy len bytes to guest memory at addr; the pages are marked in dirty logs. 0, or -EFAULT (no slot,
 * read-only, no host memory), with what lies before already written.
 */
int kvm_guest_write(struct kvm_vcpu *v, gpa_t addr, const void *buf, size_t len)
{
    const char *src = buf;

    while (len) {
        struct kvm_memslot *slot;
        size_t n;
        char *dst = locate(v->vm, addr, len, &slot, &n);

        if (!dst || (slot->flags & KVM_MEM_READONLY) || copy_in(dst, src, n) < 0) {
            return -EFAULT;
        }
        for (uint64_t a = addr.v & PAGE_MASK; a < addr.v + n; a += PAGE_SIZE) {
            kvm_slot_mark_dirty(v, slot, gpa_to_gfn(gpa(a)));
        }
        addr.v += n;
        src += n;
        len -= n;
    }
    return 0;
}
