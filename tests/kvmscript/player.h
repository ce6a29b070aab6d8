/*
 * A player of KVM scripts: lines of text that become ioctls on an endpoint, and a transcript of what
 * came back. The same script on two endpoints must give the same transcript. docs/kvm-scripts.md has
 * the language.
 *
 * Everything printed is the same for equal behaviour: no pointers, no descriptors, errors by name.
 */
#ifndef STRATA_TESTS_KVMSCRIPT_PLAYER_H
#define STRATA_TESTS_KVMSCRIPT_PLAYER_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "accel/endpoint.h"

#define PLAYER_MAX_RAM   16
#define PLAYER_MAX_VCPUS 8
#define PLAYER_MAX_SLOTS 64
#define PLAYER_MAX_WORDS 4200
#define PLAYER_MAX_EVENTS 16
#define PLAYER_MAX_VMS    8

struct player_ram {
    char name[16];
    unsigned char *base;
    size_t size;
};

/* What the player knows of slots, to find guest memory by gpa. */
struct player_slot {
    uint32_t id;
    uint64_t gpa, size;
    unsigned char *hva;
};

struct player_vcpu {
    int fd;
    struct kvm_run *run;
    unsigned long id;
    struct kvm_dirty_gfn *ring; /* mapped by `dring` */
    uint32_t ring_entries, ring_next;
};

/* A vCPU that runs while the script goes on. */
struct player_load {
    struct player *p;
    struct player_vcpu *v;
    pthread_t thread;
    bool running, stop;
    int error;
    uint32_t reason;
};

struct player {
    struct accel_endpoint *ep;
    FILE *out;
    int sys, vm;            /* vm: the current one */
    int vms[PLAYER_MAX_VMS];
    unsigned nr_vms;
    size_t run_size;
    struct player_ram ram[PLAYER_MAX_RAM];
    unsigned nr_ram;
    struct player_slot slot[PLAYER_MAX_SLOTS];
    unsigned nr_slots;
    struct player_vcpu vcpu[PLAYER_MAX_VCPUS];
    unsigned nr_vcpus, cur;
    struct {
        char name[16];
        int fd;
    } event[PLAYER_MAX_EVENTS];
    unsigned nr_events;
    uint8_t answer[8];      /* what device reads get */
    bool hide_next;         /* `differs`: the next command's outcome is not comparable */
    bool skipped;           /* `require` was not met */
    bool is_soft;
    struct player_load load;
    int line;
    /* the command at hand */
    char *word[PLAYER_MAX_WORDS];
    unsigned nr_words;
};

/* Play one script. Returns 0, 77 when a requirement was not met, 2 for a mistake in the script. */
int player_play(struct player *p, FILE *script);
void player_close(struct player *p);

/* Arguments: key=value anywhere in the line, or the n-th plain word. */
bool player_has(struct player *p, const char *key);
uint64_t player_num(struct player *p, const char *key, uint64_t fallback);
uint64_t player_arg(struct player *p, unsigned n, uint64_t fallback);
const char *player_text(struct player *p, const char *key);
bool player_parse_num(const char *s, uint64_t *v);
/* "name+off" of a RAM, or a number; NULL is a valid number. */
void *player_addr(struct player *p, const char *s);

/* One outcome line: "ok", "= value", "-ERRNAME". hide_next is honoured. */
void player_say(struct player *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void player_result(struct player *p, int ret);
const char *player_errname(int err);

struct player_command {
    const char *name;
    int (*run)(struct player *p);
};

extern const struct player_command player_vm_commands[], player_vcpu_commands[], player_event_commands[],
    player_guest_commands[], player_state_commands[], player_fd_commands[];

/* Guest memory at gpa by the player's own idea of the slots; NULL outside. */
unsigned char *player_gpa(struct player *p, uint64_t gpa, size_t len);
struct player_vcpu *player_cur(struct player *p);

/* Is a word of `differs` or `unless` true of the endpoint: soft, kvm, pv (a kernel's KVM without hardware behind
 * it), svm, vmx, linux<6.8 (a kernel's KVM, older)? */
bool player_tag(const struct player *p, const char *tag);

/* Names of requests and capabilities. */
bool player_request(const char *name, unsigned long *request);
bool player_cap(const char *name, unsigned long *cap);

#endif
