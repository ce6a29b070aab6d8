/*
 * `strata kvm-run --stats`: the counters of a VM or vCPU, on standard error when its last descriptor is
 * closed or the program ends. They are read as any program reads them, in the kernel's binary format.
 */
#include "preload/preload.h"

#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_COUNTERS 512

/* One counter: its description is followed by its name. */
static void show_counter(struct softkvm *s, int stats, const struct kvm_stats_header *h, unsigned i)
{
    char room[sizeof(struct kvm_stats_desc) + 256];
    struct kvm_stats_desc *d = (struct kvm_stats_desc *)(void *)room;
    size_t size = sizeof(*d) + h->name_size;
    uint64_t value;

    if (size >= sizeof(room) ||
        preload_lib.read(s, stats, room, size, h->desc_offset + i * size) != (int64_t)size || d->size != 1 ||
        preload_lib.read(s, stats, &value, sizeof(value), h->data_offset + d->offset) != sizeof(value)) {
        return;
    }
    room[size] = '\0';
    if (value) {
        fprintf(stderr, "  %-32s %20llu\n", d->name, (unsigned long long)value);
    }
}

int preload_stats_open(int soft, enum preload_kind kind)
{
    if (!preload_wants_stats || soft < 0 || (kind != PRELOAD_VM && kind != PRELOAD_VCPU)) {
        return -1;
    }
    return preload_lib.ioctl(preload_active(), soft, KVM_GET_STATS_FD, NULL);
}

void preload_stats_show(int fd, struct preload_fd *e)
{
    struct softkvm *s = preload_active();
    struct kvm_stats_header h;
    char id[64] = "";

    if (!preload_wants_stats || !s || e->stats < 0 || preload_is_foreign(e) ||
        preload_lib.read(s, e->stats, &h, sizeof(h), 0) != sizeof(h) || h.num_desc > MOST_COUNTERS) {
        return;
    }
    (void)preload_lib.read(s, e->stats, id, h.name_size < sizeof(id) - 1 ? h.name_size : sizeof(id) - 1, h.id_offset);
    fprintf(stderr, "softkvm: process %d, descriptor %d, %s\n", (int)getpid(), fd, id);
    for (unsigned i = 0; i < h.num_desc; i++) {
        show_counter(s, e->stats, &h, i);
    }
    if (e->kind == PRELOAD_VCPU) {
        fprintf(stderr, "  %-32s %20llu\n", "instructions", (unsigned long long)preload_lib.instructions(s, e->soft));
    }
}
