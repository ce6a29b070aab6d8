/*
 * The kernel loaders on images made here byte by byte: what lands where, first registers, and that damaged
 * images are refused with a line and without a write outside RAM.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <elf.h>
#include <lzma.h>
#include <stdio.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "fake_ram.h"

#define RAM_SIZE (UINT64_C(64) << 20)

static struct machine_kernel kernel_of(struct machine_image *image)
{
    return (struct machine_kernel){.kernel = image, .kernel_name = "test", .append = "one two", .unpack = 1};
}

/* An ELF with one segment of 64 bytes at paddr and, if note, a PVH note. Returns its size. */
static size_t make_elf64(uint8_t *b, uint16_t machine, uint64_t paddr, int note)
{
    Elf64_Ehdr e = {.e_type = ET_EXEC, .e_machine = machine, .e_version = 1, .e_entry = 0xffffffff80000010,
                    .e_phoff = 64, .e_ehsize = 64, .e_phentsize = 56, .e_phnum = note ? 2 : 1};
    Elf64_Phdr p = {.p_type = PT_LOAD, .p_offset = 512, .p_vaddr = 0xffffffff80000000, .p_paddr = paddr,
                    .p_filesz = 64, .p_memsz = 4096};
    Elf64_Phdr n = {.p_type = PT_NOTE, .p_offset = 256, .p_filesz = 20};
    uint32_t words[5] = {4, 4, 18, 0x006e6558, (uint32_t)paddr + 0x20};
    int i;

    memset(b, 0, 1024);
    memcpy(e.e_ident, ELFMAG "\2\1\1", 7);
    memcpy(b, &e, sizeof(e));
    memcpy(b + 64, &p, sizeof(p));
    memcpy(b + 120, &n, sizeof(n));
    memcpy(b + 256, words, sizeof(words));
    for (i = 0; i < 64; i++) {
        b[512 + i] = i + 1;
    }
    return 1024;
}

static void pvh(void **state)
{
    uint8_t bytes[1024];
    struct machine_image image = {bytes, make_elf64(bytes, EM_X86_64, 0x200000, 1)};
    struct machine_kernel k = kernel_of(&image);
    struct accel_boot_state cpu = {0};
    struct base_error err = {""};
    struct fake_ram f;
    uint64_t cmdline;
    uint32_t magic;

    fake_ram_init(&f, RAM_SIZE);
    k.rsdp = gpa(0xe0000);
    assert_int_equal(machine_kernel_load(&k, &f.ram, &cpu, &err), 0);
    assert_int_equal(cpu.mode, ACCEL_MODE_PROT32);
    assert_int_equal(cpu.rip, 0x200020);
    assert_memory_equal(f.bytes + 0x200000, bytes + 512, 64);
    assert_int_equal(k.kernel_end, 0x201000);
    memcpy(&magic, f.bytes + cpu.rbx, 4);
    memcpy(&cmdline, f.bytes + cpu.rbx + 24, 8);
    assert_int_equal(magic, 0x336ec578);
    assert_string_equal((char *)f.bytes + cmdline, "one two");
    fake_ram_fini(&f);
}

static int load(struct machine_image *image, struct base_error *err)
{
    struct machine_kernel k = kernel_of(image);
    struct accel_boot_state cpu = {0};
    struct fake_ram f;
    int ret;

    fake_ram_init(&f, RAM_SIZE);
    err->text[0] = '\0';
    ret = machine_kernel_load(&k, &f.ram, &cpu, err);
    fake_ram_fini(&f);
    return ret;
}

static void expect_refusal(struct machine_image *image, const char *words)
{
    struct base_error err;
    int ret = load(image, &err);

    if (ret >= 0 || !strstr(err.text, words) || strchr(err.text, '\n')) {
        fail_msg("%d '%s' instead of '%s'", ret, err.text, words);
    }
}

static void elf_refused(void **state)
{
    uint8_t bytes[1024];
    struct machine_image image = {bytes, make_elf64(bytes, EM_AARCH64, 0x200000, 1)};
    uint64_t huge = UINT64_MAX - 10;

    expect_refusal(&image, "AArch64");
    make_elf64(bytes, EM_X86_64, 0x200000, 0);
    expect_refusal(&image, "PVH");
    make_elf64(bytes, EM_X86_64, UINT64_C(0xfffffffffffff000), 1);
    expect_refusal(&image, "do not fit");
    make_elf64(bytes, EM_X86_64, RAM_SIZE - 4095, 1);
    expect_refusal(&image, "do not fit");
    make_elf64(bytes, EM_X86_64, 0x200000, 1);
    memcpy(bytes + 64 + offsetof(Elf64_Phdr, p_offset), &huge, 8);
    expect_refusal(&image, "beyond its end");
    make_elf64(bytes, EM_X86_64, 0x200000, 1);
    memcpy(bytes + 64 + offsetof(Elf64_Phdr, p_memsz), &huge, 8);
    expect_refusal(&image, "do not fit");
    make_elf64(bytes, EM_X86_64, 0x200000, 1);
    image.size = 100;
    expect_refusal(&image, "truncated");
    image.size = 20;
    expect_refusal(&image, "ELF");
    image.size = 3;
    expect_refusal(&image, "not a kernel");
}

