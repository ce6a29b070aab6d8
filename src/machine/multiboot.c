/*
 * Multiboot 1: an ELF32 image, or a flat one whose header says where it goes; information structure,
 * command line, modules and memory map behind the kernel.
 *
 * -initrd takes QEMU's form for modules: "file args,file args"; each becomes a module with its whole
 * text as command line. Leaves out: video modes, drives, boot devices, symbol tables.
 */
#include <errno.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include "machine/loader.h"

#define HEADER_MAGIC  UINT32_C(0x1badb002)
#define HEADER_SEARCH 8192u
#define BOOT_MAGIC    UINT32_C(0x2badb002)

#define WANT_VIDEO   (1u << 2)
#define HAS_ADDRESS  (1u << 16)
#define MUST_KNOW    (0xffffu & ~7u)

#define INFO_MEMORY  (1u << 0)
#define INFO_CMDLINE (1u << 2)
#define INFO_MODULES (1u << 3)
#define INFO_MAP     (1u << 6)
#define INFO_LOADER  (1u << 9)

#define MAX_MODULES     16u
#define MODULE_MAX_SIZE (UINT64_C(3) << 30)

struct mb_header {
    uint32_t magic, flags, checksum;
    uint32_t header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr;
};

struct mb_info {
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4];
    uint32_t map_length, map_addr, drives_length, drives_addr, config, loader_name;
};

struct mb_module {
    uint32_t start, end, cmdline, reserved;
};

struct mb_map {
    uint32_t size;
    uint64_t addr, length;
    uint32_t type;
} __attribute__((packed));

/* Everything behind the kernel: the pieces in the order in which they lie in guest memory. */
struct mb_tail {
    struct mb_info info;
    struct mb_map map[MACHINE_E820_MAX];
    struct mb_module modules[MAX_MODULES];
    char loader[16];
    char text[4096]; /* command line, then the modules' */
};

struct mb_load {
    struct machine_kernel *k;
    const struct machine_ram *ram;
    struct mb_tail *tail;
    uint64_t tail_addr, next; /* gpa; next free */
    size_t text_used;
};

static int find_header(const struct machine_image *image, struct mb_header *h, size_t *at)
{
    size_t i, limit = image->size < HEADER_SEARCH ? image->size : HEADER_SEARCH;

    for (i = 0; i + 12 <= limit; i += 4) {
        memset(h, 0, sizeof(*h));
        memcpy(h, image->data + i, 12);
        if (h->magic == HEADER_MAGIC && h->magic + h->flags + h->checksum == 0) {
            size_t rest = image->size - i < sizeof(*h) ? image->size - i : sizeof(*h);

            memcpy(h, image->data + i, rest);
            *at = i;
            return 1;
        }
    }
    return 0;
}

/* 1 when the image has a Multiboot 1 header. Lock: none. Source: Multiboot specification 0.6.96. */
int machine_multiboot_is(const struct machine_image *image)
{
    struct mb_header h;
    size_t at;

    return find_header(image, &h, &at);
}

/* The flat form: bytes from load_addr, which corresponds to an offset before the header. */
static int place_flat(const struct machine_image *image, const struct mb_header *h, size_t header_at,
                      struct mb_load *l, struct base_error *err)
{
    uint64_t offset, load, end;
    int ret;

    if (h->load_addr > h->header_addr || h->header_addr - h->load_addr > header_at) {
        return base_error_set(err, ENOEXEC, "Multiboot: the load address does not match the header's place");
    }
    offset = header_at - (h->header_addr - h->load_addr);
    load = h->load_end_addr ? (uint64_t)h->load_end_addr - h->load_addr : image->size - offset;
    if (h->load_end_addr && h->load_end_addr < h->load_addr) {
        return base_error_set(err, ENOEXEC, "Multiboot: the image ends before it begins");
    }
    if (load > image->size - offset) {
        return base_error_set(err, ENOEXEC, "truncated Multiboot image: 0x%llx bytes wanted, 0x%llx there",
                              (unsigned long long)load, (unsigned long long)(image->size - offset));
    }
    end = h->bss_end_addr > h->load_addr + load ? h->bss_end_addr : h->load_addr + load;
    ret = machine_ram_check(l->ram, gpa(h->load_addr), end - h->load_addr, "the kernel", err);
    if (ret == 0) {
        ret = machine_ram_write(l->ram, gpa(h->load_addr), image->data + offset, load, err);
    }
    if (ret == 0) {
        ret = machine_ram_zero(l->ram, gpa(h->load_addr + load), end - h->load_addr - load, err);
    }
    l->k->kernel_end = end;
    return ret;
}

static int place_image(struct mb_load *l, uint64_t *entry, struct base_error *err)
{
    const struct machine_image *image = l->k->kernel;
    struct mb_header h;
    struct machine_elf elf;
    size_t at;
    int ret;

    if (!find_header(image, &h, &at)) {
        return base_error_set(err, ENOEXEC, "no Multiboot header");
    }
    if (h.flags & MUST_KNOW) {
        return base_error_set(err, ENOEXEC, "Multiboot: needs features 0x%x that are not known here",
                              h.flags & MUST_KNOW);
    }
    if (h.flags & HAS_ADDRESS) {
        *entry = h.entry_addr;
        snprintf(l->k->how, sizeof(l->k->how), "Multiboot, flat, entry 0x%x", h.entry_addr);
        return place_flat(image, &h, at, l, err);
    }
    if (!machine_elf_is(image)) {
        return base_error_set(err, ENOEXEC, "Multiboot: neither an ELF file nor load addresses");
    }
    ret = machine_elf_load(image, l->ram, &elf, err);
    if (ret < 0) {
        return ret;
    }
    if (elf.is_64) {
        return base_error_set(err, ENOEXEC, "Multiboot: a 64-bit ELF file; Multiboot 1 knows 32-bit ones");
    }
    *entry = elf.entry_phys;
    l->k->kernel_end = elf.high;
    snprintf(l->k->how, sizeof(l->k->how), "Multiboot, ELF, entry 0x%llx", (unsigned long long)*entry);
    return 0;
}

