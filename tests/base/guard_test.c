/* Guarded accesses against mappings that go, and what happens to faults that are nobody's. */
#include "base/guard.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char *page_with(int prot)
{
    char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_ptr_not_equal(p, MAP_FAILED);
    memset(p, 0x5a, 8192);
    assert_int_equal(mprotect(p + 4096, 4096, prot), 0);
    return p;
}

/* The test framework puts handlers of its own over all others before each test: so in its body. */
#define GUARDED(name)                                                                              \
    static void name##_body(void);                                                                 \
    static void name(void **state)                                                                 \
    {                                                                                              \
        assert_int_equal(base_guard_install(), 0);                                                 \
        name##_body();                                                                             \
        base_guard_uninstall();                                                                    \
    }                                                                                              \
    static void name##_body(void)

GUARDED(copies_stop_at_a_hole)
{
    char *p = page_with(PROT_NONE), buf[64];

    memset(buf, 0, sizeof(buf));
    assert_true(base_guard_copy(buf, p + 4032, 64));
    assert_int_equal(buf[63], 0x5a);
    assert_false(base_guard_copy(buf, p + 4064, 64));
    assert_false(base_guard_copy(p + 4090, buf, 10));
    assert_int_equal(munmap(p, 8192), 0);
    assert_false(base_guard_copy(buf, p, 1));
    assert_true(base_guard_copy(buf, p, 0));
}

GUARDED(single_accesses)
{
    char *p = page_with(PROT_READ);
    uint64_t v64 = 7;
    uint32_t v32 = 7;
    bool done = false;

    assert_true(base_guard_load64(p + 4096, &v64));
    assert_true(v64 == UINT64_C(0x5a5a5a5a5a5a5a5a));
    assert_true(base_guard_load32(p + 4096, &v32));
    assert_int_equal(v32, 0x5a5a5a5a);
    assert_true(base_guard_store64(p, 1));
    assert_true(base_guard_store32(p + 8, 2));
    assert_int_equal(p[0] + p[8], 3);
    assert_false(base_guard_store64(p + 4096, 1));
    assert_true(base_guard_exchange(p, 8, 1, 5, &done) && done && p[0] == 5);
    assert_true(base_guard_exchange(p, 8, 1, 6, &done) && !done && p[0] == 5);
    assert_true(base_guard_exchange(p, 4, 5, 7, &done) && done && p[0] == 7);
    assert_true(base_guard_exchange(p, 4, 5, 8, &done) && !done && p[0] == 7);
    assert_false(base_guard_exchange(p + 4096, 8, 0, 1, &done));
    assert_false(base_guard_exchange(p + 4096, 4, 0, 1, &done));
    assert_false(base_guard_store32(p + 4096, 1));
    assert_int_equal(munmap(p, 8192), 0);
    v64 = v32 = 7;
    assert_false(base_guard_load64(p, &v64));
    assert_false(base_guard_load32(p, &v32));
    assert_int_equal(v64 + v32, 14);
}

GUARDED(end_of_a_file)
{
    int fd = memfd_create("guard", 0);
    char *p, c;

    assert_int_equal(ftruncate(fd, 8192), 0);
    p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(base_guard_copy(&c, p + 5000, 1));
    assert_int_equal(ftruncate(fd, 4096), 0);
    assert_false(base_guard_copy(&c, p + 5000, 1)); /* SIGBUS */
    assert_true(base_guard_copy(&c, p + 50, 1));
    munmap(p, 8192);
    close(fd);
}

struct stretch {
    struct base_guard g;
    uintptr_t start, end;
};

static bool claims(struct base_guard *g, const struct base_guard_fault *f)
{
    struct stretch *s = (struct stretch *)g;

    return f->addr >= s->start && f->addr < s->end;
}

static __attribute__((noinline)) void touch(volatile char *p)
{
    *p = 1;
}

