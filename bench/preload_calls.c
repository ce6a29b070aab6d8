/*
 * System calls as any program makes them, timed: run with and without the preload library by scripts/bench-preload.
 * Prints "NAME NANOSECONDS" lines, the best of several rounds each.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 30
#define CALLS  2000

static int pipe_fd[2];

static void call_read(void)
{
    char byte = 0;

    if (write(pipe_fd[1], &byte, 1) != 1 || read(pipe_fd[0], &byte, 1) != 1) {
        perror("pipe");
    }
}

static void call_open(void)
{
    close(open("/dev/null", O_RDONLY));
}

static void call_stat(void)
{
    struct stat st;

    (void)!stat("/dev/null", &st);
}

static void call_ioctl(void)
{
    int n;

    ioctl(pipe_fd[0], FIONREAD, &n);
}

static void call_mmap(void)
{
    munmap(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096);
}

static void call_sigaction(void)
{
    struct sigaction sa;

    sigaction(SIGUSR1, NULL, &sa);
}

static uint64_t now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

int main(void)
{
    static const struct {
        const char *name;
        void (*call)(void);
    } tests[] = {{"read+write", call_read}, {"open+close", call_open},   {"stat", call_stat},
                 {"ioctl", call_ioctl},     {"mmap+munmap", call_mmap}, {"sigaction", call_sigaction}};

    if (pipe(pipe_fd) != 0) {
        return 1;
    }
    for (unsigned t = 0; t < sizeof(tests) / sizeof(tests[0]); t++) {
        uint64_t best = UINT64_MAX;

        for (int round = 0; round < ROUNDS; round++) {
            uint64_t start = now(), took;

            for (int i = 0; i < CALLS; i++) {
                tests[t].call();
            }
            took = now() - start;
            best = took < best ? took : best;
        }
        printf("%s %.1f\n", tests[t].name, (double)best / CALLS);
    }
    return 0;
}
