/* Entry formats: printers on known entries, addresses, shapes, and getters against hand-made
 * masks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "arch/format.h"
#include "arch/format_fields.h"

static const char *text_of(enum arch_format_id id, unsigned level, uint64_t entry)
{
    static char buf[200];
    int n = arch_entry_format(id, level, entry, buf, sizeof(buf));

    assert_int_equal(n, strlen(buf));
    return buf;
}

static void printing(void **state)
{
    assert_string_equal(text_of(ARCH_FMT_LONG, 1, UINT64_C(0x8000000012345067)),
                        "P W U A D nx -> 0x12345000");
    assert_string_equal(text_of(ARCH_FMT_LONG, 4, 0x1063), "P W A -> 0x1000");
    assert_string_equal(text_of(ARCH_FMT_LONG, 2, UINT64_C(0x402001e3)),
                        "P W A D PS G -> 0x40200000");
    assert_string_equal(text_of(ARCH_FMT_LONG, 2, UINT64_C(0x402021e3)),
                        "P W A D PS G rsvd=0x2000 -> 0x40200000");
    assert_string_equal(text_of(ARCH_FMT_LONG, 3, UINT64_C(0x5800000080000083)),
                        "P W PS pk=b -> 0x80000000");
    assert_string_equal(text_of(ARCH_FMT_EPT, 1, UINT64_C(0x12345377)),
                        "R W X A D WB IPAT -> 0x12345000");
    assert_string_equal(text_of(ARCH_FMT_EPT, 2, UINT64_C(0x800b87)),
                        "R W X A sw=1 D UC PS -> 0x800000");
    assert_string_equal(text_of(ARCH_FMT_EPT, 3, UINT64_C(0x2107)), "R W X A -> 0x2000");
    assert_string_equal(text_of(ARCH_FMT_EPT, 1, 0), "not present");
    assert_string_equal(text_of(ARCH_FMT_LONG, 1, 0xabc0), "not present (0xabc0)");
    assert_string_equal(text_of(ARCH_FMT_32, 2, 0x0040e0e3), "P W A D PS high=7 -> 0x700400000");
    assert_string_equal(text_of(ARCH_FMT_PAE, 3, 0x3001), "P -> 0x3000");
    assert_string_equal(text_of(ARCH_FMT_PAE, 3, 0x3003), "P rsvd=0x2 -> 0x3000");
    assert_string_equal(text_of(ARCH_FMT_LONG, 9, 1), "not present (0x1)");
}

static void short_buffers(void **state)
{
    char buf[8];

    for (size_t size = 1; size <= sizeof(buf); size++) {
        memset(buf, 'x', sizeof(buf));
        assert_int_equal(arch_entry_format(ARCH_FMT_LONG, 1, 0x1067, buf, size),
                         strlen("P W U A D -> 0x1000"));
        assert_int_equal(buf[size - 1], 0);
        assert_int_equal(strlen(buf), size - 1);
    }
}

static void addresses(void **state)
{
    const struct arch_format *l = &arch_formats[ARCH_FMT_LONG], *p32 = &arch_formats[ARCH_FMT_32];

    assert_int_equal(arch_leaf_addr(l, UINT64_C(0xfff0000000201fff), 1), 0x201000);
    assert_int_equal(arch_leaf_addr(l, UINT64_C(0x3fffff), 2), 0x200000);
    assert_int_equal(arch_leaf_addr(l, UINT64_C(0x7fffffff), 3), 0x40000000);
    assert_int_equal(arch_leaf_addr(p32, 0xffc01083, 2), UINT64_C(0xffc00000));
    assert_int_equal(arch_leaf_addr(p32, 0xffdfe083, 2), UINT64_C(0xffffc00000));
    assert_int_equal(arch_table_addr(p32, 0xdeadb007), 0xdeadb000);
    assert_true(arch_is_leaf(l, 0x80, 3) && !arch_is_leaf(l, 0x80, 4));
    assert_false(arch_is_leaf(&arch_formats[ARCH_FMT_PAE], 0x80, 3));
    assert_true(arch_is_present(&arch_formats[ARCH_FMT_EPT], 4));
    assert_false(arch_is_present(l, 4));
    assert_int_equal(arch_entries(p32, 1), 1024);
    assert_int_equal(arch_entries(&arch_formats[ARCH_FMT_PAE], 3), 4);
    assert_int_equal(arch_index(p32, 0xffc00000, 2), 1023);
    assert_int_equal(arch_index(l, UINT64_C(0xffffffff80000000), 4), 511);
    assert_int_equal(arch_span(l, 5), UINT64_C(1) << 48);
}

/* Every single bit of every entry belongs to at most one field, and getters read that bit. */
static void fields(void **state)
{
    for (unsigned id = 0; id < ARCH_NR_FORMATS; id++) {
        for (unsigned s = 0; s < ARCH_NR_SHAPES; s++) {
            const struct arch_field *f = arch_formats[id].fields[s];
            uint64_t seen = 0;

            for (; f && f->name; f++) {
                assert_int_equal(seen & f->mask, 0);
                assert_int_equal(f->mask >> f->shift & 1, 1);
                seen |= f->mask;
            }
        }
    }
    for (unsigned bit = 0; bit < 64; bit++) {
        uint64_t e = UINT64_C(1) << bit;

        assert_int_equal(arch_long_page_nx(e), bit == 63);
        assert_int_equal(arch_long_page_d(e), bit == 6);
        assert_int_equal(arch_ept_page_mt(e), bit >= 3 && bit <= 5 ? 1 << (bit - 3) : 0);
        assert_int_equal(arch_long_large_frame(e),
                         bit >= 21 && bit <= 51 ? UINT64_C(1) << (bit - 21) : 0);
        assert_int_equal(arch_long_page_pk(e), bit >= 59 && bit <= 62 ? 1 << (bit - 59) : 0);
    }
}

static void codes(void **state)
{
    char buf[100];

    arch_pfec_format(0x17, buf, sizeof(buf));
    assert_string_equal(buf, "P W U I");
    arch_pfec_format(0, buf, sizeof(buf));
    assert_string_equal(buf, "");
    arch_ept_qual_format(EPT_VIOL_WRITE | EPT_VIOL_CAN_R | EPT_VIOL_GVA | EPT_VIOL_FINAL, buf,
                         sizeof(buf));
    assert_string_equal(buf, "write can-r gva final");
    assert_string_equal(arch_level_name(ARCH_FMT_LONG, 4), "PML4E");
    assert_string_equal(arch_level_name(ARCH_FMT_EPT, 1), "EPT PTE");
    assert_string_equal(arch_level_name(ARCH_FMT_EPT, 77), "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(printing), cmocka_unit_test(short_buffers), cmocka_unit_test(addresses),
        cmocka_unit_test(fields),   cmocka_unit_test(codes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