/* Every prefix of a good image either loads or is refused; nothing is read or written out of bounds (the
 * sanitizers and fake_ram_write() watch). */
static void prefixes(void **state)
{
    uint8_t bytes[1024];
    size_t n, size = make_elf64(bytes, EM_X86_64, 0x200000, 1);
    struct base_error err;

    for (n = 0; n <= size; n += 7) {
        uint8_t *copy = malloc(n ? n : 1);
        struct machine_image image = {copy, n};

        memcpy(copy, bytes, n);
        assert_true(load(&image, &err) == 0 || err.text[0]);
        free(copy);
    }
}

static void multiboot_flat(void **state)
{
    uint8_t bytes[256] = {0};
    uint32_t h[8] = {0x1badb002, 0x10003, 0, 0x100010, 0x100000, 0x100080, 0x102000, 0x100044};
    struct machine_image image = {bytes, sizeof(bytes)};
    struct machine_kernel k = kernel_of(&image);
    struct accel_boot_state cpu = {0};
    struct base_error err = {""};
    struct fake_ram f;
    uint32_t info[22];

    h[2] = -(h[0] + h[1]);
    memcpy(bytes + 16, h, sizeof(h));
    bytes[127] = 0xaa;
    bytes[128] = 0xbb; /* behind load_end: not to be loaded */
    fake_ram_init(&f, RAM_SIZE);
    assert_int_equal(machine_kernel_load(&k, &f.ram, &cpu, &err), 0);
    assert_int_equal(cpu.rip, 0x100044);
    assert_int_equal(cpu.rax, 0x2badb002);
    assert_int_equal(f.bytes[0x10007f], 0xaa);
    assert_int_equal(f.bytes[0x100080], 0);
    assert_true(cpu.rbx >= 0x102000);
    memcpy(info, f.bytes + cpu.rbx, sizeof(info));
    assert_string_equal((char *)f.bytes + info[4], "test one two");
    assert_int_equal(info[1], 639);
    assert_int_equal(info[2], (RAM_SIZE - 0x100000) >> 10);
    assert_int_equal(info[5], 0);
    fake_ram_fini(&f);
    image.size = 100;
    expect_refusal(&image, "truncated Multiboot");
    image.size = sizeof(bytes);
    h[4] = 0x200000;
    memcpy(bytes + 16, h, sizeof(h));
    expect_refusal(&image, "load address");
    h[4] = 0x100000;
    h[6] = 0xfffffff0;
    memcpy(bytes + 16, h, sizeof(h));
    expect_refusal(&image, "do not fit");
    h[1] = 0x10013;
    h[2] = -(h[0] + h[1]);
    memcpy(bytes + 16, h, sizeof(h));
    expect_refusal(&image, "features");
}

static void multiboot_modules(void **state)
{
    uint8_t bytes[256] = {0};
    uint32_t h[8] = {0x1badb002, 0x10003, 0, 0x100000, 0x100000, 0, 0, 0x100020};
    struct machine_image image = {bytes, sizeof(bytes)};
    struct machine_kernel k = kernel_of(&image);
    struct accel_boot_state cpu = {0};
    struct base_error err = {""};
    char path[] = "/tmp/strata-module-XXXXXX", arg[128];
    uint32_t info[22], module[8];
    struct fake_ram f;
    int fd = mkstemp(path);

    assert_true(fd >= 0 && write(fd, "module bytes", 12) == 12);
    close(fd);
    h[2] = -(h[0] + h[1]);
    memcpy(bytes, h, sizeof(h));
    snprintf(arg, sizeof(arg), "%s first words,%s", path, path);
    k.initrd_arg = arg;
    fake_ram_init(&f, RAM_SIZE);
    assert_int_equal(machine_kernel_load(&k, &f.ram, &cpu, &err), 0);
    memcpy(info, f.bytes + cpu.rbx, sizeof(info));
    assert_int_equal(info[5], 2);
    memcpy(module, f.bytes + info[6], sizeof(module));
    assert_int_equal(module[0] % 4096, 0);
    assert_int_equal(module[1] - module[0], 12);
    assert_memory_equal(f.bytes + module[0], "module bytes", 12);
    assert_memory_equal(f.bytes + module[4], "module bytes", 12);
    assert_non_null(strstr((char *)f.bytes + module[2], "first words"));
    assert_null(strchr((char *)f.bytes + module[2], ','));
    unlink(path);
    k.initrd_arg = "/nowhere/at/all";
    assert_true(machine_kernel_load(&k, &f.ram, &cpu, &err) < 0);
    assert_non_null(strstr(err.text, "/nowhere/at/all"));
    fake_ram_fini(&f);
}

