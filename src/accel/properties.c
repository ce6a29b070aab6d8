/*
 * The text of -accel: engines in order, then properties, as QEMU writes them:
 *     kvm:soft,dirty-ring-size=4096,manual-dirty-log=off
 * Properties of tracking and slots mean the same on either engine; mmu, levels (of second-stage tables),
 * page (the largest second-stage page), pml (a log of modified pages), ad (accessed and dirty bits), eager-split,
 * nx-huge (huge pages are not executable), frames (host memory to simulate) and swap (room for what does not fit) are
 * the software engine's, whichever name of the list takes it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "accel/internal.h"
#include "base/addr.h"
#include "softkvm/softkvm.h"

#define RING_MIN       1024u /* fewer leave no room for what a processor buffers by itself */
#define RING_MAX       65536u
#define FRAMES_TOP     (UINT64_C(1) << 41) /* of simulated host memory */
#define SLOT_SIZE_TOP  (UINT64_C(1) << 42) /* below the engine's limit of 2^31 - 1 pages */

typedef int property_fn(struct accel_properties *out, const char *name, const char *value, struct base_error *err);

static int parse_bool(const char *name, const char *value, bool *out, struct base_error *err)
{
    if (strcmp(value, "on") == 0 || strcmp(value, "yes") == 0 || strcmp(value, "true") == 0) {
        *out = true;
        return 0;
    }
    if (strcmp(value, "off") == 0 || strcmp(value, "no") == 0 || strcmp(value, "false") == 0) {
        *out = false;
        return 0;
    }
    return base_error_set(err, EINVAL, "-accel %s='%s': on or off", name, value);
}

static int set_ring(struct accel_properties *out, const char *name, const char *value, struct base_error *err)
{
    char *end;
    unsigned long n;

    errno = 0;
    n = strtoul(value, &end, 0);
    if (!*value || *value == '-' || *end || errno || n > RING_MAX || (n && n < RING_MIN) || (n & (n - 1))) {
        return base_error_set(err, EINVAL, "-accel %s='%s': a power of two from %u to %u, or 0 for bitmaps", name,
                              value, RING_MIN, RING_MAX);
    }
    out->dirty_ring_size = (uint32_t)n;
    return 0;
}

/* A size with its unit. bytes: whole pages up to `top`. */
static int parse_size(const char *name, const char *value, uint64_t top, uint64_t *bytes, struct base_error *err)
{
    static const char units[] = "kMGT";
    unsigned long long n;
    const char *unit;
    unsigned shift = 0;
    char *end;

    errno = 0;
    n = strtoull(value, &end, 0);
    unit = *end ? strchr(units, *end) : NULL;
    if (unit) {
        shift = 10 * (unsigned)(unit - units + 1);
        end++;
    }
    if (!*value || *value == '-' || *end || errno || n > top >> shift || !n || (n << shift) % PAGE_SIZE) {
        return base_error_set(err, EINVAL, "-accel %s='%s': whole pages up to %lluT", name, value,
                              (unsigned long long)(top >> 40));
    }
    *bytes = n << shift;
    return 0;
}

static int set_slot_size(struct accel_properties *out, const char *name, const char *value, struct base_error *err)
{
    return parse_size(name, value, SLOT_SIZE_TOP, &out->max_slot_size, err);
}

static int set_frames(struct accel_properties *out, const char *name, const char *value, struct base_error *err)
{
    return parse_size(name, value, FRAMES_TOP, &out->frames, err);
}

static int set_swap(struct accel_properties *out, const char *name, const char *value, struct base_error *err)
{
    return parse_size(name, value, FRAMES_TOP, &out->swap, err);
}

static int set_manual(struct accel_properties *out, const char *name, const char *value, struct base_error *err)
{
    bool on = true;
    int ret = parse_bool(name, value, &on, err);

    out->no_manual_protect = !on;
    return ret;
}

static int set_initially(struct accel_properties *out, const char *name, const char *value, struct base_error *err)
{
    bool on = true;
    int ret = parse_bool(name, value, &on, err);

    out->no_initially_set = !on;
    return ret;
}

static int set_confidential(struct accel_properties *out, const char *name, const char *value,
                            struct base_error *err)
{
    return parse_bool(name, value, &out->confidential, err);
}

static int set_irqchip(struct accel_properties *out, const char *name, const char *value, struct base_error *err)
{
    return strcmp(value, "on") == 0
               ? 0
               : base_error_set(err, EINVAL, "-accel %s='%s': the chips are the engine's: on", name, value);
}

static const struct {
    const char *text; /* "mmu=npt" */
    size_t offset;    /* of an unsigned in struct accel_properties */
    unsigned value;
} choices[] = {
    {"mmu=ept", offsetof(struct accel_properties, mmu), SOFTKVM_MMU_EPT},
    {"mmu=npt", offsetof(struct accel_properties, mmu), SOFTKVM_MMU_NPT},
    {"mmu=shadow", offsetof(struct accel_properties, mmu), SOFTKVM_MMU_SHADOW},
    {"levels=4", offsetof(struct accel_properties, levels), 4},
    {"levels=5", offsetof(struct accel_properties, levels), 5},
    {"pml=off", offsetof(struct accel_properties, stage2), 0},
    {"pml=on", offsetof(struct accel_properties, stage2), SOFTKVM_STAGE2_PML},
    {"ad=on", offsetof(struct accel_properties, stage2), 0},
    {"ad=off", offsetof(struct accel_properties, stage2), SOFTKVM_STAGE2_NO_AD},
    {"eager-split=on", offsetof(struct accel_properties, stage2), 0},
    {"eager-split=off", offsetof(struct accel_properties, stage2), SOFTKVM_STAGE2_NO_EAGER_SPLIT},
    {"nx-huge=off", offsetof(struct accel_properties, stage2), 0},
    {"nx-huge=on", offsetof(struct accel_properties, stage2), SOFTKVM_STAGE2_NX_HUGE},
    {"page=4k", offsetof(struct accel_properties, max_page_level), 1},
    {"page=2m", offsetof(struct accel_properties, max_page_level), 2},
    {"page=1g", offsetof(struct accel_properties, max_page_level), 3},
};

