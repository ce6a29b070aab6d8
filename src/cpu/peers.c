/*
 * The set of processors of one virtual machine; see peers.h.
 *
 * Locks: peers->lock guards the members. It is a leaf: no callback is made under it.
 */
#include "cpu/peers.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "cpu/request.h"
#include "cpu/run.h"
#include "cpu/tlb.h"

struct cpu_peers *cpu_peers_new(void)
{
    struct cpu_peers *peers = calloc(1, sizeof(*peers));

    if (peers) {
        pthread_mutex_init(&peers->lock, NULL);
        pthread_mutex_init(&peers->split_lock, NULL);
    }
    return peers;
}

void cpu_peers_free(struct cpu_peers *peers)
{
    if (!peers) {
        return;
    }
    if (peers->code_lines) {
        munmap((void *)peers->code_lines, peers->nr_frames * sizeof(*peers->code_lines));
    }
    free(peers->members);
    pthread_mutex_destroy(&peers->lock);
    pthread_mutex_destroy(&peers->split_lock);
    free(peers);
}

/* The marks cost address space only where there is no code. */
static int code_lines_map(struct cpu_peers *peers, uint64_t nr_frames)
{
    void *p;

    if (peers->code_lines) {
        return peers->nr_frames >= nr_frames ? 0 : -EINVAL;
    }
    p = mmap(NULL, nr_frames * sizeof(*peers->code_lines), PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        return -ENOMEM;
    }
    peers->code_lines = p;
    peers->nr_frames = nr_frames;
    return 0;
}

static int members_grow(struct cpu_peers *peers)
{
    unsigned room = peers->room ? peers->room * 2 : 4;
    struct cpu **members;

    if (peers->count < peers->room) {
        return 0;
    }
    members = realloc(peers->members, room * sizeof(*members));
    if (!members) {
        return -ENOMEM;
    }
    peers->members = members;
    peers->room = room;
    return 0;
}

/* Make cpu a member. nr_frames: of the physical memory, the same for all. Returns 0, -ENOMEM, or -EINVAL
 * when the memory is larger than the first member's. Takes peers->lock. */
int cpu_peers_add(struct cpu_peers *peers, struct cpu *cpu, uint64_t nr_frames)
{
    int err;

    pthread_mutex_lock(&peers->lock);
    err = code_lines_map(peers, nr_frames);
    if (!err) {
        err = members_grow(peers);
    }
    if (!err) {
        peers->members[peers->count] = cpu;
        __atomic_store_n(&peers->count, peers->count + 1, __ATOMIC_SEQ_CST);
    }
    pthread_mutex_unlock(&peers->lock);
    return err;
}

void cpu_peers_remove(struct cpu_peers *peers, struct cpu *cpu)
{
    pthread_mutex_lock(&peers->lock);
    for (unsigned i = 0; i < peers->count; i++) {
        if (peers->members[i] == cpu) {
            peers->members[i] = peers->members[peers->count - 1];
            __atomic_store_n(&peers->count, peers->count - 1, __ATOMIC_SEQ_CST);
            break;
        }
    }
    pthread_mutex_unlock(&peers->lock);
}

void cpu_peers_code_changed(struct cpu *self)
{
    struct cpu_peers *peers = self->peers;

    if (__atomic_load_n(&peers->count, __ATOMIC_RELAXED) < 2) {
        return;
    }
    pthread_mutex_lock(&peers->lock);
    for (unsigned i = 0; i < peers->count; i++) {
        if (peers->members[i] != self) {
            cpu_epoch_change(peers->members[i]);
        }
    }
    pthread_mutex_unlock(&peers->lock);
}

static void drop_write(struct cpu *cpu, uint64_t pfn)
{
    for (unsigned set = 0; set < CPU_TLB_NONE; set++) {
        for (unsigned i = 0; i < CPU_TLB_ENTRIES; i++) {
            struct cpu_tlb_entry *e = &cpu->mmu->tlb[set][i];

            if (__atomic_load_n(&e->info, __ATOMIC_RELAXED) >> PAGE_SHIFT == pfn) {
                __atomic_store_n(&e->tag_w, 0, __ATOMIC_RELAXED);
            }
        }
    }
}

void cpu_peers_drop_write(struct cpu *self, uint64_t pfn)
{
    struct cpu_peers *peers = self->peers;

    pthread_mutex_lock(&peers->lock);
    for (unsigned i = 0; i < peers->count; i++) {
        drop_write(peers->members[i], pfn);
    }
    pthread_mutex_unlock(&peers->lock);
}
