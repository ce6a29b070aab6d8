/*
 * The guest guests/small/private.c on a confidential VM: a VMM of a few lines that loads it into private pages,
 * converts what it asks for, and looks for its secret wherever user space can look: in all memory that it maps, and
 * through the engine's inspection. Usage: private_guest_test IMAGE.
 */
#include <elf.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "mini.h"
#include "softkvm/inspect.h"
#include "softkvm/vm_types.h"

#define RAM     (UINT64_C(16) << 20)
#define FIRST   0x800000u
#define PAGES   64u
#define LOOK    0x500
#define EXIT    0xf4
#define SERIAL  0x3f8
#define SECRET  0x5ec40000u
#define CONSOLE 4096

static const char *image;

struct vmm {
    struct mini m;
    char *ram;
    char console[CONSOLE];
    size_t length;
    unsigned conversions, looks, seen;
    int status;
};

static uint32_t load(char *ram)
{
    static char file[1 << 20];
    const Elf32_Ehdr *e = (const Elf32_Ehdr *)(const void *)file;
    FILE *f = fopen(image, "rb");

    assert_non_null(f);
    assert_true(fread(file, 1, sizeof(file), f) > sizeof(*e));
    fclose(f);
    assert_memory_equal(e->e_ident, ELFMAG, SELFMAG);
    for (unsigned i = 0; i < e->e_phnum; i++) {
        const Elf32_Phdr *p = (const Elf32_Phdr *)(const void *)(file + e->e_phoff) + i;

        if (p->p_type == PT_LOAD) {
            assert_true(p->p_paddr + (uint64_t)p->p_memsz <= RAM);
            memcpy(ram + p->p_paddr, file + p->p_offset, p->p_filesz);
        }
    }
    return e->e_entry;
}

/* Flat 32-bit mode at the entry, as Multiboot has it. */
static void start(struct vmm *v, uint32_t entry)
{
    struct kvm_segment seg = {.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .db = 1, .g = 1};
    struct kvm_regs r = {.rip = entry, .rflags = 2, .rax = 0x2badb002};
    struct kvm_sregs s;

    assert_int_equal(mini_cpu_ioctl(&v->m, 0, KVM_GET_SREGS, &s), 0);
    s.cr0 |= 1;
    s.cs = seg;
    seg.type = 3;
    seg.selector = 16;
    s.ds = s.es = s.ss = s.fs = s.gs = seg;
    assert_int_equal(mini_cpu_ioctl(&v->m, 0, KVM_SET_SREGS, &s), 0);
    assert_int_equal(mini_cpu_ioctl(&v->m, 0, KVM_SET_REGS, &r), 0);
}

static struct vmm *vmm_new(void)
{
    struct vmm *v = calloc(1, sizeof(*v));
    struct mini *m = &v->m;
    struct softkvm_populate p = {.size = RAM};
    char *loaded = mini_pages(RAM);
    uint32_t entry = load(loaded);
    int fd, e = 0;

    m->s = softkvm_new(NULL, NULL, 0);
    m->kvm = softkvm_open_system(m->s);
    m->vm = mini_sys(m, KVM_CREATE_VM, (void *)SOFTKVM_X86_CONFIDENTIAL_VM);
    assert_true(m->vm >= 0);
    assert_int_equal(mini_cap(m, KVM_CAP_EXIT_HYPERCALL, 1u << 12), 0);
    v->ram = mini_pages(RAM);
    fd = mini_gmem(m, RAM, 0);
    assert_int_equal(mini_slot2(m, 0, 0, RAM, v->ram, fd, 0), 0);
    p.source = (uintptr_t)loaded;
    assert_int_equal(mini_vm_ioctl(m, SOFTKVM_POPULATE_PRIVATE, &p), 0);
    munmap(loaded, RAM);
    m->vcpu[0] = mini_vm_ioctl(m, KVM_CREATE_VCPU, NULL);
    m->run[0] = softkvm_mmap(m->s, m->vcpu[0], MINI_RUN_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, 0, &e);
    {
        static struct {
            struct kvm_cpuid2 head;
            struct kvm_cpuid_entry2 e[256];
        } cpuid;

        cpuid.head.nent = 256;
        assert_int_equal(mini_sys(m, KVM_GET_SUPPORTED_CPUID, &cpuid), 0);
        assert_int_equal(mini_cpu_ioctl(m, 0, KVM_SET_CPUID2, &cpuid), 0);
    }
    start(v, entry);
    return v;
}

