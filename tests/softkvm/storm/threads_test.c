/*
 * The storm with threads, for the thread sanitizer and for what only true concurrency shows. Each vCPU runs a loop of
 * its own that maps each page of a window in turn to one of two frames, flushes, finds there the stamp of two rounds
 * ago, and leaves the next; meanwhile this thread harvests the dirty log, deletes and makes slots, and stirs the host's
 * memory. In the end the copy made by the dirty log alone is the memory.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "host/buddy.h"
#include "host/mm.h"
#include "softkvm/engine.h"
#include "storm.h"

#define PAGES   64u /* of each vCPU in each data slot */
#define CODE_AT 0x1200u

/* RBX window, R8 its table, R9 stamp, R12 stamp of two rounds ago, R10 and R11 the entries' first values. */
static const uint8_t code[] = {
    0x48, 0x89, 0xdf, 0x4c, 0x89, 0xc6, 0x4c, 0x89, 0xd2, /* round: rdi = rbx, rsi = r8, rdx = r10 */
    0xb9, PAGES, 0, 0, 0,                                 /*        ecx = PAGES */
    0x48, 0x89, 0x16, 0x0f, 0x01, 0x3f,                   /* page:  mov [rsi], rdx; invlpg [rdi] */
    0x4c, 0x39, 0x27, 0x75, 0x29,                         /*        cmp [rdi], r12; jne bad */
    0x4c, 0x89, 0x0f, 0x4c, 0x39, 0x0f, 0x75, 0x21,       /*        mov [rdi], r9; cmp [rdi], r9; jne bad */
    0x48, 0x81, 0xc7, 0, 0x10, 0, 0, 0x48, 0x83, 0xc6, 8, /*        rdi += 4096, rsi += 8 */
    0x48, 0x81, 0xc2, 0, 0x10, 0, 0, 0xff, 0xc9, 0x75, 0xd7, /*     rdx += 4096; dec ecx; jnz page */
    0x4d, 0x87, 0xda, 0x49, 0xff, 0xc1, 0x49, 0xff, 0xc4, /*        xchg r10, r11; r9++, r12++ */
    0xeb, 0xbe, 0xe6, PORT_FAULT,                         /*        jmp round;  bad: out */
};

/* Pages that a vCPU's thread wrote for its guest, while the slot was away. */
static _Atomic uint8_t written[DATA_SLOTS][DATA_BYTES / PAGE_BYTES];

struct runner {
    struct storm *w;
    unsigned c;
    uint64_t mmios, efaults;
    int error; /* why it ended, if not by being told */
};

static _Atomic int stop;

/* Guest memory races with guests by nature: copied where the sanitizer does not look. */
__attribute__((no_sanitize("thread"))) static void racy_copy(volatile uint64_t *to, const volatile uint64_t *from,
                                                             size_t words)
{
    for (size_t i = 0; i < words; i++) {
        to[i] = from[i];
    }
}

/* The slot is away: the access is made good here, at the place where the bytes are. */
static bool serve_mmio(struct storm *w, struct kvm_run *run)
{
    for (unsigned i = 0; i < DATA_SLOTS; i++) {
        struct storm_slot *s = &w->slot[DATA + i];
        uint64_t at = run->mmio.phys_addr - s->gpa;

        if (at >= s->bytes || run->mmio.len != 8) {
            continue;
        }
        if (run->mmio.is_write) {
            racy_copy((uint64_t *)(void *)(s->hva + at), (uint64_t *)(void *)run->mmio.data, 1);
            written[i][at / PAGE_BYTES] = 1;
        } else {
            racy_copy((uint64_t *)(void *)run->mmio.data, (uint64_t *)(void *)(s->hva + at), 1);
        }
        return true;
    }
    return false;
}

static void *run_vcpu(void *opaque)
{
    struct runner *r = opaque;
    struct kvm_run *run = r->w->cpu[r->c].run;

    while (!r->error && !stop) {
        int ret = softkvm_ioctl(r->w->s, r->w->cpu[r->c].fd, KVM_RUN, NULL);

        if (ret == -EFAULT) {
            r->efaults++; /* the page comes back */
            sched_yield();
        } else if (ret < 0 && ret != -EINTR) {
            r->error = ret;
        } else if (ret == 0 && (run->exit_reason != KVM_EXIT_MMIO || !serve_mmio(r->w, run))) {
            r->error = (int)run->exit_reason;
        } else {
            r->mmios += ret == 0;
        }
    }
    return NULL;
}

