/*
 * No write is missed by the dirty log. Two vCPUs run real code that increments a word in every page,
 * over and over, while this thread turns logging on, harvests, copies what is reported, and stops them:
 * the copy must then equal the memory, page for page. Between rounds the slot is deleted and made
 * anew, moved away and back, or its memory discarded. On every kind of MMU, with each way of noticing writes; the
 * engine's own check, which also looks into the processors' TLBs, runs while they stand still.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "softkvm/inspect.h"
#include "softkvm/softkvm.h"

#define LOW_BYTES  0x20000u
#define PAGES      1024u
#define DATA_GPA   0x400000u
#define DATA_BYTES (PAGES * 4096u)
#define ROUNDS     6 /* per kind; ten times as many in the long set */

/* 32-bit code: EBX first address, ESI how many pages; every second page is the other vCPU's. */
static const uint8_t code[] = {
    0x89, 0xdf,                         /* again: mov edi, ebx */
    0x89, 0xf1,                         /*        mov ecx, esi */
    0xff, 0x07,                         /* next:  inc dword [edi] */
    0x81, 0xc7, 0x00, 0x20, 0x00, 0x00, /*        add edi, 0x2000 */
    0x49,                               /*        dec ecx */
    0x75, 0xf5,                         /*        jnz next */
    0xeb, 0xef,                         /*        jmp again */
};

struct world {
    struct softkvm *s;
    int kvm, vm, vcpu[2];
    struct kvm_run *run[2];
    char *low, *data;
    uint32_t copy[PAGES];
    int stop;
};

static uint32_t word_of(const struct world *w, unsigned page)
{
    return __atomic_load_n((const uint32_t *)(const void *)(w->data + page * 4096u), __ATOMIC_RELAXED);
}

static void slot(struct world *w, uint32_t flags, uint64_t at, uint64_t size)
{
    struct kvm_userspace_memory_region m = {1, flags, at, size, (uintptr_t)w->data};

    assert_int_equal(softkvm_ioctl(w->s, w->vm, KVM_SET_USER_MEMORY_REGION, &m), 0);
}

static void start_state(struct world *w, int i)
{
    struct kvm_segment seg = {.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1,
                              .db = 1, .g = 1};
    struct kvm_regs regs = {.rip = 0x1000, .rflags = 2, .rbx = DATA_GPA + (unsigned)i * 4096u,
                            .rsi = PAGES / 2};
    struct kvm_sregs sregs;

    assert_int_equal(softkvm_ioctl(w->s, w->vcpu[i], KVM_GET_SREGS, &sregs), 0);
    sregs.cr0 |= 1;
    sregs.cs = seg;
    seg.type = 3;
    seg.selector = 16;
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = seg;
    assert_int_equal(softkvm_ioctl(w->s, w->vcpu[i], KVM_SET_SREGS, &sregs), 0);
    assert_int_equal(softkvm_ioctl(w->s, w->vcpu[i], KVM_SET_REGS, &regs), 0);
}

/* Kinds of MMU and ways to notice a write. */
static const struct softkvm_options kinds[] = {
    {.size = sizeof(kinds[0])},
    {.size = sizeof(kinds[0]), .stage2 = SOFTKVM_STAGE2_PML},
    {.size = sizeof(kinds[0]), .stage2 = SOFTKVM_STAGE2_NO_AD},
    {.size = sizeof(kinds[0]), .stage2 = SOFTKVM_STAGE2_NX_HUGE | SOFTKVM_STAGE2_NO_EAGER_SPLIT},
    {.size = sizeof(kinds[0]), .mmu = SOFTKVM_MMU_NPT},
    {.size = sizeof(kinds[0]), .mmu = SOFTKVM_MMU_NPT, .ept_levels = 5, .max_page_level = 1},
    {.size = sizeof(kinds[0]), .mmu = SOFTKVM_MMU_SHADOW},
};

