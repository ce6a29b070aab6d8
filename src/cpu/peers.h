/*
 * The processors that share one physical memory: whose code caches must hear of each other's writes,
 * and who must keep off while one does a locked access that the host cannot do in one instruction.
 *
 * Locks: `lock` guards the list of members. split_lock is held around locked accesses that cross a page or are
 * not plain RAM. code_lines is atomic: one bit per 64-byte line of a frame that holds decoded code.
 */
#ifndef STRATA_CPU_PEERS_H
#define STRATA_CPU_PEERS_H

#include <pthread.h>

#include "cpu/state.h"

struct cpu_peers {
    pthread_mutex_t lock;
    pthread_mutex_t split_lock;
    struct cpu **members;
    unsigned count, room;
    _Atomic uint64_t *code_lines; /* indexed by pfn; address space only, touched where there is code */
    uint64_t nr_frames;
};

int cpu_peers_add(struct cpu_peers *peers, struct cpu *cpu, uint64_t nr_frames) must_check;
void cpu_peers_remove(struct cpu_peers *peers, struct cpu *cpu);

/* All but `self`: verify your blocks before you enter them again. */
void cpu_peers_code_changed(struct cpu *self);

/* Take the right to write without looking from every processor that has it for a frame. */
void cpu_peers_drop_write(struct cpu *self, uint64_t pfn);

#endif
