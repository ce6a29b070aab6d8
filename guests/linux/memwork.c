/*
 * The demo's memory workload, run as a user program of a Linux guest: anonymous memory filled and
 * summed, copy on write across fork, partial unmap, tmpfs copies. Every step verifies itself; the
 * first difference ends the program with status 1.
 *
 * While the buffer is mapped and touched it also says "explain ADDRESS" for one address of its own and
 * one of the kernel's to port 0xe9, where the monitor listens: it then explains them through every
 * layer, with this process's page tables loaded.
 *
 * Usage: memwork [MiB]
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096u

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= UINT64_C(0xff51afd7ed558ccd);
    x ^= x >> 33;
    return x;
}

static void fill(uint64_t *p, size_t words, uint64_t seed)
{
    for (size_t i = 0; i < words; i++) {
        p[i] = seed + i * UINT64_C(0x9e3779b97f4a7c15);
    }
}

static uint64_t sum(const uint64_t *p, size_t words)
{
    uint64_t s = 0;

    for (size_t i = 0; i < words; i++) {
        s = (s << 1 | s >> 63) ^ p[i];
    }
    return mix(s);
}

/* What sum() must give, without reading the memory. */
static uint64_t expected_sum(size_t words, uint64_t seed)
{
    uint64_t s = 0, v = seed;

    for (size_t i = 0; i < words; i++) {
        s = (s << 1 | s >> 63) ^ v;
        v += UINT64_C(0x9e3779b97f4a7c15);
    }
    return mix(s);
}

static void fail(const char *what)
{
    printf("memwork: FAILED: %s\n", what);
    exit(1);
}

static void say_explain(unsigned long addr)
{
    char line[40];

    if (ioperm(0xe9, 1, 1) != 0) {
        return;
    }
    snprintf(line, sizeof(line), "explain %lx\n", addr);
    for (const char *c = line; *c; c++) {
        outb((unsigned char)*c, 0xe9);
    }
}

/* A kernel address that is mapped in every process: the start of the kernel's text. */
static unsigned long kernel_text(void)
{
    FILE *f = fopen("/proc/kallsyms", "r");
    unsigned long addr = 0;
    char type, name[128];

    while (f && fscanf(f, "%lx %c %127s%*[^\n]", &addr, &type, name) == 3) {
        if (strcmp(name, "_stext") == 0) {
            fclose(f);
            return addr;
        }
    }
    if (f) {
        fclose(f);
    }
    return 0;
}

/* The child sees what the parent wrote, writes its own, and the parent's stays. */
static void check_fork(uint64_t *buf, size_t words, uint64_t seed)
{
    int status = 0;
    pid_t pid = fork();

    if (pid < 0) {
        fail("fork");
    }
    if (pid == 0) {
        if (sum(buf, words) != expected_sum(words, seed)) {
            _exit(2);
        }
        for (size_t i = 0; i < words; i += 4 * PAGE / sizeof(*buf)) {
            buf[i] ^= UINT64_C(0xdeadbeef);
        }
        _exit(0);
    }
    if (waitpid(pid, &status, 0) != pid || status != 0) {
        fail("the child read something else than its parent wrote");
    }
    if (sum(buf, words) != expected_sum(words, seed)) {
        fail("a child's write reached its parent");
    }
}

static void copy_file(const char *from, const char *to, void *buf, size_t size)
{
    int in = open(from, O_RDONLY), out = open(to, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    ssize_t n;

    if (in < 0 || out < 0) {
        fail("open in tmpfs");
    }
    while ((n = read(in, buf, size)) > 0) {
        if (write(out, buf, (size_t)n) != n) {
            fail("write to tmpfs");
        }
    }
    close(in);
    close(out);
}

static void check_tmpfs(size_t bytes)
{
    static uint64_t page[16 * PAGE / sizeof(uint64_t)];
    int fd = open("/tmp/a", O_CREAT | O_TRUNC | O_RDWR, 0600);
    uint64_t *map, want;

    if (fd < 0) {
        fail("create in tmpfs");
    }
    for (size_t done = 0; done < bytes; done += sizeof(page)) {
        fill(page, sizeof(page) / sizeof(*page), done);
        if (write(fd, page, sizeof(page)) != (ssize_t)sizeof(page)) {
            fail("fill tmpfs");
        }
    }
    map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    want = map == MAP_FAILED ? 0 : sum(map, bytes / sizeof(*map));
    munmap(map, bytes);
    close(fd);
    copy_file("/tmp/a", "/tmp/b", page, sizeof(page));
    fd = open("/tmp/b", O_RDONLY);
    map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED || sum(map, bytes / sizeof(*map)) != want) {
        fail("the copy in tmpfs differs");
    }
    munmap(map, bytes);
    close(fd);
    unlink("/tmp/a");
    unlink("/tmp/b");
}

int main(int argc, char **argv)
{
    size_t mib = argc > 1 ? strtoul(argv[1], NULL, 10) : 256;
    size_t bytes = mib << 20, words = bytes / sizeof(uint64_t);
    uint64_t seed = UINT64_C(0x5354524154410000);
    uint64_t *buf = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (bytes == 0 || buf == MAP_FAILED) {
        fail("mmap");
    }
    fill(buf, words, seed);
    if (sum(buf, words) != expected_sum(words, seed)) {
        fail("memory does not hold what was written");
    }
    printf("memwork: %zu MiB filled and summed: %016llx\n", mib,
           (unsigned long long)sum(buf, words));
    say_explain((unsigned long)(buf + words / 2));
    say_explain(kernel_text());
    check_fork(buf, words / 8, seed);
    printf("memwork: fork and copy on write hold\n");
    munmap(buf, bytes / 2);
    if (sum(buf + words / 2, words / 4) != expected_sum(words / 4, seed + words / 2 * UINT64_C(0x9e3779b97f4a7c15))) {
        fail("unmapping one half disturbed the other");
    }
    munmap((char *)buf + bytes / 2, bytes / 2);
    check_tmpfs(32u << 20);
    printf("memwork: tmpfs copy holds\n");
    printf("memwork: ok\n");
    return 0;
}