static void start(struct storm *w, unsigned c)
{
    uint64_t pt = TABLES_GPA + (c * SPACES * TABLE_PAGES + 3) * PAGE_BYTES;
    struct kvm_regs r = {.rip = CODE_AT, .rflags = 2, .rsp = 0x8000 - c * 0x1000, .rbx = WINDOW_VA, .r8 = pt,
                         .r9 = 2, .r12 = 0};

    r.r10 = (w->slot[DATA].gpa + c * PAGES * PAGE_BYTES) | 3;
    r.r11 = (w->slot[DATA + 1].gpa + c * PAGES * PAGE_BYTES) | 3;
    if (softkvm_ioctl(w->s, w->cpu[c].fd, KVM_SET_REGS, &r) != 0) {
        storm_fail(w, "KVM_SET_REGS");
    }
}

static void copy_page(struct storm *w, unsigned i, uint64_t page)
{
    racy_copy((uint64_t *)(void *)(w->slot[DATA + i].mirror + page * PAGE_BYTES),
              (uint64_t *)(void *)(w->slot[DATA + i].hva + page * PAGE_BYTES), PAGE_BYTES / 8);
}

static void harvest(struct storm *w, unsigned i)
{
    uint64_t map[DATA_BYTES / PAGE_BYTES / 64] = {0};
    struct kvm_dirty_log log = {.slot = DATA + i, .dirty_bitmap = map};
    struct kvm_clear_dirty_log clear = {.slot = DATA + i, .num_pages = DATA_BYTES / PAGE_BYTES, .dirty_bitmap = map};
    int r = storm_vm_ioctl(w, KVM_GET_DIRTY_LOG, &log);

    if (r == 0 && w->config.manual) {
        r = storm_vm_ioctl(w, KVM_CLEAR_DIRTY_LOG, &clear);
    }
    if (r != 0) {
        storm_fail(w, "dirty log: %s", strerror(-r));
    }
    for (uint64_t p = 0; p < DATA_BYTES / PAGE_BYTES; p++) {
        if ((map[p / 64] >> p % 64 & 1) || atomic_exchange(&written[i][p], 0)) {
            copy_page(w, i, p);
        }
    }
}

/* Slot i goes and comes back, logging; what was logged and not harvested goes with it, so all is copied. */
static void renew(struct storm *w, unsigned i)
{
    struct storm_slot *s = &w->slot[DATA + i];
    bool present[2] = {false, true};

    for (unsigned k = 0; k < 2; k++) {
        s->present = present[k];
        s->logging = true;
        if (storm_slot_set(w, DATA + i) != 0) {
            storm_fail(w, "slot %u", DATA + i);
        }
    }
    for (uint64_t p = 0; p < DATA_BYTES / PAGE_BYTES; p++) {
        copy_page(w, i, p);
    }
}

static void protect_a_while(struct storm *w, char *page, bool told)
{
    struct softkvm_memory_change c;
    bool begun = told && softkvm_memory_begin(w->s, &c, SOFTKVM_CHANGE_PROTECT, page, PAGE_BYTES, PROT_NONE) == 0;

    mprotect(page, PAGE_BYTES, PROT_NONE);
    if (begun) {
        softkvm_memory_end(&c, true);
    }
    sched_yield();
    mprotect(page, PAGE_BYTES, PROT_READ | PROT_WRITE);
}

