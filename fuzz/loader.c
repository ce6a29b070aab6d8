/*
 * Fuzzer of what a user hands in: kernel images of every kind (first byte even: with host-side unpacking)
 * and, when the first byte is 0xff, the command line, its words separated by zero bytes. Guest RAM is the
 * loader tests' own, which aborts on a write that the loader had not checked.
 */
#include <stddef.h>
#include <stdint.h>

#include "../tests/machine/fake_ram.h"
#include "cli/options.h"

#define RAM_SIZE (UINT64_C(24) << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_options(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1), *argv[64];
    struct cli_options o;
    struct base_error err;
    size_t i;
    int argc = 0;

    memcpy(text, data, size);
    text[size] = '\0';
    for (i = 0; i < size && argc < 64; i += strlen(text + i) + 1) {
        argv[argc++] = text + i;
    }
    err.text[0] = '\0';
    if (cli_options_parse(&o, argc, argv, &err) < 0 && !err.text[0]) {
        abort(); /* a refusal without a word */
    }
    cli_options_fini(&o);
    free(text);
}

static void fuzz_kernel(const uint8_t *data, size_t size, int unpack)
{
    uint8_t *copy = malloc(size ? size : 1);
    struct machine_image image = {copy, size}, initrd = {copy, size};
    struct machine_kernel k = {.kernel = &image, .initrd = &initrd, .kernel_name = "k", .append = "a b", .unpack = unpack};
    struct accel_boot_state cpu = {0};
    struct base_error err = {""};
    static struct fake_ram f;

    memcpy(copy, data, size);
    if (!f.bytes) {
        fake_ram_init(&f, RAM_SIZE);
    }
    if (machine_kernel_load(&k, &f.ram, &cpu, &err) < 0 && !err.text[0]) {
        abort();
    }
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    if (data[0] == 0xff) {
        fuzz_options(data + 1, size - 1);
    } else {
        fuzz_kernel(data + 1, size - 1, !(data[0] & 1));
    }
    return 0;
}
