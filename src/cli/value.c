/* Values on the command line; see value.h. */
#include "cli/value.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int suffix_shift(char c)
{
    static const char letters[] = "bkmgtpe";
    const char *at = c ? strchr(letters, c | 0x20) : NULL;

    return at ? (int)(at - letters) * 10 : -1;
}

/* The digits after a point, as a fraction of 2^shift; exact to the last byte for what fits 64 bits. */
static uint64_t fraction(const char *digits, size_t n, int shift)
{
    unsigned __int128 value = 0, scale = 1;
    size_t i;

    for (i = 0; i < n && i < 18; i++) {
        value = value * 10 + (unsigned)(digits[i] - '0');
        scale *= 10;
    }
    return (uint64_t)((value << shift) / scale);
}

/*
 * Parse a size.
 * text: digits, perhaps a point and more, then one of B K M G T P E; hexadecimal takes no suffix.
 * unit: bytes that a bare number counts by, a power of two.
 * Returns: 0; -EINVAL not a size; -ERANGE beyond 2^64 - 1. Source: QEMU's size syntax.
 */
int cli_size_parse(const char *text, uint64_t unit, uint64_t *out)
{
    int shift, base = text[0] == '0' && (text[1] | 0x20) == 'x' ? 16 : 10;
    unsigned long long whole;
    size_t digits = 0;
    uint64_t low = 0;
    char *end;

    if (text[0] < '0' || text[0] > '9') {
        return -EINVAL;
    }
    errno = 0;
    whole = strtoull(text, &end, base);
    if (errno == ERANGE) {
        return -ERANGE;
    }
    if (*end == '.' && base == 10) {
        digits = strspn(end + 1, "0123456789");
        if (digits == 0) {
            return -EINVAL;
        }
    }
    shift = suffix_shift(digits ? end[digits + 1] : *end);
    if (shift >= 0 && base == 10) {
        if (end[digits + (digits ? 2 : 1)]) {
            return -EINVAL;
        }
    } else if (*(digits ? end + digits + 1 : end)) {
        return -EINVAL;
    } else {
        shift = base == 16 ? 0 : __builtin_ctzll(unit);
    }
    low = digits ? fraction(end + 1, digits, shift) : 0;
    if (whole > UINT64_MAX >> shift || __builtin_add_overflow((uint64_t)whole << shift, low, out)) {
        return -ERANGE;
    }
    return 0;
}

/* See value.h. Returns: 0; -EINVAL with a line that names option, value and range. Source: own. */
int cli_number_parse(const char *option, const char *text, uint64_t max, uint64_t *out,
                     struct base_error *err)
{
    unsigned long long value;
    char *end;

    errno = 0;
    value = strtoull(text, &end, 0);
    if (text[0] < '0' || text[0] > '9' || *end || errno || value > max) {
        return base_error_set(err, EINVAL, "%s '%s': a number from 0 to %llu", option, text,
                              (unsigned long long)max);
    }
    *out = value;
    return 0;
}

/* See value.h. Returns: 0 or -EINVAL. Source: QEMU's boolean words. */
int cli_bool_parse(const char *option, const char *text, bool *out, struct base_error *err)
{
    static const char *const yes[] = {"on", "yes", "true"}, *const no[] = {"off", "no", "false"};
    unsigned i;

    for (i = 0; i < ARRAY_LEN(yes); i++) {
        if (strcmp(text, yes[i]) == 0 || strcmp(text, no[i]) == 0) {
            *out = strcmp(text, yes[i]) == 0;
            return 0;
        }
    }
    return base_error_set(err, EINVAL, "%s '%s': on or off", option, text);
}

/* See value.h. Words longer than 31 characters are compared by their beginnings. Source: own. */
unsigned cli_word_distance(const char *a, const char *b)
{
    enum { MAX = 32 };
    unsigned d[MAX][MAX];
    size_t i, j, na = strnlen(a, MAX - 1), nb = strnlen(b, MAX - 1);

    for (i = 0; i <= na; i++) {
        for (j = 0; j <= nb; j++) {
            unsigned best;

            if (i == 0 || j == 0) {
                d[i][j] = i + j;
                continue;
            }
            best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            best = d[i - 1][j] + 1 < best ? d[i - 1][j] + 1 : best;
            best = d[i][j - 1] + 1 < best ? d[i][j - 1] + 1 : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && d[i - 2][j - 2] + 1 < best) {
                best = d[i - 2][j - 2] + 1;
            }
            d[i][j] = best;
        }
    }
    return d[na][nb];
}
