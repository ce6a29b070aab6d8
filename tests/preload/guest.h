/* A small VM through plain libc calls, as any program makes one; and TAP. */
#ifndef TESTS_PRELOAD_GUEST_H
#define TESTS_PRELOAD_GUEST_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct guest {
    int kvm, vm, vcpu;
    struct kvm_run *run;
    size_t run_size;
    uint8_t *ram;
    size_t ram_size;
};

/* A VM with ram_size bytes at 0 and one vCPU in real mode at 0x1000. False: no KVM (errno). */
bool guest_make(struct guest *g, size_t ram_size);
void guest_drop(struct guest *g);
/* Code at 0x1000, and RIP there. */
void guest_code(struct guest *g, const void *code, size_t n);

/* `for (;;) { DS:[0x2000]++; }` and `AL = DS:[0x2000]; HLT`. */
extern const uint8_t guest_counts[6], guest_reads[4];

/* One line of TAP; what: a sentence. Returns ok. */
bool tap(bool ok, const char *what);
/* ok, and errno was as expected: the line says what it was otherwise. */
bool tap_fails(long result, int expected, const char *what);
int tap_end(void);

/* Run fn in a child: true when it exited with 0. */
bool in_child(void (*fn)(void *), void *arg);

void test_paths(void);
void test_descriptors(void);
void test_processes(const char *self);
void test_memory(void);
void test_hostile(void);

#endif
