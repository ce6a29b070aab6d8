/* The ACPI tables as a kernel would find them: from the root pointer by its pointers, sums, lengths, entries. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fake_ram.h"
#include "machine/acpi.h"

#include <stdio.h>

static struct fake_ram f;

static uint32_t u32(uint64_t at)
{
    uint32_t v;

    memcpy(&v, f.bytes + at, 4);
    return v;
}

static uint64_t u64(uint64_t at)
{
    return u32(at) | (uint64_t)u32(at + 4) << 32;
}

static unsigned sum(uint64_t at, size_t n)
{
    uint8_t s = 0;

    while (n-- > 0) {
        s += f.bytes[at++];
    }
    return s;
}

static void check_table(uint64_t at, const char *signature)
{
    assert_memory_equal(f.bytes + at, signature, 4);
    assert_in_range(u32(at + 4), 36, 0x2000);
    assert_int_equal(sum(at, u32(at + 4)), 0);
}

static void check_madt(uint64_t madt, unsigned processors)
{
    uint64_t p = madt + 44, end = madt + u32(madt + 4);
    unsigned cpus = 0, ioapics = 0;

    assert_int_equal(u32(madt + 36), 0xfee00000);
    while (p < end) {
        assert_true(f.bytes[p + 1] >= 2 && p + f.bytes[p + 1] <= end);
        if (f.bytes[p] == 0) {
            assert_int_equal(f.bytes[p + 3], cpus);
            assert_int_equal(u32(p + 4) & 1, 1);
            cpus++;
        }
        ioapics += f.bytes[p] == 1;
        p += f.bytes[p + 1];
    }
    assert_int_equal(cpus, processors);
    assert_int_equal(ioapics, 1);
}

static void tables(void **state)
{
    static const unsigned counts[] = {1, 2, 64};
    struct base_error err = {""};
    unsigned i;

    for (i = 0; i < 3; i++) {
        uint64_t xsdt, fadt, dsdt;
        gpa_t rsdp;

        fake_ram_init(&f, UINT64_C(16) << 20);
        assert_int_equal(machine_acpi_write(&f.ram, counts[i], &rsdp, &err), 0);
        assert_int_equal(rsdp.v % 16, 0);
        assert_true(rsdp.v >= 0xe0000 && rsdp.v < 0x100000);
        assert_memory_equal(f.bytes + rsdp.v, "RSD PTR ", 8);
        assert_int_equal(sum(rsdp.v, 20), 0);
        assert_int_equal(sum(rsdp.v, 36), 0);
        xsdt = u64(rsdp.v + 24);
        check_table(xsdt, "XSDT");
        assert_int_equal((u32(xsdt + 4) - 36) / 8, 2);
        fadt = u64(xsdt + 36);
        check_table(fadt, "FACP");
        dsdt = u64(fadt + 140);
        check_table(dsdt, "DSDT");
        assert_int_equal(u32(fadt + 40), dsdt);
        assert_memory_equal(f.bytes + u32(fadt + 36), "FACS", 4);
        assert_int_equal(u32(fadt + 36) % 64, 0);
        check_table(u64(xsdt + 44), "APIC");
        check_madt(u64(xsdt + 44), counts[i]);
        fake_ram_fini(&f);
    }
}

/* With a file name as argument, leave the DSDT there for a disassembler. */
static int dump(const char *path)
{
    struct base_error err;
    gpa_t rsdp;
    FILE *to = fopen(path, "w");
    uint64_t dsdt;

    fake_ram_init(&f, UINT64_C(16) << 20);
    if (!to || machine_acpi_write(&f.ram, 2, &rsdp, &err) < 0) {
        return 1;
    }
    dsdt = u64(u64(u64(rsdp.v + 24) + 36) + 140);
    fwrite(f.bytes + dsdt, 1, u32(dsdt + 4), to);
    fclose(to);
    fake_ram_fini(&f);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(tables)};

    return argc > 1 ? dump(argv[1]) : cmocka_run_group_tests_name("machine/acpi", tests, NULL, NULL);
}
