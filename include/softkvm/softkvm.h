/*
 * libsoftkvm: an in-process KVM behind the KVM ioctl ABI of <linux/kvm.h>.
 *
 *     struct softkvm *s = softkvm_new(NULL, err, sizeof(err));
 *     int kvm = softkvm_open_system(s);                        as open("/dev/kvm")
 *     int vm = softkvm_ioctl(s, kvm, KVM_CREATE_VM, 0);
 *     int vcpu = softkvm_ioctl(s, vm, KVM_CREATE_VCPU, 0);
 *     struct kvm_run *run = softkvm_mmap(s, vcpu, size, PROT_READ | PROT_WRITE, MAP_SHARED, 0, &e);
 *     softkvm_ioctl(s, vcpu, KVM_RUN, 0);                      the guest runs on the calling thread
 *
 * Descriptors belong to their instance: they are not file descriptors of the process, and numbers of
 * two instances mean nothing to each other. Event descriptors handed in (KVM_IRQFD, KVM_IOEVENTFD)
 * are real ones. Guest memory is the caller's own: userspace_addr of a slot is a pointer.
 *
 * Errors: calls return -errno as the kernel's would, never set errno, print, exit or abort.
 *
 * Threads: every function may be called from any thread. KVM_RUN of one vCPU is one thread at a time
 * (a second waits). Signals do not end a KVM_RUN by themselves, since a library cannot see them: a
 * program's handler stores 1 in run->immediate_exit and calls softkvm_kick(), and KVM_RUN returns
 * -EINTR with exit reason KVM_EXIT_INTR. softkvm_kick() is async-signal-safe.
 *
 * There is no isolation: a guest is interpreted inside this process (see SECURITY.md).
 */
#ifndef SOFTKVM_SOFTKVM_H
#define SOFTKVM_SOFTKVM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The library is built with everything hidden but what this header declares. */
#pragma GCC visibility push(default)

struct softkvm;

enum softkvm_mmu {
    SOFTKVM_MMU_EPT,    /* two-stage paging, Intel's format */
    SOFTKVM_MMU_NPT,    /* AMD's */
    SOFTKVM_MMU_SHADOW, /* tables derived from the guest's own */
};

/* Levels as syslog's: 3 error, 4 warning, 6 information, 7 debugging. */
typedef void softkvm_log_fn(void *opaque, int level, const char *line);

/* One step of a flow (docs/flows): its name, where in the sources it stands, and what happened. */
typedef void softkvm_trace_fn(void *opaque, const char *name, const char *file, const char *function,
                              const char *text);

/* How the two-stage kinds of MMU work (softkvm_options.stage2). */
#define SOFTKVM_STAGE2_NO_AD          0x01u /* EPT: without accessed and dirty bits; use is watched by faults */
#define SOFTKVM_STAGE2_PML            0x02u /* EPT: dirty logging by the processor's log of modified pages */
#define SOFTKVM_STAGE2_NO_EAGER_SPLIT 0x04u /* huge pages are split at the first write, not when logging begins */
#define SOFTKVM_STAGE2_NX_HUGE        0x08u /* huge pages are not executable: split when code in them runs */
#define SOFTKVM_STAGE2_NO_PREFETCH    0x10u /* map only what faults */

struct softkvm_options {
    size_t size;             /* sizeof(struct softkvm_options) of the caller's header */
    enum softkvm_mmu mmu;    /* modes that this build does not have: -EOPNOTSUPP */
    uint64_t host_memory;    /* simulated host memory, bytes; 0: 64 GiB */
    softkvm_log_fn *log;     /* may be null; called from any thread, must not call back */
    void *log_opaque;
    /* Asked before each allocation; true makes it fail. For tests; may be null. */
    bool (*fail_alloc)(void *opaque);
    void *fail_opaque;
    unsigned ept_levels;     /* 0 or 4: four; 5 */
    unsigned max_page_level; /* largest second-stage page: 1 = 4 KiB, 2 = 2 MiB, 3 = 1 GiB; 0 = 3 */
    softkvm_trace_fn *trace; /* may be null; from any thread, with locks held: must not call back */
    void *trace_opaque;
    /* Guest memory that the process unmaps, protects or truncates under a running vCPU makes KVM_RUN return
     * -EFAULT. For that the instance has handlers for SIGSEGV and SIGBUS; all other faults go to the handlers that
     * were there before. true: leave the process's signal handlers alone; then such a fault ends the process. */
    bool no_fault_guard;
    /* How much of the process's private memory may be out at a time, bytes: pages that no guest used lately are compressed, and
     * their memory is given back, when host_memory runs short. 0: none; then the guest that needs a page more
     * gets -ENOMEM from KVM_RUN. The process's own accesses to what is out are answered through userfaultfd. */
    uint64_t swap;
    unsigned stage2;         /* SOFTKVM_STAGE2_* */
    /* NX_HUGE: each period (milliseconds; 0: an hour divided by the ratio) the ratio-th part (0: 60) of what was
     * split is given back. */
    unsigned nx_recovery_period, nx_recovery_ratio;
    /* The process brackets its own accesses to guest memory by softkvm_memory_access_begin() and _end(): then swap needs
     * no userfaultfd, and pages of equal contents may be merged. */
    bool announced;
    unsigned background; /* milliseconds between steps of the host's background work (reclaim, huge pages, merging); 0: none */
    unsigned host_cpus; /* simulated processors of the host, each with its list of frames; 0: as the machine; 1: repeatable */
};