/* Keep text behind the information structure; its guest address, or 0 when there is no room. */
static uint32_t keep_text(struct mb_load *l, const char *text, size_t length)
{
    uint32_t addr = l->tail_addr + offsetof(struct mb_tail, text) + l->text_used;

    if (length >= sizeof(l->tail->text) - l->text_used) {
        return 0;
    }
    memcpy(l->tail->text + l->text_used, text, length);
    l->text_used += length + 1;
    return addr;
}

static int place_module(struct mb_load *l, const char *text, size_t length, struct base_error *err)
{
    struct mb_module *m = &l->tail->modules[l->tail->info.mods_count];
    struct machine_image image = {NULL, 0};
    char path[1024];
    size_t name = strcspn(text, " ,");
    int ret;

    name = name < length ? name : length;
    if (l->tail->info.mods_count >= MAX_MODULES || name == 0 || name >= sizeof(path)) {
        return base_error_set(err, EINVAL, "-initrd: at most %u modules, each with a file name", MAX_MODULES);
    }
    memcpy(path, text, name);
    path[name] = '\0';
    ret = machine_image_read(&image, path, MODULE_MAX_SIZE, err);
    if (ret == 0) {
        ret = machine_ram_write(l->ram, gpa(l->next), image.data, image.size, err);
    }
    if (ret < 0) {
        machine_image_free(&image);
        base_error_prefix(err, "-initrd");
        return ret;
    }
    m->start = l->next;
    m->end = l->next + image.size;
    m->cmdline = keep_text(l, text, length);
    l->next = (l->next + image.size + PAGE_SIZE - 1) & PAGE_MASK;
    l->tail->info.mods_count++;
    machine_image_free(&image);
    return m->cmdline ? 0 : base_error_set(err, EINVAL, "-initrd: module command lines too long");
}

static int place_modules(struct mb_load *l, struct base_error *err)
{
    const char *p = l->k->initrd_arg;

    while (p && *p) {
        size_t length = strcspn(p, ",");
        int ret = place_module(l, p, length, err);

        if (ret < 0) {
            return ret;
        }
        p += length + (p[length] == ',');
    }
    return 0;
}

static int fill_info(struct mb_load *l, struct base_error *err)
{
    struct machine_e820_entry map[MACHINE_E820_MAX];
    struct mb_tail *t = l->tail;
    unsigned i, n = machine_e820_fill(l->ram, map);
    char line[3072];
    int length;

    length = snprintf(line, sizeof(line), "%s%s%s", l->k->kernel_name, l->k->append[0] ? " " : "",
                      l->k->append);
    if (length < 0 || (size_t)length >= sizeof(line)) {
        return base_error_set(err, EINVAL, "-append: longer than a Multiboot kernel is given here");
    }
    t->info.cmdline = keep_text(l, line, length);
    for (i = 0; i < n; i++) {
        t->map[i] = (struct mb_map){20, map[i].addr, map[i].size, map[i].type};
    }
    t->info.flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MAP | INFO_LOADER;
    t->info.mem_lower = 639;
    t->info.mem_upper = l->ram->below_4g > MACHINE_HIGH_START
                            ? (uint32_t)((l->ram->below_4g - MACHINE_HIGH_START) >> 10)
                            : 0;
    t->info.mods_addr = l->tail_addr + offsetof(struct mb_tail, modules);
    t->info.map_addr = l->tail_addr + offsetof(struct mb_tail, map);
    t->info.map_length = n * sizeof(t->map[0]);
    t->info.loader_name = l->tail_addr + offsetof(struct mb_tail, loader);
    strcpy(t->loader, "strata");
    return 0;
}

/*
 * Load a Multiboot 1 image, its modules and the information structure.
 * Returns: 0; -ENOEXEC damaged or asking for what is not known; -ENOSPC; -EINVAL arguments; a module's error.
 * Lock: none; before the guest runs. Source: Multiboot specification 0.6.96; the form of -initrd is QEMU's.
 */
int machine_multiboot_load(struct machine_kernel *k, const struct machine_ram *ram,
                           struct accel_boot_state *cpu, struct base_error *err)
{
    struct mb_load l = {.k = k, .ram = ram};
    uint64_t entry = 0;
    int ret = place_image(&l, &entry, err);

    if (ret < 0) {
        return ret;
    }
    l.tail = calloc(1, sizeof(*l.tail));
    if (!l.tail) {
        return base_error_set(err, ENOMEM, "out of memory");
    }
    l.tail_addr = (k->kernel_end + PAGE_SIZE - 1) & PAGE_MASK;
    l.tail_addr = l.tail_addr < MACHINE_HIGH_START ? MACHINE_HIGH_START : l.tail_addr;
    l.next = (l.tail_addr + sizeof(*l.tail) + PAGE_SIZE - 1) & PAGE_MASK;
    ret = fill_info(&l, err);
    if (ret == 0) {
        ret = place_modules(&l, err);
    }
    if (ret == 0) {
        ret = machine_ram_write(ram, gpa(l.tail_addr), l.tail, sizeof(*l.tail), err);
    }
    free(l.tail);
    cpu->rip = entry;
    cpu->rax = BOOT_MAGIC;
    cpu->rbx = l.tail_addr;
    return ret < 0 ? ret : machine_boot_prot32(ram, cpu, err);
}