/* Setup header of protocol 2.15 before a payload at offset 0x300 of the code. */
static size_t make_bzimage(uint8_t *b, const uint8_t *payload, uint32_t length)
{
    uint32_t code = 2 * 512, word;

    memset(b, 0, code + 0x400);
    b[0x1f1] = 1;
    memcpy(b + 0x202, "HdrS", 4);
    b[0x201] = 0x66;
    b[0x206] = 0x0f;
    b[0x207] = 0x02;
    b[0x211] = 1;
    b[0x236] = 1;
    word = 0x7fffffff;
    memcpy(b + 0x22c, &word, 4);
    word = 0x300;
    memcpy(b + 0x248, &word, 4);
    memcpy(b + 0x24c, &length, 4);
    word = 0x1000000;
    memcpy(b + 0x258, &word, 4);
    word = 0x100000;
    memcpy(b + 0x260, &word, 4);
    memcpy(b + code + 0x300, payload, length);
    return code + 0x400 + length;
}

static void bzimage(void **state)
{
    uint8_t elf[1024], packed[2048], bytes[8192], initrd_bytes[5000];
    size_t n = make_elf64(elf, EM_X86_64, 0x1000000, 0);
    size_t length = ZSTD_compress(packed, sizeof(packed), elf, n, 3);
    struct machine_image image = {bytes, 0}, initrd = {initrd_bytes, sizeof(initrd_bytes)};
    struct machine_kernel k = kernel_of(&image);
    struct accel_boot_state cpu = {0};
    struct base_error err = {""};
    uint32_t size = n, at;
    struct fake_ram f;

    memset(initrd_bytes, 0x5c, sizeof(initrd_bytes));
    memcpy(packed + length, &size, 4);
    image.size = make_bzimage(bytes, packed, length + 4);
    k.initrd = &initrd;
    fake_ram_init(&f, RAM_SIZE);
    assert_int_equal(machine_kernel_load(&k, &f.ram, &cpu, &err), 0);
    assert_int_equal(cpu.mode, ACCEL_MODE_LONG64);
    assert_int_equal(cpu.rip, 0x1000010); /* the entry's virtual address less the segment's */
    assert_memory_equal(f.bytes + 0x1000000, elf + 512, 64);
    memcpy(&at, f.bytes + cpu.rsi + 0x218, 4);
    assert_int_equal(at % 4096, 0);
    assert_true(at + sizeof(initrd_bytes) <= RAM_SIZE && at >= 0x1100000);
    assert_memory_equal(f.bytes + at, initrd_bytes, sizeof(initrd_bytes));
    memcpy(&at, f.bytes + cpu.rsi + 0x228, 4);
    assert_string_equal((char *)f.bytes + at, "one two");
    assert_true(f.bytes[cpu.rsi + 0x1e8] >= 4);
    /* Left packed: the guest does it, at the entry 0x200 into its code. */
    k.unpack = 0;
    assert_int_equal(machine_kernel_load(&k, &f.ram, &cpu, &err), 0);
    assert_int_equal(cpu.rip, 0x1000200);
    assert_memory_equal(f.bytes + 0x1000000, bytes + 1024, 0x300);
    fake_ram_fini(&f);
    memset(packed + 6, 0xff, 16);
    image.size = make_bzimage(bytes, packed, length + 4);
    expect_refusal(&image, "damaged");
    image.size = 1200;
    expect_refusal(&image, "truncated");
    bytes[0x236] = 0;
    expect_refusal(&image, "64-bit entry");
    bytes[0x202] = 0;
    expect_refusal(&image, "not a kernel");
}

