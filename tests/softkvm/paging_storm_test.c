/*
 * Two processors of a long-mode guest that remap without end, against everything the host does to their memory. Each
 * vCPU has page tables of its own: it points an entry at a random data page, invalidates it, and adds one to its counter
 * in that page through it, by a locked instruction; it swaps whole tables below its directory, and loads CR3. What
 * it has added where, it also counts in a list. Meanwhile this thread turns dirty logging on, harvests and copies what
 * is reported, makes the host drop ranges (data and the guest's own tables), protects, forks, limits the number of
 * tables; between rounds it deletes and moves the slot. At every stop: counters and lists agree, the copy equals the
 * memory (no write was missed), and every internal invariant holds.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
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

#define RAM_BYTES  0x1000000u
#define DATA_GPA   0x10000000u
#define PAGES      512u
#define DATA_BYTES (PAGES * 4096u)
#define LA_BASE    UINT64_C(0x8000000000) /* PML4 entry 1: the vCPU's own tables */
#define CODE       0x10000u
#define CPUS       2
#define ROUNDS     10

/* What the guest's code works on; at the same address for it as in the lower memory. */
struct guest_arg {
    uint64_t cpu, seed, rounds;
    uint64_t root[2], pd, pt[2];
    uint64_t which;
    uint64_t added[PAGES];
};

/* The guest's program: compiled here, copied there. Calls nothing, and knows no address but its argument's. */
#define GUEST_CODE                                                                                                     \
    __attribute__((section("guest_code"), noinline, used, no_sanitize("address", "thread", "undefined"),               \
                   optimize("no-stack-protector", "no-jump-tables", "no-tree-loop-distribute-patterns")))

GUEST_CODE static void guest_main(struct guest_arg *a)
{
    for (;;) {
        uint64_t r = a->seed = a->seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
        uint64_t page = (r >> 33) % PAGES, slot = (r >> 45) & 511, which = r >> 55 & 1;
        uint64_t la = LA_BASE + slot * 4096;
        volatile uint64_t *pt = (volatile uint64_t *)a->pt[which];

        if (which != a->which) {
            *(volatile uint64_t *)a->pd = a->pt[which] | 0x63;
            a->which = which;
        }
        pt[slot] = (DATA_GPA + page * 4096) | (r >> 56 & 1 ? 0x63 : 0x03);
        if ((r >> 57 & 15) == 0) {
            __asm__ volatile("mov %0, %%cr3" ::"r"(a->root[r >> 61 & 1]) : "memory");
        } else {
            __asm__ volatile("invlpg (%0)" ::"r"(la) : "memory");
        }
        __asm__ volatile("lock incq (%0)" ::"r"(la + a->cpu * 8) : "memory");
        a->added[page]++;
        a->rounds++;
    }
}

GUEST_CODE static void guest_end(void)
{
    __asm__ volatile("hlt");
}

extern const char __start_guest_code[], __stop_guest_code[];

struct world {
    struct softkvm *s;
    int kvm, vm, vcpu[CPUS];
    struct kvm_run *run[CPUS];
    uint8_t *ram, *data;
    struct guest_arg *arg[CPUS];
    uint8_t *copy;
    uint64_t random;
};

static void put64(struct world *w, uint64_t at, uint64_t v)
{
    memcpy(w->ram + at, &v, 8);
}

static void set_slot(struct world *w, uint32_t flags, uint64_t gpa, uint64_t size)
{
    struct kvm_userspace_memory_region m = {1, flags, gpa, size, (uintptr_t)w->data};

    assert_int_equal(softkvm_ioctl(w->s, w->vm, KVM_SET_USER_MEMORY_REGION, &m), 0);
}

/* Lower memory one to one by 2 MiB pages, shared; above, tables for each vCPU. */
static void make_tables(struct world *w, unsigned i)
{
    uint64_t own = 0x100000 + i * 0x10000, low = 0x80000;
    struct guest_arg *a = (struct guest_arg *)(void *)(w->ram + 0x40000 + i * 0x8000);

    put64(w, low, (low + 0x1000) | 0x63);
    for (unsigned k = 0; k < RAM_BYTES >> 21; k++) {
        put64(w, low + 0x1000 + k * 8, (uint64_t)k << 21 | 0xe3);
    }
    for (unsigned k = 0; k < 2; k++) {
        put64(w, own + k * 0x1000, low | 0x63);
        put64(w, own + k * 0x1000 + 8, (own + 0x2000) | 0x63);
        a->root[k] = own + k * 0x1000;
        a->pt[k] = own + 0x4000 + k * 0x1000;
    }
    put64(w, own + 0x2000, (own + 0x3000) | 0x63);
    put64(w, own + 0x3000, a->pt[0] | 0x63);
    a->pd = own + 0x3000;
    a->cpu = i;
    a->seed = w->random + i * 77777;
    w->arg[i] = a;
}

