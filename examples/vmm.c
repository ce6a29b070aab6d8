/*
 * A VMM with KVM: RAM becomes memory slots through a listener, the guest's accesses to everything else
 * come back as exits and go to devices through the flat views, and a change of the map while the guest
 * stands takes effect on its next access. The guest is a few instructions of real-mode code.
 * Give it the node of a KVM (default /dev/kvm); exit status 77 without one.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "strata/access.h"
#include "strata/address_space.h"
#include "strata/listener.h"
#include "strata/memory.h"
#include "strata/region.h"

#define SLOTS 8

struct vmm {
    struct strata_memory *mem;
    struct strata_space *memory, *ports;
    int vm, vcpu;
    struct kvm_run *run;
    struct kvm_userspace_memory_region slot[SLOTS]; /* size 0: free */
    int failed;
};

static void slot_set(struct vmm *v, struct kvm_userspace_memory_region *slot)
{
    if (ioctl(v->vm, KVM_SET_USER_MEMORY_REGION, slot) != 0) {
        perror("KVM_SET_USER_MEMORY_REGION");
        v->failed = 1;
    }
}

/* A commit brings deletions before additions, so slots never overlap. */
static void on_add(void *opaque, const struct strata_section *s)
{
    struct vmm *v = opaque;

    for (unsigned i = 0; s->host && s->romd && i < SLOTS; i++) {
        if (!v->slot[i].memory_size) {
            v->slot[i] = (struct kvm_userspace_memory_region){
                .slot = i, .flags = s->readonly ? KVM_MEM_READONLY : 0, .guest_phys_addr = s->start,
                .memory_size = s->last - s->start + 1, .userspace_addr = (uintptr_t)s->host};
            slot_set(v, &v->slot[i]);
            return;
        }
    }
}

static void on_del(void *opaque, const struct strata_section *s)
{
    struct vmm *v = opaque;

    for (unsigned i = 0; i < SLOTS; i++) {
        if (v->slot[i].memory_size && v->slot[i].guest_phys_addr == s->start) {
            v->slot[i].memory_size = 0;
            slot_set(v, &v->slot[i]);
        }
    }
}

static void serial_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    putchar((int)value);
}

/* A write to this device makes the ROM that lies over the guest's low memory go away. */
static void latch_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    strata_region_set_enabled(opaque, value == 0);
}

static const struct strata_io_ops serial = {.write = serial_write, .valid = {.min = 1, .max = 1}};
static const struct strata_io_ops latch = {.write = latch_write, .valid = {.min = 1, .max = 4}};

/* At 0x1000: print the byte at 0x3000, write to the latch at 0x8000, print the byte at 0x3000, halt. */
static const uint8_t guest[] = {
    0xa0, 0x00, 0x30,             /* mov al, [0x3000] */
    0xe6, 0x10,                   /* out 0x10, al */
    0xc6, 0x06, 0x00, 0x80, 0x01, /* mov byte [0x8000], 1 */
    0xa0, 0x00, 0x30, 0xe6, 0x10, /* and again */
    0xf4};                        /* hlt */

static struct strata_region *make(struct vmm *v, struct strata_region_desc desc,
                                  struct strata_region *parent, strata_addr addr, int priority)
{
    struct strata_region *region = NULL;

    v->failed |= strata_region_new(v->mem, &desc, &region) != 0 ||
                 (parent && strata_region_add_overlap(parent, addr, region, priority) != 0);
    return region;
}

