/*
 * ELF executables for x86: program headers to guest memory at their physical addresses, the entry point
 * and Xen's PVH note. Sections and relocations are not looked at.
 *
 * Every offset, size and count of the file is checked; a header table of more than ELF_MAX_HEADERS
 * entries is refused. 32- and 64-bit headers are read into one form first.
 */
#include <elf.h>
#include <errno.h>
#include <string.h>

#include "machine/loader.h"

#define ELF_MAX_HEADERS      128u
#define XEN_NOTE_PHYS32_ENTRY 18u

static int elf_class(const struct machine_image *image)
{
    return image->data[EI_CLASS];
}

/* 1 when the image begins as ELF files do. Lock: none. Source: own. */
int machine_elf_is(const struct machine_image *image)
{
    return image->size >= EI_NIDENT && memcmp(image->data, ELFMAG, SELFMAG) == 0;
}

static const char *machine_name(unsigned machine)
{
    switch (machine) {
    case EM_ARM:
        return "ARM";
    case EM_AARCH64:
        return "AArch64";
    case EM_RISCV:
        return "RISC-V";
    case EM_PPC64:
        return "PowerPC 64";
    case EM_S390:
        return "S/390";
    default:
        return "another processor";
    }
}

struct elf_head {
    uint64_t entry, phoff;
    unsigned phnum, phentsize;
    int is_64;
};

static int read_head(const struct machine_image *image, struct elf_head *h, struct base_error *err)
{
    Elf64_Ehdr e64;
    Elf32_Ehdr e32;
    unsigned machine, type;

    h->is_64 = elf_class(image) == ELFCLASS64;
    if ((!h->is_64 && elf_class(image) != ELFCLASS32) || image->data[EI_DATA] != ELFDATA2LSB ||
        image->size < (h->is_64 ? sizeof(e64) : sizeof(e32))) {
        return base_error_set(err, ENOEXEC, "not a whole little-endian ELF file");
    }
    if (h->is_64) {
        memcpy(&e64, image->data, sizeof(e64));
        *h = (struct elf_head){e64.e_entry, e64.e_phoff, e64.e_phnum, e64.e_phentsize, 1};
        machine = e64.e_machine;
        type = e64.e_type;
    } else {
        memcpy(&e32, image->data, sizeof(e32));
        *h = (struct elf_head){e32.e_entry, e32.e_phoff, e32.e_phnum, e32.e_phentsize, 0};
        machine = e32.e_machine;
        type = e32.e_type;
    }
    if (machine != EM_X86_64 && machine != EM_386) {
        return base_error_set(err, ENOEXEC, "an ELF file for %s (machine %u), not for x86",
                              machine_name(machine), machine);
    }
    if (type != ET_EXEC && type != ET_DYN) {
        return base_error_set(err, ENOEXEC, "an ELF file of type %u, not an executable", type);
    }
    if (h->phnum == 0 || h->phnum > ELF_MAX_HEADERS ||
        h->phentsize != (h->is_64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)) ||
        h->phoff > image->size || image->size - h->phoff < (uint64_t)h->phnum * h->phentsize) {
        return base_error_set(err, ENOEXEC, "truncated ELF file: program headers lie beyond its end");
    }
    return 0;
}

static Elf64_Phdr read_phdr(const struct machine_image *image, const struct elf_head *h, unsigned i)
{
    const uint8_t *at = image->data + h->phoff + (uint64_t)i * h->phentsize;
    Elf64_Phdr p;
    Elf32_Phdr p32;

    if (h->is_64) {
        memcpy(&p, at, sizeof(p));
        return p;
    }
    memcpy(&p32, at, sizeof(p32));
    memset(&p, 0, sizeof(p));
    p.p_type = p32.p_type;
    p.p_offset = p32.p_offset;
    p.p_vaddr = p32.p_vaddr;
    p.p_paddr = p32.p_paddr;
    p.p_filesz = p32.p_filesz;
    p.p_memsz = p32.p_memsz;
    return p;
}