static void start_vcpu(struct world *w, unsigned i)
{
    struct kvm_segment code = {.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .g = 1, .l = 1};
    struct kvm_segment data = {.limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .s = 1, .g = 1, .db = 1};
    struct kvm_regs regs = {.rip = CODE + (uintptr_t)((const char *)guest_main - __start_guest_code), .rflags = 2,
                            .rsp = 0x3f000 - i * 0x1000 - 8, .rdi = (uintptr_t)((uint8_t *)w->arg[i] - w->ram)};
    struct kvm_sregs r;

    assert_int_equal(softkvm_ioctl(w->s, w->vcpu[i], KVM_GET_SREGS, &r), 0);
    r.cs = code;
    r.ds = r.es = r.fs = r.gs = r.ss = data;
    r.cr0 = 0x80010033;
    r.cr3 = w->arg[i]->root[0];
    r.cr4 = 0x220;
    r.efer = 0xd00;
    assert_int_equal(softkvm_ioctl(w->s, w->vcpu[i], KVM_SET_SREGS, &r), 0);
    assert_int_equal(softkvm_ioctl(w->s, w->vcpu[i], KVM_SET_REGS, &regs), 0);
}

static struct world *world_new(enum softkvm_mmu mmu)
{
    struct softkvm_options o = {.size = sizeof(o), .mmu = mmu};
    struct world *w = calloc(1, sizeof(*w));
    struct kvm_userspace_memory_region m = {0, 0, 0, RAM_BYTES, 0};
    int e = 0;