static size_t pack_gzip(const uint8_t *in, size_t n, uint8_t *out, size_t room)
{
    z_stream z;

    memset(&z, 0, sizeof(z));
    deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
    z.next_in = (Bytef *)in;
    z.avail_in = n;
    z.next_out = out;
    z.avail_out = room;
    deflate(&z, Z_FINISH);
    deflateEnd(&z);
    return z.total_out;
}

static void packings(void **state)
{
    uint8_t in[3000], out[8192];
    struct machine_image image = {NULL, 0};
    struct base_error err = {""};
    size_t i, n, at = 0;

    for (i = 0; i < sizeof(in); i++) {
        in[i] = i * i >> 5;
    }
    n = pack_gzip(in, sizeof(in), out, sizeof(out));
    assert_int_equal(machine_unpack(&image, out, n, sizeof(in), &err), 0);
    assert_int_equal(image.size, sizeof(in));
    assert_memory_equal(image.data, in, sizeof(in));
    machine_image_free(&image);
    assert_int_equal(machine_unpack(&image, out, n, sizeof(in) - 1, &err), -EINVAL);
    assert_int_equal(machine_unpack(&image, out, n / 2, sizeof(in), &err), -EINVAL);
    lzma_easy_buffer_encode(6, LZMA_CHECK_CRC32, NULL, in, sizeof(in), out, &at, sizeof(out));
    assert_int_equal(machine_unpack(&image, out, at, sizeof(in), &err), 0);
    assert_memory_equal(image.data, in, sizeof(in));
    machine_image_free(&image);
    assert_int_equal(machine_unpack(&image, out, at - 9, sizeof(in), &err), -EINVAL);
    assert_int_equal(machine_unpack(&image, in, sizeof(in), sizeof(in), &err), -ENOTSUP);
}

static void no_room(void **state)
{
    uint8_t bytes[1024];
    struct machine_image image = {bytes, make_elf64(bytes, EM_X86_64, 0x200000, 1)};
    struct machine_image initrd = {calloc(1, RAM_SIZE), RAM_SIZE - 0x200000};
    struct machine_kernel k = kernel_of(&image);
    struct accel_boot_state cpu = {0};
    struct base_error err = {""};
    struct fake_ram f;

    fake_ram_init(&f, RAM_SIZE);
    k.initrd = &initrd;
    assert_int_equal(machine_kernel_load(&k, &f.ram, &cpu, &err), -ENOSPC);
    assert_non_null(strstr(err.text, "-initrd"));
    fake_ram_fini(&f);
    free(initrd.data);
}

/* RAM with old contents: what lies behind a segment's file bytes is zero all the same. */
static void used_ram(void **state)
{
    uint8_t bytes[1024];
    struct machine_image image = {bytes, make_elf64(bytes, EM_X86_64, 0x200000, 1)};
    struct machine_kernel k = kernel_of(&image);
    struct accel_boot_state cpu = {0};
    struct base_error err = {""};
    struct fake_ram f;
    int i;

    fake_ram_init(&f, RAM_SIZE);
    memset(f.bytes, 0xee, RAM_SIZE);
    f.ram.is_used = 1;
    assert_int_equal(machine_kernel_load(&k, &f.ram, &cpu, &err), 0);
    for (i = 64; i < 4096; i++) {
        assert_int_equal(f.bytes[0x200000 + i], 0);
    }
    assert_int_equal(f.bytes[0x201000], 0xee);
    fake_ram_fini(&f);
}

static void memory_map(void **state)
{
    struct machine_ram ram = {.below_4g = UINT64_C(0xc0000000), .above_4g = UINT64_C(7) << 30};
    struct machine_e820_entry map[MACHINE_E820_MAX];
    unsigned i, n = machine_e820_fill(&ram, map);
    uint64_t total = 0;

    for (i = 0; i < n; i++) {
        assert_true(i == 0 || map[i - 1].addr + map[i - 1].size <= map[i].addr);
        assert_true(map[i].size > 0);
        total += map[i].type == MACHINE_E820_RAM ? map[i].size : 0;
    }
    /* All RAM but the 385 KiB below 1 MiB that are firmware's, display memory's and the EBDA's. */
    assert_int_equal(total, (UINT64_C(10) << 30) - (0x100000 - 0x9fc00));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pvh),        cmocka_unit_test(elf_refused),       cmocka_unit_test(prefixes),
        cmocka_unit_test(multiboot_flat), cmocka_unit_test(multiboot_modules), cmocka_unit_test(bzimage),
        cmocka_unit_test(packings),   cmocka_unit_test(no_room),           cmocka_unit_test(memory_map),
        cmocka_unit_test(used_ram),
    };

    return cmocka_run_group_tests_name("machine/loader", tests, NULL, NULL);
}