static int set_choice(struct accel_properties *out, const char *name, const char *value, struct base_error *err)
{
    size_t i, n = strlen(name);

    for (i = 0; i < ARRAY_LEN(choices); i++) {
        const char *text = choices[i].text;

        if (strncmp(text, name, n) == 0 && text[n] == '=' && strcmp(text + n + 1, value) == 0) {
            if (choices[i].offset == offsetof(struct accel_properties, stage2)) {
                out->stage2 |= choices[i].value; /* bits, all of them off unless said */
            } else {
                memcpy((char *)out + choices[i].offset, &choices[i].value, sizeof(unsigned));
            }
            return 0;
        }
    }
    return base_error_set(err, EINVAL, "-accel %s='%s': mmu=ept|npt|shadow, levels=4|5, page=4k|2m|1g, "
                          "pml, ad, eager-split, nx-huge=on|off", name, value);
}

/* Lock: none. Source: own. */
void accel_properties_apply(const struct accel_properties *p, struct accel_soft_options *soft)
{
    soft->mmu = p->mmu ? p->mmu : soft->mmu;
    soft->stage2 |= p->stage2;
    soft->levels = p->levels ? p->levels : soft->levels;
    soft->host_memory = p->frames ? p->frames : soft->host_memory;
    soft->swap = p->swap ? p->swap : soft->swap;
    soft->max_page_level = p->max_page_level ? p->max_page_level : soft->max_page_level;
}

static const struct {
    const char *name;
    property_fn *set;
} properties[] = {
    {"dirty-ring-size", set_ring},        {"max-slot-size", set_slot_size},
    {"manual-dirty-log", set_manual},     {"initially-dirty", set_initially},
    {"confidential", set_confidential},   {"kernel-irqchip", set_irqchip},
    {"mmu", set_choice},                  {"levels", set_choice},
    {"page", set_choice},                 {"pml", set_choice},
    {"ad", set_choice},                   {"eager-split", set_choice},
    {"nx-huge", set_choice},              {"frames", set_frames},
    {"swap", set_swap},
};

static int set_one(struct accel_properties *out, char *word, struct base_error *err)
{
    char *equals = strchr(word, '=');
    size_t i;

    if (equals) {
        *equals = '\0';
    }
    for (i = 0; i < ARRAY_LEN(properties); i++) {
        if (strcmp(word, properties[i].name) == 0) {
            return properties[i].set(out, word, equals ? equals + 1 : "on", err);
        }
    }
    return base_error_set(err, EINVAL,
                          "-accel: unknown property '%s' (dirty-ring-size, max-slot-size, manual-dirty-log, "
                          "initially-dirty, confidential, kernel-irqchip, mmu, levels, page, pml, ad, eager-split, "
                          "nx-huge, frames, swap)", word);
}

/*
 * Take the properties apart.
 * text: as -accel gives it. *length: how much of it is the list of engines.
 * Returns: 0; -EINVAL with the property and value at fault. Lock: none. Source: own; names QEMU's where it has them.
 */
int accel_properties_parse(const char *text, struct accel_properties *out, size_t *length, struct base_error *err)
{
    char word[128];
    const char *p;
    int ret = 0;

    memset(out, 0, sizeof(*out));
    *length = strcspn(text, ",");
    for (p = text + *length; ret == 0 && *p;) {
        size_t n = strcspn(++p, ",");

        if (n >= sizeof(word)) {
            return base_error_set(err, EINVAL, "-accel: '%.32s...' is no property", p);
        }
        memcpy(word, p, n);
        word[n] = '\0';
        ret = set_one(out, word, err);
        p += n;
    }
    return ret;
}

/* What may be wrong with the text of -accel by itself. Returns: 0 or -EINVAL with err. Lock: none. Source: own. */
int accel_engine_check(const char *text, struct base_error *err)
{
    static const char *const names[] = {"kvm", "soft", "auto"};
    struct accel_properties ignored;
    size_t length, len, i;
    const char *p;
    int ret = accel_properties_parse(text, &ignored, &length, err);

    for (p = text; ret == 0 && p < text + length; p += len + (p[len] == ':')) {
        len = strcspn(p, ":,");
        for (i = 0; i < ARRAY_LEN(names) && (strlen(names[i]) != len || memcmp(p, names[i], len) != 0); i++) {
        }
        if (i == ARRAY_LEN(names)) {
            return base_error_set(err, EINVAL, "-accel '%s': unknown accelerator '%.*s' (kvm, soft, auto)", text,
                                  (int)len, p);
        }
    }
    return ret;
}