static void board(struct vmm *v)
{
    static const struct strata_listener_ops ops = {.region_add = on_add, .region_del = on_del};
    struct strata_listener_desc listen = {.name = "slots", .ops = &ops, .opaque = v};
    struct strata_region_desc box = {STRATA_CONTAINER, "memory", STRATA_SIZE_ALL};
    struct strata_region *root = make(v, box, NULL, 0, 0), *ports, *rom;
    struct strata_listener *l;

    box.name = "ports";
    box.size = 0x10000;
    ports = make(v, box, NULL, 0, 0);
    make(v, (struct strata_region_desc){STRATA_RAM, "ram", 0x8000}, root, 0, 0);
    rom = make(v, (struct strata_region_desc){STRATA_ROM, "rom", 0x1000}, root, 0x3000, 1);
    make(v, (struct strata_region_desc){.kind = STRATA_IO, .name = "latch", .size = 0x1000,
                                        .ops = &latch, .opaque = rom}, root, 0x8000, 0);
    make(v, (struct strata_region_desc){.kind = STRATA_IO, .name = "serial", .size = 8,
                                        .ops = &serial}, ports, 0x10, 0);
    v->failed |= strata_space_new(v->mem, "memory", root, &v->memory) != 0 ||
                 strata_space_new(v->mem, "ports", ports, &v->ports) != 0;
    listen.space = v->memory;
    v->failed |= strata_listener_register(v->mem, &listen, &l) != 0;
    strata_write(v->memory, 0x1000, STRATA_ATTRS_NONE, guest, sizeof(guest));
    strata_region_set_enabled(rom, false);
    strata_write(v->memory, 0x3000, STRATA_ATTRS_NONE, "\n", 1); /* RAM under the ROM */
    strata_region_set_enabled(rom, true);
    strata_write_rom(v->memory, 0x3000, "R", 1);
}

static int cpu(struct vmm *v, int kvm)
{
    struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
    struct kvm_sregs sregs;
    int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

    v->vcpu = ioctl(v->vm, KVM_CREATE_VCPU, 0);
    v->run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, v->vcpu, 0);
    if (v->vcpu < 0 || v->run == MAP_FAILED || ioctl(v->vcpu, KVM_GET_SREGS, &sregs) != 0) {
        return -1;
    }
    sregs.cs.base = sregs.cs.selector = 0;
    return ioctl(v->vcpu, KVM_SET_SREGS, &sregs) | ioctl(v->vcpu, KVM_SET_REGS, &regs);
}

/* Run to hlt: 0; -1: something that no exit of this guest should be. */
static int loop(struct vmm *v)
{
    struct kvm_run *run = v->run;

    for (;;) {
        if (ioctl(v->vcpu, KVM_RUN, 0) != 0 && errno != EINTR) {
            return -1;
        }
        switch (run->exit_reason) {
        case KVM_EXIT_HLT:
            return 0;
        case KVM_EXIT_IO:
            if (run->io.direction != KVM_EXIT_IO_OUT ||
                strata_write(v->ports, run->io.port, STRATA_ATTRS_NONE,
                             (char *)run + run->io.data_offset, run->io.size) != STRATA_OK) {
                return -1;
            }
            break;
        case KVM_EXIT_MMIO:
            if (run->mmio.is_write) {
                strata_write(v->memory, run->mmio.phys_addr, STRATA_ATTRS_NONE, run->mmio.data,
                             run->mmio.len);
            } else {
                strata_read(v->memory, run->mmio.phys_addr, STRATA_ATTRS_NONE, run->mmio.data,
                            run->mmio.len);
            }
            break;
        default:
            return -1;
        }
    }
}

int main(int argc, char **argv)
{
    struct vmm v = {.failed = 0};
    int kvm = open(argc > 1 ? argv[1] : "/dev/kvm", O_RDWR | O_CLOEXEC);

    v.vm = kvm >= 0 ? ioctl(kvm, KVM_CREATE_VM, 0) : -1;
    if (v.vm < 0) {
        fprintf(stderr, "vmm: no KVM here\n");
        return 77;
    }
    if (strata_memory_new(NULL, &v.mem) != 0) {
        return 1;
    }
    board(&v);
    v.failed |= cpu(&v, kvm) != 0 || loop(&v) != 0 || strata_check(v.mem) != 0;
    strata_memory_free(v.mem);
    return v.failed;
}
