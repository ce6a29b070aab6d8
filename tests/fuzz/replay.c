/*
 * Runs a fuzzer's target on every file of its kept corpus, without libFuzzer: what the fuzzers have found stays
 * tested in every build. A finding aborts, as it does under libFuzzer; an empty corpus is a failure.
 *
 * Usage: fuzz_replay_NAME DIRECTORY|FILE...
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The file's bytes in a block of exactly their size, so that a sanitizer sees a read beyond them. */
static int replay_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    uint8_t *data;
    size_t size;

    if (!f || fstat(fileno(f), &st)) {
        fprintf(stderr, "%s: cannot be read\n", path);
        return -1;
    }
    size = (size_t)st.st_size;
    data = malloc(size ? size : 1);
    if (!data || fread(data, 1, size, f) != size) {
        fprintf(stderr, "%s: cannot be read\n", path);
        free(data);
        fclose(f);
        return -1;
    }
    fclose(f);
    LLVMFuzzerTestOneInput(data, size);
    free(data);
    return 0;
}

/* Files replayed, or -1. */
static int replay_directory(const char *path)
{
    DIR *d = opendir(path);
    char name[4096];
    struct dirent *e;
    int n = 0;

    if (!d) {
        return replay_file(path) ? -1 : 1;
    }
    while (n >= 0 && (e = readdir(d)) != NULL) {
        if (e->d_name[0] != '.') {
            snprintf(name, sizeof(name), "%s/%s", path, e->d_name);
            n = replay_file(name) ? -1 : n + 1;
        }
    }
    closedir(d);
    return n;
}

int main(int argc, char **argv)
{
    int failed = argc < 2;

    for (int i = 1; i < argc; i++) {
        int n = replay_directory(argv[i]);

        failed |= n <= 0;
        printf("%sok %d - %d files of %s\n", n <= 0 ? "not " : "", i, n, strrchr(argv[i], '/') ? strrchr(argv[i], '/') + 1 : argv[i]);
    }
    return failed;
}
