/* The flows of shadow.md: a guest in long mode whose lower 2 MiB are one large page, and the next a table of small ones. */
#include "flow.h"

#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "accel/endpoint.h"
#include "softkvm/softkvm.h"

#define RAM_SIZE (8u << 20)
#define CODE     0x1000u
#define PML4     0x400000u
#define PDPT     0x401000u
#define PD       0x402000u
#define PT       0x403000u
#define LA       0x200000u /* the first page of PT */

struct vm {
    struct accel_endpoint *ep;
    int sys, vm, vcpu;
    struct kvm_run *run;
    unsigned char *ram;
};

static void put(struct vm *v, unsigned at, uint64_t entry)
{
    memcpy(v->ram + at, &entry, sizeof(entry));
}

static void put_tables(struct vm *v)
{
    put(v, PML4, PDPT | 0x67);
    put(v, PDPT, PD | 0x67);
    put(v, PD, 0xe3);
    put(v, PD + 8, PT | 0x67);
    put(v, PT, 0x600000 | 0x67);
    put(v, PT + 8, PD | 0x67);
    put(v, PT + 16, PT | 0x67);
}

static int set_state(struct vm *v)
{
    struct kvm_segment seg = {.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .g = 1, .l = 1};
    struct kvm_sregs s;

    if (accel_ioctl_ptr(v->ep, v->vcpu, KVM_GET_SREGS, &s) != 0) {
        return -1;
    }
    s.cs = seg;
    seg.type = 3;
    seg.l = 0;
    seg.db = 1;
    s.ds = s.es = s.fs = s.gs = s.ss = seg;
    s.cr0 = 0x80010033;
    s.cr3 = PML4;
    s.cr4 = 0x220;
    s.efer = 0xd00;
    s.idt.limit = 0;
    return accel_ioctl_ptr(v->ep, v->vcpu, KVM_SET_SREGS, &s);
}

static int vm_new(struct vm *v)
{
    struct accel_soft_options options = {.trace = flow_record, .mmu = SOFTKVM_MMU_SHADOW, .max_page_level = 1};
    struct kvm_userspace_memory_region m = {.memory_size = RAM_SIZE};
    int err;

    v->ep = accel_endpoint_soft_new(&options, NULL);
    v->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    m.userspace_addr = (uintptr_t)v->ram;
    v->sys = v->ep->ops->open_system(v->ep);
    v->vm = accel_ioctl(v->ep, v->sys, KVM_CREATE_VM, 0);
    v->vcpu = accel_ioctl(v->ep, v->vm, KVM_CREATE_VCPU, 0);
    v->run = v->ep->ops->mmap(v->ep, v->vcpu, (size_t)accel_ioctl(v->ep, v->sys, KVM_GET_VCPU_MMAP_SIZE, 0), 0, &err);
    put_tables(v);
    if (v->vcpu < 0 || !v->run || accel_ioctl_ptr(v->ep, v->vm, KVM_SET_USER_MEMORY_REGION, &m) != 0) {
        return -1;
    }
    return set_state(v);
}

/* Run code until it halts. RBX: an address; RAX: what is stored; RCX: CR3. Returns the exit reason. */
static int vm_run(struct vm *v, const unsigned char *code, size_t len, uint64_t rbx)
{
    struct kvm_regs r = {.rip = CODE, .rflags = 2, .rbx = rbx, .rcx = PML4, .rsp = CODE};

    memcpy(v->ram + CODE, code, len);
    if (accel_ioctl_ptr(v->ep, v->vcpu, KVM_SET_REGS, &r) != 0 || accel_ioctl(v->ep, v->vcpu, KVM_RUN, 0) < 0) {
        return -1;
    }
    return (int)v->run->exit_reason;
}

static const unsigned char halt[] = {0xf4};
static const unsigned char load[] = {0x8a, 0x03, 0xf4};                               /* mov (%rbx), %al */
static const unsigned char store[] = {0x48, 0x89, 0x03, 0xf4};                        /* mov %rax, (%rbx) */
static const unsigned char store_cr3[] = {0x48, 0x89, 0x03, 0x0f, 0x22, 0xd9, 0xf4};  /* and mov %rcx, %cr3 */

/* What comes before runs first, unwatched, so that the flow is the one asked for. */
static int watch(const unsigned char *before, uint64_t before_rbx, const unsigned char *code, size_t len, uint64_t rbx,
                 int wanted)
{
    static const char *const prefixes[] = {"shadow_", NULL};
    struct vm v;
    int ret = vm_new(&v);

    if (ret == 0) {
        ret = vm_run(&v, before, before == halt ? sizeof(halt) : sizeof(load), before_rbx) == KVM_EXIT_HLT ? 0 : -1;
    }
    flow_start(prefixes);
    ret = ret == 0 && vm_run(&v, code, len, rbx) == wanted ? 0 : -1;
    flow_stop();
    v.ep->ops->free(v.ep);
    munmap(v.ram, RAM_SIZE);
    return ret;
}

int flow_shadow_map(void)
{
    return watch(halt, 0, load, sizeof(load), LA, KVM_EXIT_HLT);
}

/* The directory is mapped by the second entry of the table: entry 16 of it, which leads nowhere, is written. */
int flow_shadow_upper(void)
{
    return watch(load, LA + 0x1000, store, sizeof(store), LA + 0x1000 + 128, KVM_EXIT_HLT);
}

int flow_shadow_unsync(void)
{
    return watch(load, LA + 0x2000, store_cr3, sizeof(store_cr3), LA + 0x2000 + 128, KVM_EXIT_HLT);
}

/* There is no handler: the fault of the fault's delivery shuts down. */
int flow_shadow_guest(void)
{
    return watch(halt, 0, load, sizeof(load), LA + 0x3000, KVM_EXIT_SHUTDOWN);
}