/* Pages at an address that is a multiple of 2 MiB, so that there are huge ones. */
static char *huge_pages(size_t bytes)
{
    char *p = mmap(NULL, bytes + (2u << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_true(p != MAP_FAILED);
    return (char *)(((uintptr_t)p + (2u << 20) - 1) & ~(uintptr_t)((2u << 20) - 1));
}

static struct world *world_new(const struct softkvm_options *kind)
{
    struct world *w = calloc(1, sizeof(*w));
    struct kvm_userspace_memory_region m = {0, 0, 0, LOW_BYTES, 0};
    int e = 0;

    w->s = softkvm_new(kind, NULL, 0);
    assert_non_null(w->s);
    w->kvm = softkvm_open_system(w->s);
    w->vm = softkvm_ioctl(w->s, w->kvm, KVM_CREATE_VM, NULL);
    w->low = mmap(NULL, LOW_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    w->data = huge_pages(DATA_BYTES);
    memcpy(w->low + 0x1000, code, sizeof(code));
    m.userspace_addr = (uintptr_t)w->low;
    assert_int_equal(softkvm_ioctl(w->s, w->vm, KVM_SET_USER_MEMORY_REGION, &m), 0);
    slot(w, 0, DATA_GPA, DATA_BYTES);
    for (int i = 0; i < 2; i++) {
        w->vcpu[i] = softkvm_ioctl(w->s, w->vm, KVM_CREATE_VCPU, (void *)(uintptr_t)i);
        assert_true(w->vcpu[i] >= 0);
        w->run[i] = softkvm_mmap(w->s, w->vcpu[i], 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 0, &e);
        start_state(w, i);
    }
    return w;
}

struct runner {
    struct world *w;
    int i, result;
};

static void *run_vcpu(void *opaque)
{
    struct runner *r = opaque;

    r->result = softkvm_ioctl(r->w->s, r->w->vcpu[r->i], KVM_RUN, NULL);
    return NULL;
}

static void harvest(struct world *w)
{
    uint64_t map[PAGES / 64];
    struct kvm_dirty_log log = {.slot = 1, .dirty_bitmap = map};

    assert_int_equal(softkvm_ioctl(w->s, w->vm, KVM_GET_DIRTY_LOG, &log), 0);
    for (unsigned p = 0; p < PAGES; p++) {
        if (map[p / 64] >> (p % 64) & 1) {
            w->copy[p] = word_of(w, p);
        }
    }
}

static void between_rounds(struct world *w, int round)
{
    switch (round % 4) {
    case 0:
        slot(w, 0, DATA_GPA, 0);
        slot(w, 0, DATA_GPA, DATA_BYTES);
        break;
    case 1:
        slot(w, 0, DATA_GPA * 4, DATA_BYTES);
        slot(w, 0, DATA_GPA, DATA_BYTES);
        break;
    case 2:
        assert_int_equal(madvise(w->data, DATA_BYTES / 2, MADV_DONTNEED), 0);
        assert_int_equal(softkvm_memory_discarded(w->s, w->data, DATA_BYTES / 2), 0);
        break;
    default:
        break;
    }
}

static void verify(struct world *w)
{
    struct softkvm_check c = {.size = sizeof(c)};

    if (softkvm_ioctl(w->s, w->vm, SOFTKVM_CHECK, &c) < 0) {
        fail_msg("check: %s", c.text);
    }
}

/* Logging goes on while the guest runs; returns how many pages changed in the round. */
static unsigned one_round(struct world *w)
{
    struct runner r[2] = {{w, 0, 0}, {w, 1, 0}};
    pthread_t t[2];
    unsigned changed = 0;
    uint32_t before[PAGES];

    for (unsigned p = 0; p < PAGES; p++) {
        before[p] = word_of(w, p);
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&t[i], NULL, run_vcpu, &r[i]), 0);
    }
    usleep(500);
    slot(w, KVM_MEM_LOG_DIRTY_PAGES, DATA_GPA, DATA_BYTES);
    for (unsigned p = 0; p < PAGES; p++) {
        w->copy[p] = word_of(w, p);
    }
    for (int i = 0; i < 12; i++) {
        usleep(300);
        harvest(w);
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(softkvm_interrupt(w->s, w->vcpu[i]), 0);
        pthread_join(t[i], NULL);
        assert_int_equal(r[i].result, -EINTR);
    }
    verify(w);
    harvest(w);
    for (unsigned p = 0; p < PAGES; p++) {
        if (w->copy[p] != word_of(w, p)) {
            fail_msg("page %u: copied %u, is %u", p, w->copy[p], word_of(w, p));
        }
        changed += word_of(w, p) != before[p];
    }
    slot(w, 0, DATA_GPA, DATA_BYTES);
    return changed;
}

static void no_write_is_missed(void **state)
{
    struct world *w = world_new(*state);
    int rounds = getenv("STRATA_LONG") ? 10 * ROUNDS : ROUNDS;
    unsigned changed = 0;

    for (int round = 0; round < rounds; round++) {
        changed += one_round(w);
        between_rounds(w, round);
        verify(w);
    }
    assert_true(changed > PAGES * (unsigned)rounds / 8);
    softkvm_free(w->s);
    munmap(w->low, LOW_BYTES);
    munmap(w->data, DATA_BYTES);
    free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(no_write_is_missed, (void *)&kinds[0]),
        cmocka_unit_test_prestate(no_write_is_missed, (void *)&kinds[1]),
        cmocka_unit_test_prestate(no_write_is_missed, (void *)&kinds[2]),
        cmocka_unit_test_prestate(no_write_is_missed, (void *)&kinds[3]),
        cmocka_unit_test_prestate(no_write_is_missed, (void *)&kinds[4]),
        cmocka_unit_test_prestate(no_write_is_missed, (void *)&kinds[5]),
        cmocka_unit_test_prestate(no_write_is_missed, (void *)&kinds[6]),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