/* Everything that this process maps for the guest, and what inspection shows of the page. */
static void look_for_secrets(struct vmm *v, uint32_t page)
{
    struct softkvm_explain x = {.size = sizeof(x), .gpa = FIRST + (page + 1) % PAGES * 4096};
    const uint32_t *words = (const uint32_t *)(const void *)v->ram;

    for (uint64_t i = 0; i < RAM / 4; i++) {
        v->seen += (words[i] & 0xffff0000u) == SECRET;
    }
    assert_int_equal(mini_vm_ioctl(&v->m, SOFTKVM_EXPLAIN_GPA, &x), 0);
    assert_true(x.stages & SOFTKVM_STAGE_PRIVATE);
    assert_false(x.stages & SOFTKVM_STAGE_FRAME);
}

static void on_port(struct vmm *v)
{
    struct kvm_run *run = v->m.run[0];
    uint32_t *data = (uint32_t *)(void *)((char *)run + run->io.data_offset);
    uint32_t *page;

    if (run->io.direction == KVM_EXIT_IO_IN) {
        memset(data, run->io.port == SERIAL + 5 ? 0x60 : 0xff, run->io.size);
    } else if (run->io.port == SERIAL && v->length < CONSOLE - 1) {
        v->console[v->length++] = *(char *)data;
    } else if (run->io.port == EXIT) {
        v->status = *(uint8_t *)data;
    } else if (run->io.port == LOOK) {
        assert_true(*data < PAGES);
        page = (uint32_t *)(void *)(v->ram + FIRST + *data * 4096);
        page[2] = page[1] + 1; /* the guest's question, seen in the shared half */
        v->looks++;
        if (v->looks % 16 == 1) {
            look_for_secrets(v, *data);
        }
    }
}

static void on_conversion(struct vmm *v)
{
    struct kvm_run *run = v->m.run[0];
    uint64_t gpa = run->hypercall.args[0], size = run->hypercall.args[1] << 12;
    bool is_private = run->hypercall.args[2] & 0x10;

    assert_int_equal(run->hypercall.nr, 12);
    assert_true(gpa >= FIRST && gpa + size <= FIRST + PAGES * 4096);
    assert_int_equal(mini_private(&v->m, gpa, size, is_private), 0);
    if (is_private) {
        memset(v->ram + gpa, 0, size); /* the shared half goes, as a VMM would discard it */
    }
    run->hypercall.ret = 0;
    v->conversions++;
}

static void conversions_keep_secrets(void **state)
{
    struct vmm *v = vmm_new();
    struct softkvm_check c = {.size = sizeof(c)};
    int reason;

    v->status = -1;
    while (v->status < 0) {
        reason = mini_run(&v->m, 0);
        if (reason == KVM_EXIT_IO) {
            on_port(v);
        } else if (reason == KVM_EXIT_HYPERCALL) {
            on_conversion(v);
        } else {
            fail_msg("exit %d after \"%s\"", reason, v->console);
        }
    }
    print_message("%s# %u conversions, %u looks, the secret seen %u times\n", v->console, v->conversions, v->looks,
                  v->seen);
    assert_non_null(strstr(v->console, "private: content\n"));
    assert_int_equal(v->status & 0x7f, 0);
    assert_int_equal(v->looks, 3 * PAGES);
    assert_int_equal(v->conversions, 6 * PAGES + 2);
    assert_int_equal(v->seen, 0);
    if (mini_vm_ioctl(&v->m, SOFTKVM_CHECK, &c)) {
        fail_msg("%s", c.text);
    }
    softkvm_free(v->m.s);
    munmap(v->ram, RAM);
    free(v);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(conversions_keep_secrets)};

    image = argc > 1 ? argv[1] : "guests/private.elf";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