/* Look for the PVH entry among the notes; a note that runs over the segment's end finishes the search. */
static uint32_t find_pvh_note(const uint8_t *notes, uint64_t size)
{
    uint64_t at = 0;

    while (size - at >= sizeof(Elf64_Nhdr)) {
        Elf64_Nhdr n;
        uint64_t name, desc, next;

        memcpy(&n, notes + at, sizeof(n));
        name = at + sizeof(n);
        desc = name + (((uint64_t)n.n_namesz + 3) & ~UINT64_C(3));
        next = desc + (((uint64_t)n.n_descsz + 3) & ~UINT64_C(3));
        if (desc > size || n.n_descsz > size - desc) {
            return 0;
        }
        if (n.n_type == XEN_NOTE_PHYS32_ENTRY && n.n_namesz == 4 && n.n_descsz >= 4 &&
            memcmp(notes + name, "Xen", 4) == 0) {
            uint32_t entry;

            memcpy(&entry, notes + desc, sizeof(entry));
            return entry;
        }
        if (next > size) {
            return 0;
        }
        at = next;
    }
    return 0;
}

static int load_segment(const struct machine_image *image, const struct machine_ram *ram,
                        const Elf64_Phdr *p, struct machine_elf *out, struct base_error *err)
{
    int ret;

    if (p->p_memsz < p->p_filesz) {
        return base_error_set(err, ENOEXEC, "an ELF segment with more bytes in the file than in memory");
    }
    ret = machine_ram_check(ram, gpa(p->p_paddr), p->p_memsz, "kernel segment", err);
    if (ret == 0) {
        ret = machine_ram_write(ram, gpa(p->p_paddr), image->data + p->p_offset, p->p_filesz, err);
    }
    if (ret == 0) {
        ret = machine_ram_zero(ram, gpa(p->p_paddr + p->p_filesz), p->p_memsz - p->p_filesz, err);
    }
    if (ret < 0) {
        return ret;
    }
    out->low = p->p_paddr < out->low ? p->p_paddr : out->low;
    out->high = p->p_paddr + p->p_memsz > out->high ? p->p_paddr + p->p_memsz : out->high;
    if (out->entry - p->p_vaddr < p->p_memsz) {
        out->entry_phys = out->entry - p->p_vaddr + p->p_paddr;
    }
    return 0;
}

/*
 * Load the segments of an ELF executable.
 * Returns: 0 with *out; -ENOEXEC not an executable for x86, or damaged; -ENOSPC does not fit.
 * On error guest RAM may hold part of it. Lock: none. Source: the System V ABI's ELF chapters.
 */
int machine_elf_load(const struct machine_image *image, const struct machine_ram *ram,
                     struct machine_elf *out, struct base_error *err)
{
    struct elf_head h = {0};
    unsigned i;
    int ret = read_head(image, &h, err);

    if (ret < 0) {
        return ret;
    }
    *out = (struct machine_elf){h.entry, h.entry, UINT64_MAX, 0, 0, h.is_64};
    for (i = 0; i < h.phnum; i++) {
        Elf64_Phdr p = read_phdr(image, &h, i);

        if (p.p_type != PT_LOAD && p.p_type != PT_NOTE) {
            continue;
        }
        if (p.p_offset > image->size || image->size - p.p_offset < p.p_filesz) {
            return base_error_set(err, ENOEXEC, "truncated ELF file: a segment lies beyond its end");
        }
        if (p.p_type == PT_NOTE && !out->pvh_entry) {
            out->pvh_entry = find_pvh_note(image->data + p.p_offset, p.p_filesz);
        }
        if (p.p_type == PT_LOAD && p.p_memsz) {
            ret = load_segment(image, ram, &p, out, err);
            if (ret < 0) {
                return ret;
            }
        }
    }
    if (out->high == 0) {
        return base_error_set(err, ENOEXEC, "an ELF file with nothing to load");
    }
    return 0;
}
