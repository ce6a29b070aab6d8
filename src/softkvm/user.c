#include "softkvm/user.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/guard.h"

/* Never a mapping of a program's: answered without asking. */
#define LOWEST_ADDRESS 4096

static bool is_plausible(const void *p, size_t len)
{
    uintptr_t a = (uintptr_t)p;

    return a >= LOWEST_ADDRESS && a + len >= a && a + len <= UINT64_C(0x7ffffffff000);
}

/* Without guarded accesses (base/guard.h) the kernel copies. Big copies (bitmaps) go faster in user space, once the kernel has said that every page is there. */
#define BIG_COPY 4096

static bool is_populated(const void *p, size_t len, int advice)
{
    uintptr_t start = (uintptr_t)p & ~(uintptr_t)4095, end = (uintptr_t)p + len;

    return len >= BIG_COPY && madvise((void *)start, end - start, advice) == 0;
}

int kvm_user_read(void *dst, const void *user_src, size_t len)
{
    struct iovec local = {dst, len}, remote = {(void *)(uintptr_t)user_src, len};
    ssize_t n;

    if (!len) {
        return 0;
    }
    if (!is_plausible(user_src, len)) {
        return -EFAULT;
    }
    if (base_guard_is_on()) {
        return base_guard_copy(dst, user_src, len) ? 0 : -EFAULT;
    }
    if (is_populated(user_src, len, MADV_POPULATE_READ)) {
        memcpy(dst, user_src, len);
        return 0;
    }
    n = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
    if (n < 0 && (errno == EPERM || errno == ENOSYS)) {
        memcpy(dst, user_src, len);
        return 0;
    }
    return n == (ssize_t)len ? 0 : -EFAULT;
}

int kvm_user_write(void *user_dst, const void *src, size_t len)
{
    struct iovec local = {(void *)(uintptr_t)src, len}, remote = {user_dst, len};
    ssize_t n;

    if (!len) {
        return 0;
    }
    if (!is_plausible(user_dst, len)) {
        return -EFAULT;
    }
    if (base_guard_is_on()) {
        return base_guard_copy(user_dst, src, len) ? 0 : -EFAULT;
    }
    if (is_populated(user_dst, len, MADV_POPULATE_WRITE)) {
        memcpy(user_dst, src, len);
        return 0;
    }
    n = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
    if (n < 0 && (errno == EPERM || errno == ENOSYS)) {
        memcpy(user_dst, src, len);
        return 0;
    }
    return n == (ssize_t)len ? 0 : -EFAULT;
}

int kvm_user_get_entry(const void *p, unsigned size, uint64_t *v)
{
    uint32_t v32 = 0;

    if (!base_guard_is_on()) {
        *v = size == 8 ? __atomic_load_n((const uint64_t *)p, __ATOMIC_RELAXED)
                       : __atomic_load_n((const uint32_t *)p, __ATOMIC_RELAXED);
        return 0;
    }
    if (size == 8) {
        return base_guard_load64(p, v) ? 0 : -EFAULT;
    }
    if (!base_guard_load32(p, &v32)) {
        return -EFAULT;
    }
    *v = v32;
    return 0;
}

int kvm_user_exchange_entry(void *p, unsigned size, uint64_t old, uint64_t new_value)
{
    uint32_t old32 = (uint32_t)old;
    bool done = false;

    if (base_guard_is_on()) {
        return base_guard_exchange(p, size, old, new_value, &done) ? done : -EFAULT;
    }
    return size == 8 ? __atomic_compare_exchange_n((uint64_t *)p, &old, new_value, false, __ATOMIC_SEQ_CST,
                                                   __ATOMIC_RELAXED)
                     : __atomic_compare_exchange_n((uint32_t *)p, &old32, (uint32_t)new_value, false,
                                                   __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

int kvm_user_clear(void *user_dst, size_t len)
{
    static const char zeros[BIG_COPY];
    char *at = user_dst;
    int r = 0;

    if (is_plausible(user_dst, len) && is_populated(user_dst, len, MADV_POPULATE_WRITE)) {
        memset(user_dst, 0, len);
        return 0;
    }
    while (len && r == 0) {
        size_t n = len < sizeof(zeros) ? len : sizeof(zeros);

        r = kvm_user_write(at, zeros, n);
        at += n;
        len -= n;
    }
    return r;
}