    w->random = 42;
    w->s = softkvm_new(&o, NULL, 0);
    assert_non_null(w->s);
    w->kvm = softkvm_open_system(w->s);
    w->vm = softkvm_ioctl(w->s, w->kvm, KVM_CREATE_VM, NULL);
    w->ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    w->data = mmap(NULL, DATA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    w->copy = calloc(1, DATA_BYTES);
    m.userspace_addr = (uintptr_t)w->ram;
    assert_int_equal(softkvm_ioctl(w->s, w->vm, KVM_SET_USER_MEMORY_REGION, &m), 0);
    set_slot(w, 0, DATA_GPA, DATA_BYTES);
    memcpy(w->ram + CODE, __start_guest_code, (size_t)(__stop_guest_code - __start_guest_code));
    for (unsigned i = 0; i < CPUS; i++) {
        w->vcpu[i] = softkvm_ioctl(w->s, w->vm, KVM_CREATE_VCPU, (void *)(uintptr_t)i);
        assert_true(w->vcpu[i] >= 0);
        w->run[i] = softkvm_mmap(w->s, w->vcpu[i], 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 0, &e);
        make_tables(w, i);
        start_vcpu(w, i);
    }
    return w;
}

static void world_free(struct world *w)
{
    softkvm_free(w->s);
    munmap(w->ram, RAM_BYTES);
    munmap(w->data, DATA_BYTES);
    free(w->copy);
    free(w);
}

struct runner {
    struct world *w;
    unsigned i;
    int result;
};

static void *run_vcpu(void *opaque)
{
    struct runner *r = opaque;

    r->result = softkvm_ioctl(r->w->s, r->w->vcpu[r->i], KVM_RUN, NULL);
    return NULL;
}

static unsigned rnd(struct world *w, unsigned n)
{
    w->random = w->random * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (unsigned)(w->random >> 33) % n;
}

/* Word by word: the guest runs. */
static void copy_page(struct world *w, unsigned page)
{
    for (unsigned i = 0; i < CPUS; i++) {
        const uint64_t *from = (const uint64_t *)(const void *)(w->data + page * 4096u + i * 8);
        uint64_t v = __atomic_load_n(from, __ATOMIC_RELAXED);

        memcpy(w->copy + page * 4096u + i * 8, &v, 8);
    }
}

static void harvest(struct world *w)
{
    uint64_t map[PAGES / 64];
    struct kvm_dirty_log log = {.slot = 1, .dirty_bitmap = map};

    assert_int_equal(softkvm_ioctl(w->s, w->vm, KVM_GET_DIRTY_LOG, &log), 0);
    for (unsigned p = 0; p < PAGES; p++) {
        if (map[p / 64] >> (p % 64) & 1) {
            copy_page(w, p);
        }
    }
}

/* Something that the host does to the guest's memory while it runs. Contents stay. */
static void disturb(struct world *w)
{
    struct softkvm_memory_change c;
    unsigned from = rnd(w, PAGES - 16);

    switch (rnd(w, 6)) {
    case 0:
        assert_true(softkvm_memory_unmapped(w->s, w->data + from * 4096u, 16 * 4096u) >= 0);
        break;
    case 1:
        assert_true(softkvm_memory_unmapped(w->s, w->ram + 0x100000, 0x20000) >= 0);
        break;
    case 2:
        assert_true(softkvm_memory_protected(w->s, w->data + from * 4096u, 16 * 4096u, PROT_READ | PROT_WRITE) >= 0);
        break;
    case 3:
        assert_int_equal(softkvm_memory_begin(w->s, &c, SOFTKVM_CHANGE_FORK, NULL, 0, 0), 0);
        softkvm_memory_end(&c, true);
        break;
    case 4:
        softkvm_ioctl(w->s, w->vm, KVM_SET_NR_MMU_PAGES, (void *)(uintptr_t)(64 + rnd(w, 64)));
        break;
    default:
        assert_true(softkvm_memory_unmapped(w->s, w->ram, RAM_BYTES) >= 0);
    }
}

static void stop_and_judge(struct world *w, struct runner *r, pthread_t *t)
{
    for (unsigned i = 0; i < CPUS; i++) {
        assert_int_equal(softkvm_interrupt(w->s, w->vcpu[i]), 0);
        pthread_join(t[i], NULL);
        if (r[i].result != -EINTR) {
            fail_msg("vCPU %u: %d, exit %u", i, r[i].result, w->run[i]->exit_reason);
        }
    }
    harvest(w);
    for (unsigned p = 0; p < PAGES; p++) {
        for (unsigned i = 0; i < CPUS; i++) {
            uint64_t is, copied, added = w->arg[i]->added[p];

            memcpy(&is, w->data + p * 4096u + i * 8, 8);
            memcpy(&copied, w->copy + p * 4096u + i * 8, 8);
            /* Stopped between the store and the list, the last one is not in the list yet. */
            if (is - added > 1 || is != copied) {
                fail_msg("page %u vCPU %u: is %llu, listed %llu, copied %llu", p, i, (unsigned long long)is,
                         (unsigned long long)added, (unsigned long long)copied);
            }
        }
    }
}

static void one_round(struct world *w)
{
    struct runner r[CPUS] = {{w, 0, 0}, {w, 1, 0}};
    pthread_t t[CPUS];

    for (unsigned i = 0; i < CPUS; i++) {
        assert_int_equal(pthread_create(&t[i], NULL, run_vcpu, &r[i]), 0);
    }
    usleep(500);
    set_slot(w, KVM_MEM_LOG_DIRTY_PAGES, DATA_GPA, DATA_BYTES);
    for (unsigned p = 0; p < PAGES; p++) {
        copy_page(w, p);
    }
    for (int i = 0; i < 16; i++) {
        usleep(rnd(w, 600));
        disturb(w);
        if (i & 1) {
            harvest(w);
        }
    }
    stop_and_judge(w, r, t);
    set_slot(w, 0, DATA_GPA, DATA_BYTES);
}

static void between_rounds(struct world *w, int round)
{
    if (round & 1) {
        set_slot(w, 0, DATA_GPA * 4, DATA_BYTES);
    } else {
        set_slot(w, 0, DATA_GPA, 0);
    }
    set_slot(w, 0, DATA_GPA, DATA_BYTES);
}

static void storm(enum softkvm_mmu mmu)
{
    struct world *w = world_new(mmu);
    struct softkvm_check c = {.size = sizeof(c)};

    for (int round = 0; round < ROUNDS; round++) {
        one_round(w);
        if (softkvm_ioctl(w->s, w->vm, SOFTKVM_CHECK, &c) < 0) {
            fail_msg("round %d: %s", round, c.text);
        }
        between_rounds(w, round);
    }
    print_message("mmu %d: %llu and %llu writes\n", (int)mmu, (unsigned long long)w->arg[0]->rounds,
                  (unsigned long long)w->arg[1]->rounds);
    assert_true(w->arg[0]->rounds > 100 && w->arg[1]->rounds > 100);
    world_free(w);
}

static void storm_on_shadow(void **state)
{
    storm(SOFTKVM_MMU_SHADOW);
}

static void storm_on_ept(void **state)
{
    storm(SOFTKVM_MMU_EPT);
}

static void storm_on_npt(void **state)
{
    storm(SOFTKVM_MMU_NPT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(storm_on_shadow),
        cmocka_unit_test(storm_on_ept),
        cmocka_unit_test(storm_on_npt),
    };

    (void)guest_end;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