static void stir(struct storm *w)
{
    unsigned i = (unsigned)storm_random(w, DATA_SLOTS);
    char *page = w->slot[DATA + i].hva + storm_random(w, CPUS * PAGES) * PAGE_BYTES;
    struct host_mm *mm = w->s->mm;

    switch (storm_random(w, 12)) {
    case 0:
        renew(w, i);
        break;
    case 1:
    case 2:
    case 3:
        harvest(w, i);
        break;
    case 4:
        host_mm_reclaim(mm, 1 + storm_random(w, 64));
        break;
    case 5:
        (void)!host_mm_migrate(mm, ptr_to_hva(page));
        break;
    case 6:
        (void)!host_mm_collapse(mm, ptr_to_hva(page), 511);
        break;
    case 7:
        (void)!host_mm_split(mm, ptr_to_hva(page));
        break;
    case 8:
        host_memory_compact(w->s->hm, 1);
        break;
    case 9:
        (void)!host_mm_forked(mm);
        break;
    default:
        protect_a_while(w, page, storm_random(w, 2));
    }
}

/* B pages begin with stamp 1, A pages with 0; both slots log from the start. */
static void prepare(struct storm *w)
{
    memcpy(w->slot[LOW].hva + CODE_AT, code, sizeof(code));
    for (unsigned i = 0; i < DATA_SLOTS; i++) {
        for (unsigned p = 0; p < CPUS * PAGES; p++) {
            *(uint64_t *)(void *)(w->slot[DATA + i].hva + p * (size_t)PAGE_BYTES) = i;
        }
        w->slot[DATA + i].logging = true;
        if (storm_slot_set(w, DATA + i) != 0) {
            storm_fail(w, "slot");
        }
        memcpy(w->slot[DATA + i].mirror, w->slot[DATA + i].hva, DATA_BYTES);
    }
}

static void finish(struct storm *w, pthread_t *thread, struct runner *r)
{
    stop = 1;
    for (unsigned c = 0; c < CPUS; c++) {
        __atomic_store_n(&w->cpu[c].run->immediate_exit, 1, __ATOMIC_RELAXED);
        softkvm_kick(w->s, w->cpu[c].fd);
    }
    for (unsigned c = 0; c < CPUS; c++) {
        pthread_join(thread[c], NULL);
        if (r[c].error) {
            storm_fail(w, "vCPU %u ended by %d: a stamp was wrong, or worse", c, r[c].error);
        }
    }
    for (unsigned i = 0; i < DATA_SLOTS; i++) {
        harvest(w, i);
        if (memcmp(w->slot[DATA + i].mirror, w->slot[DATA + i].hva, DATA_BYTES) != 0) {
            storm_fail(w, "slot %u: a write was missed by the dirty log", DATA + i);
        }
    }
    storm_check(w);
}

static void run_seed(uint64_t seed, unsigned rounds, uint64_t sums[3])
{
    struct storm *w = storm_new(seed, false);
    struct runner r[CPUS] = {{.w = w, .c = 0}, {.w = w, .c = 1}};
    struct kvm_regs regs;
    pthread_t thread[CPUS];

    stop = 0;
    memset((void *)written, 0, sizeof(written));
    if (w->config.announced) {
        storm_free(w); /* this thread reads without a word */
        return;
    }
    prepare(w);
    for (unsigned c = 0; c < CPUS; c++) {
        start(w, c);
        pthread_create(&thread[c], NULL, run_vcpu, &r[c]);
    }
    for (w->step = 0; w->step < rounds && !r[0].error && !r[1].error; w->step++) {
        stir(w);
    }
    finish(w, thread, r);
    for (unsigned c = 0; c < CPUS; c++) {
        softkvm_ioctl(w->s, w->cpu[c].fd, KVM_GET_REGS, &regs);
        sums[0] += regs.r9;
        sums[1] += r[c].mmios;
        sums[2] += r[c].efaults;
    }
    storm_free(w);
}

int main(void)
{
    const char *is_long = getenv("STRATA_LONG"), *one = getenv("STRATA_STORM_SEED");
    bool many = is_long && strcmp(is_long, "1") == 0;
    uint64_t sums[3] = {0}, n = many ? 2000 : 24;

    for (uint64_t seed = one ? strtoull(one, NULL, 0) : 1, k = 0; k < (one ? 1 : n); k++, seed++) {
        run_seed(seed, many ? 1000 : 150, sums);
    }
    printf("ok 1 - storm of threads: %llu rounds of %u pages, %llu accesses while a slot was away, %llu EFAULTs\n1..1\n",
           (unsigned long long)sums[0], PAGES, (unsigned long long)sums[1], (unsigned long long)sums[2]);
    return 0;
}
