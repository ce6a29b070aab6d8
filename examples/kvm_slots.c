/*
 * A VMM with KVM: a listener that turns pieces of the map into memory slots. Give it the node of a
 * KVM (default /dev/kvm); without one it only says what it would have asked for. Changes are queued
 * and made at commit, deletions first, so that no two slots ever overlap.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "strata/listener.h"
#include "strata/memory.h"
#include "strata/region.h"

#define SLOTS 32

struct vm {
    int fd; /* -1: no KVM */
    struct kvm_userspace_memory_region slot[SLOTS];
    bool drop[SLOTS], add[SLOTS];
    int failed;
};

static void tell(struct vm *vm, const struct kvm_userspace_memory_region *slot)
{
    printf("slot %u: %llx + %llx%s\n", slot->slot, (unsigned long long)slot->guest_phys_addr,
           (unsigned long long)slot->memory_size, slot->flags & KVM_MEM_READONLY ? " read-only" : "");
    if (vm->fd >= 0 && ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, slot) != 0) {
        perror("KVM_SET_USER_MEMORY_REGION");
        vm->failed = 1;
    }
}

static void on_add(void *opaque, const struct strata_section *s)
{
    struct vm *vm = opaque;
    uint64_t size = s->last - s->start + 1;

    if (!s->host || !s->romd || (s->start | size) & 4095) {
        return; /* devices, and what is no whole page, exit to user space */
    }
    for (unsigned i = 0; i < SLOTS; i++) {
        if (!vm->slot[i].memory_size) {
            vm->slot[i] = (struct kvm_userspace_memory_region){
                .slot = i, .flags = s->readonly ? KVM_MEM_READONLY : 0, .guest_phys_addr = s->start,
                .memory_size = size, .userspace_addr = (uintptr_t)s->host};
            vm->add[i] = true;
            return;
        }
    }
    vm->failed = 1;
}

static void on_del(void *opaque, const struct strata_section *s)
{
    struct vm *vm = opaque;

    for (unsigned i = 0; i < SLOTS; i++) {
        if (vm->slot[i].memory_size && vm->slot[i].guest_phys_addr == s->start) {
            vm->drop[i] = true;
        }
    }
}

static void on_commit(void *opaque)
{
    struct vm *vm = opaque;

    for (unsigned i = 0; i < SLOTS; i++) {
        if (vm->drop[i]) {
            vm->slot[i].memory_size = 0;
            tell(vm, &vm->slot[i]);
            vm->drop[i] = false;
        }
    }
    for (unsigned i = 0; i < SLOTS; i++) {
        if (vm->add[i]) {
            tell(vm, &vm->slot[i]);
            vm->add[i] = false;
        }
    }
}

static const struct strata_listener_ops slot_ops = {
    .region_add = on_add, .region_del = on_del, .commit = on_commit};

int main(int argc, char **argv)
{
    int kvm = open(argc > 1 ? argv[1] : "/dev/kvm", O_RDWR | O_CLOEXEC);
    struct vm vm = {.fd = kvm >= 0 ? ioctl(kvm, KVM_CREATE_VM, 0) : -1};
    struct strata_listener_desc listen = {.name = "slots", .ops = &slot_ops, .opaque = &vm};
    struct strata_region_desc desc[] = {
        {.kind = STRATA_CONTAINER, .name = "system", .size = STRATA_SIZE_ALL},
        {.kind = STRATA_RAM, .name = "ram", .size = 16 << 20},
        {.kind = STRATA_ROM, .name = "rom", .size = 64 << 10}};
    struct strata_region *region[3];
    struct strata_listener *listener;
    struct strata_memory *mem;
    struct strata_space *space;
    int err = strata_memory_new(NULL, &mem);

    for (int i = 0; i < 3 && !err; i++) {
        err = strata_region_new(mem, &desc[i], &region[i]);
    }
    err = err ? err : strata_region_add(region[0], 0, region[1]);
    err = err ? err : strata_space_new(mem, "memory", region[0], &space);
    err = err ? err : strata_listener_register(mem, &listen, &listener);
    err = err ? err : strata_region_add_overlap(region[0], 0xf0000, region[2], 1); /* cuts the RAM */
    err = err ? err : strata_region_set_enabled(region[2], false);
    if (!err) {
        strata_memory_free(mem);
    }
    if (vm.fd >= 0) {
        close(vm.fd);
    }
    if (kvm >= 0) {
        close(kvm);
    }
    return err || vm.failed;
}