/*
 * Make an instance. options: may be null for the defaults. err: text of what went wrong, err_size
 * bytes, may be null. Returns null on failure (errno is not touched; the code is in *err as text).
 */
struct softkvm *softkvm_new(const struct softkvm_options *options, char *err, size_t err_size);

/*
 * Free an instance: closes what is still open. No other call on it may be running. Null is allowed.
 */
void softkvm_free(struct softkvm *s);

/* As open("/dev/kvm"): a descriptor for the system ioctls, or -EMFILE, -ENOMEM. */
int softkvm_open_system(struct softkvm *s);

/*
 * As ioctl(). arg: pointer or number, as the request wants it. Returns >= 0, or -errno; -EBADF for a
 * descriptor that this instance does not have, -ENOTTY for a request that it does not know.
 */
int softkvm_ioctl(struct softkvm *s, int fd, unsigned long request, void *arg);

/*
 * As mmap() of a guest_memfd's descriptor, or of a vCPU's (offsets as KVM's: 0 run page, 1 port data, 2 coalesced ring, from
 * KVM_DIRTY_LOG_PAGE_OFFSET on the dirty ring).
 * Returns the address; or null with *err = errno. Mappings of one vCPU share one place. The vCPU
 * lives until its last mapping is gone.
 */
void *softkvm_mmap(struct softkvm *s, int fd, size_t length, int prot, int flags, int64_t offset,
                   int *err);

/* As munmap() of what softkvm_mmap() returned, same length. 0 or -EINVAL. */
int softkvm_munmap(struct softkvm *s, void *addr, size_t length);

/* As read()/pread() of a statistics descriptor at byte `offset`. Returns bytes, 0 at the end, or -errno. */
int64_t softkvm_read(struct softkvm *s, int fd, void *buf, size_t length, uint64_t offset);

/*
 * As fallocate() of a guest_memfd's descriptor: FALLOC_FL_KEEP_SIZE allocates, with FALLOC_FL_PUNCH_HOLE it
 * frees. 0; -EBADF, -ENODEV (no guest_memfd), -EOPNOTSUPP (another mode), -EINVAL, -EFBIG, -ENOMEM.
 */
int softkvm_fallocate(struct softkvm *s, int fd, int mode, int64_t offset, int64_t length);

/* As close(). A VM lives until its own and all its vCPUs' descriptors and mappings are gone. */
int softkvm_close(struct softkvm *s, int fd);

/* Another descriptor of the same object, as dup(). */
int softkvm_dup(struct softkvm *s, int fd);

/* Make a KVM_RUN in progress on this vCPU look at run->immediate_exit. Async-signal-safe. */
int softkvm_kick(struct softkvm *s, int vcpu_fd);

/*
 * A signal handler has run on the vCPU's thread: the KVM_RUN in progress, or else the next one, returns
 * -EINTR with exit reason KVM_EXIT_INTR, whatever immediate_exit says. Async-signal-safe.
 */
int softkvm_interrupt(struct softkvm *s, int vcpu_fd);

/*
 * What the process did to its own memory [start, start + length): the second stage drops what it
 * derived from it. unmapped: munmap or an mmap over it. discarded: contents are gone
 * (MADV_DONTNEED, hole punch). protected_: access rights changed to prot (PROT_* bits).
 * Calls are cheap where no slot refers to the range.
 */
int softkvm_memory_unmapped(struct softkvm *s, void *start, size_t length);
int softkvm_memory_discarded(struct softkvm *s, void *start, size_t length);
int softkvm_memory_protected(struct softkvm *s, void *start, size_t length, int prot);

/*
 * The same, and more, in two halves around the process's own system call, so that no vCPU can get a page of
 * the old mapping back in between. end must follow in the same thread exactly when begin returned 0, soon, and with
 * no other call on the instance between the two; done: the process's call succeeded. *c: the caller's, until the end.
 * begin returns 0, -EINVAL, or -ENOMEM: then the process's call should fail too, or be followed by
 * softkvm_memory_unmapped().
 */
enum softkvm_change {
    SOFTKVM_CHANGE_UNMAP,   /* munmap, or a mapping over it */
    SOFTKVM_CHANGE_DISCARD, /* MADV_DONTNEED, MADV_REMOVE, hole punch, truncate */
    SOFTKVM_CHANGE_PROTECT, /* mprotect to `prot` */
    SOFTKVM_CHANGE_MOVE,    /* mremap of it: contents are wanted elsewhere */
    SOFTKVM_CHANGE_FORK,    /* fork; start and length are not looked at */
};

struct softkvm_memory_change {
    uint64_t private_[8];
};

int softkvm_memory_begin(struct softkvm *s, struct softkvm_memory_change *c, enum softkvm_change kind,
                         void *start, size_t length, int prot);
void softkvm_memory_end(struct softkvm_memory_change *c, bool done);

/*
 * The process itself is about to read or write guest memory [start, start + length): what is swapped out or merged comes
 * back, and stays until the end, which names the same range. Needed only with options.announced. 0; -EFAULT (not
 * mapped), -ENOMEM: nothing is held.
 */
int softkvm_memory_access_begin(struct softkvm *s, void *start, size_t length);
void softkvm_memory_access_end(struct softkvm *s, void *start, size_t length);

/* Guest instructions that a vCPU has executed. Any thread; 0 for anything that is not a vCPU. */
uint64_t softkvm_instructions(struct softkvm *s, int vcpu_fd);

/* Version of the library as "major.minor.patch". */
const char *softkvm_version(void);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