GUARDED(stretches_nest)
{
    char *p = page_with(PROT_NONE), *q = page_with(PROT_NONE);
    struct stretch outer = {{.claims = claims}, (uintptr_t)p, (uintptr_t)p + 8192};
    struct stretch inner = {{.claims = claims}, (uintptr_t)q, (uintptr_t)q + 8192};
    volatile int got_outer = 0, got_inner = 0;

    if (base_guard_set(&outer.g)) {
        got_outer++;
        assert_true(outer.g.fault.addr == (uintptr_t)p + 4096);
        assert_false(outer.g.fault.is_bus);
    } else {
        base_guard_enter(&outer.g);
        if (base_guard_set(&inner.g)) {
            got_inner++;
        } else {
            base_guard_enter(&inner.g);
            touch(q + 4096);
        }
        base_guard_enter(&inner.g);
        touch(p + 4096); /* not the inner one's */
    }
    assert_int_equal(got_inner, 1);
    assert_int_equal(got_outer, 1);
    munmap(p, 8192);
    munmap(q, 8192);
}

static volatile sig_atomic_t theirs;
static sigjmp_buf back;

static void their_handler(int signo)
{
    theirs++;
    siglongjmp(back, 1);
}

/* A fault that no guard claims is the earlier handler's; the last user's end gives it back. */
static void others_faults_are_passed_on(void **state)
{
    struct sigaction act = {.sa_handler = their_handler, .sa_flags = SA_NODEFER}, now;
    char *p = page_with(PROT_NONE);
    struct stretch none = {{.claims = claims}, 1, 2};

    assert_int_equal(sigaction(SIGSEGV, &act, NULL), 0);
    assert_int_equal(base_guard_install(), 0);
    assert_int_equal(base_guard_install(), 0);
    theirs = 0;
    if (!sigsetjmp(back, 1)) {
        base_guard_enter(&none.g);
        touch(p + 4096);
    }
    base_guard_leave(&none.g);
    assert_int_equal(theirs, 1);
    base_guard_uninstall();
    assert_false(base_guard_copy(&(char){0}, p + 4096, 1));
    base_guard_uninstall();
    assert_int_equal(sigaction(SIGSEGV, NULL, &now), 0);
    assert_ptr_equal(now.sa_handler, their_handler);
    act.sa_handler = SIG_DFL;
    sigaction(SIGSEGV, &act, NULL);
    munmap(p, 8192);
}

static struct sigaction before_theirs;

/* Puts itself over ours and passes on, as a good neighbour does. */
static void neighbour(int signo, siginfo_t *si, void *uc)
{
    theirs++;
    before_theirs.sa_sigaction(signo, si, uc);
}

static void covered_handlers_come_to_the_top_again(void **state)
{
    struct sigaction first = {.sa_handler = their_handler, .sa_flags = SA_NODEFER};
    struct sigaction over = {.sa_sigaction = neighbour, .sa_flags = SA_SIGINFO | SA_NODEFER};
    char *p = page_with(PROT_NONE);

    assert_int_equal(sigaction(SIGSEGV, &first, NULL), 0);
    assert_int_equal(base_guard_install(), 0);
    assert_int_equal(sigaction(SIGSEGV, &over, &before_theirs), 0);
    theirs = 0;
    assert_false(base_guard_copy(&(char){0}, p + 4096, 1));
    assert_int_equal(theirs, 1); /* through the neighbour */
    base_guard_refresh();
    assert_false(base_guard_copy(&(char){0}, p + 4096, 1));
    assert_int_equal(theirs, 1); /* not any more */
    if (!sigsetjmp(back, 1)) {
        touch(p + 4096); /* ours, the neighbour, ours again, the first */
    }
    assert_int_equal(theirs, 3);
    base_guard_uninstall();
    sigaction(SIGSEGV, &before_theirs, NULL);
    munmap(p, 8192);
}

/* Without a handler before ours the process dies of its own faults as ever. */
static void own_faults_still_kill(void **state)
{
    char *p = page_with(PROT_NONE);
    pid_t child = fork();
    int status;

    if (child == 0) {
        struct sigaction dfl = {.sa_handler = SIG_DFL};

        sigaction(SIGSEGV, &dfl, NULL);
        if (base_guard_install() == 0) {
            touch(p + 4096);
        }
        _exit(1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    munmap(p, 8192);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_stop_at_a_hole),
        cmocka_unit_test(single_accesses),
        cmocka_unit_test(end_of_a_file),
        cmocka_unit_test(stretches_nest),
        cmocka_unit_test(others_faults_are_passed_on),
        cmocka_unit_test(covered_handlers_come_to_the_top_again),
        cmocka_unit_test(own_faults_still_kill),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
