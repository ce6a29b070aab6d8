/*
 * The hypervisor's own reads and writes of guest memory, by guest-physical address: through slots
 * straight to the bytes, which need no second stage.
 *
 * Lock: the caller is in a read section or holds slots_lock; the mmap lock is taken inside when the process announces
 * its accesses. The bytes are shared with running guests:
 * word-wise where aligned, so that a guest never sees a torn aligned value.
 */
#include <errno.h>
#include <string.h>

#include "base/guard.h"
#include "softkvm/attributes.h"
#include "softkvm/gmem.h"
#include "softkvm/user.h"
#include "softkvm/vcpu.h"

/* On whose behalf: the hypervisor reaches shared pages alone. */
enum who { HYPERVISOR, GUEST };

/* The bytes behind addr and how many of len lie in the same slot, or the same half of it. */
static char *locate(struct kvm_vm *vm, gpa_t addr, size_t len, enum who who, struct kvm_memslot **slot,
                    size_t *n)
{
    gfn_t f = kvm_slot_frame(vm, gpa_to_gfn(addr));
    struct kvm_memslot *s = kvm_slots_find(kvm_slots_active(&vm->slots), f);
    const struct kvm_memslot *half = s;
    uint64_t offset, left;

    if (!s || (s->flags & KVM_SLOT_INVALID)) {
        return NULL;
    }
    offset = ((f.v - s->base_gfn) << PAGE_SHIFT) + page_offset(addr.v);
    left = (s->npages << PAGE_SHIFT) - offset;
    if (unlikely(vm->attrs)) {
        if (who == HYPERVISOR && kvm_page_is_private(vm, f)) {
            return NULL;
        }
        left = PAGE_SIZE - page_offset(addr.v);
    }
    if (unlikely(s->gmem)) {
        half = kvm_slot_half(vm, s, gpa_to_gfn(addr));
        if (half != s && !kvm_gmem_is_open(s->gmem)) {
            return NULL;
        }
    }
    *slot = s;
    *n = left < len ? left : len;
    return (char *)hva_to_ptr(hva(half->hva + offset));
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

/* Of the bytes at `p` in a process that announces its accesses: ours are accesses too. 0 or -errno. */
static int bytes_begin(struct softkvm *s, const char *p, size_t n)
{
    return s->options.announced
               ? host_mm_access_begin(s->mm, hva((uintptr_t)p), hva((uintptr_t)p + n))
               : 0;
}

static void bytes_end(struct softkvm *s, const char *p, size_t n)
{
    if (s->options.announced) {
        host_mm_access_end(s->mm, hva((uintptr_t)p), hva((uintptr_t)p + n));
    }
}

static int bytes_out(struct softkvm *s, char *dst, const char *src, size_t n)
{
    int r = bytes_begin(s, src, n);

    if (r == 0) {
        r = copy_out(dst, src, n);
        bytes_end(s, src, n);
    }
    return r;
}

static int bytes_in(struct softkvm *s, char *dst, const char *src, size_t n)
{
    int r = bytes_begin(s, dst, n);

    if (r == 0) {
        r = copy_in(dst, src, n);
        bytes_end(s, dst, n);
    }
    return r;
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
        char *src = locate(vm, addr, len, HYPERVISOR, &slot, &n);

        if (!src || bytes_out(vm->s, dst, src, n) < 0) {
            return -EFAULT;
        }
        addr.v += n;
        dst += n;
        len -= n;
    }
    return 0;
}

static int store(struct kvm_vcpu *v, gpa_t addr, const void *buf, size_t len, enum who who)
{
    const char *src = buf;

    while (len) {
        struct kvm_memslot *slot;
        size_t n;
        char *dst = locate(v->vm, addr, len, who, &slot, &n);

        if (!dst || (slot->flags & KVM_MEM_READONLY) || bytes_in(v->vm->s, dst, src, n) < 0) {
            return -EFAULT;
        }
        for (uint64_t a = addr.v & PAGE_MASK; a < addr.v + n; a += PAGE_SIZE) {
            kvm_slot_mark_dirty(v, slot, kvm_slot_frame(v->vm, gpa_to_gfn(gpa(a))));
        }
        addr.v += n;
        src += n;
        len -= n;
    }
    return 0;
}

/*
 * Copy len bytes to guest memory at addr; the pages are marked in dirty logs. 0, or -EFAULT (no slot,
 * read-only, private, no host memory), with what lies before already written.
 */
int kvm_guest_write(struct kvm_vcpu *v, gpa_t addr, const void *buf, size_t len)
{
    return store(v, addr, buf, len, HYPERVISOR);
}

/* The same as the guest would do it. addr: of the second stage, with the bit for shared memory if any. */
int kvm_guest_store(struct kvm_vcpu *v, gpa_t addr, const void *buf, size_t len)
{
    return store(v, addr, buf, len, GUEST);
}
