/* Commands on the system and the VM: memory, slots, dirty logs, capabilities, raw ioctls. */
#include "player.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static int vm_ioctl(struct player *p, unsigned long request, void *arg)
{
    return accel_ioctl_ptr(p->ep, p->vm, request, arg);
}

/* require CAP [at least]: end here, as skipped, where the endpoint lacks it. */
static int cmd_require(struct player *p)
{
    unsigned long cap;
    int have;

    if (p->nr_words < 2 || !player_cap(p->word[1], &cap)) {
        return 2;
    }
    have = accel_ioctl(p->ep, p->vm >= 0 ? p->vm : p->sys, KVM_CHECK_EXTENSION, cap);
    p->skipped = have <= 0 || (uint64_t)have < player_arg(p, 2, 1);
    return 0;
}

/* check CAP: is it there (1) or not (0); with `value`, the number. */
static int cmd_check(struct player *p)
{
    unsigned long cap;
    int ret;

    if (p->nr_words < 2 || !player_cap(p->word[1], &cap)) {
        return 2;
    }
    ret = accel_ioctl(p->ep, p->vm >= 0 ? p->vm : p->sys, KVM_CHECK_EXTENSION, cap);
    if (ret < 0 || player_has(p, "value")) {
        player_result(p, ret);
    } else {
        player_say(p, "%d", ret > 0);
    }
    return 0;
}

static int cmd_vm(struct player *p)
{
    int ret = accel_ioctl(p->ep, p->sys, KVM_CREATE_VM, player_arg(p, 1, 0));

    if (ret >= 0) {
        if (p->nr_vms == PLAYER_MAX_VMS) {
            p->ep->ops->close(p->ep, ret);
            return 2;
        }
        p->vm = p->vms[p->nr_vms++] = ret;
        ret = 0;
    }
    player_result(p, ret);
    return 0;
}

/* ram NAME SIZE [shared] [readonly|none]: host memory, zeroed; that may only be read, or not touched. */
static int cmd_ram(struct player *p)
{
    struct player_ram *r = &p->ram[p->nr_ram];
    uint64_t size = player_arg(p, 2, 0);

    if (p->nr_ram == PLAYER_MAX_RAM || p->nr_words < 3 || !size) {
        return 2;
    }
    r->base = mmap(NULL, size,
                   player_has(p, "none")       ? PROT_NONE
                   : player_has(p, "readonly") ? PROT_READ
                                               : PROT_READ | PROT_WRITE,
                   (player_has(p, "shared") ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
    if (r->base == MAP_FAILED) {
        return 2;
    }
    snprintf(r->name, sizeof(r->name), "%s", p->word[1]);
    r->size = size;
    p->nr_ram++;
    return 0;
}

static void note_slot(struct player *p, const struct kvm_userspace_memory_region *m)
{
    struct player_slot *s = NULL;

    for (unsigned i = 0; i < p->nr_slots; i++) {
        if (p->slot[i].id == m->slot) {
            s = &p->slot[i];
        }
    }
    if (!s && p->nr_slots < PLAYER_MAX_SLOTS) {
        s = &p->slot[p->nr_slots++];
    }
    if (s) {
        *s = (struct player_slot){m->slot, m->guest_phys_addr, m->memory_size,
                                  (unsigned char *)(uintptr_t)m->userspace_addr};
    }
}

/* slot ID gpa= size= mem=NAME+OFF|number flags= */
static int cmd_slot(struct player *p)
{
    struct kvm_userspace_memory_region m = {
        .slot = (uint32_t)player_arg(p, 1, 0),
        .flags = (uint32_t)player_num(p, "flags", 0),
        .guest_phys_addr = player_num(p, "gpa", 0),
        .memory_size = player_num(p, "size", 0),
        .userspace_addr = (uintptr_t)player_addr(p, player_text(p, "mem")),
    };
    int ret = vm_ioctl(p, KVM_SET_USER_MEMORY_REGION, &m);

    if (ret == 0) {
        note_slot(p, &m);
    }
    player_result(p, ret);
    return 0;
}

/* Runs of set bits as "first-last". */
static void say_bits(struct player *p, const uint64_t *bits, uint64_t n)
{
    char text[2000];
    size_t at = 0;

    text[0] = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t first = i;

        if (!(bits[i / 64] >> (i % 64) & 1)) {
            continue;
        }
        while (i + 1 < n && (bits[(i + 1) / 64] >> ((i + 1) % 64) & 1)) {
            i++;
        }
        if (at < sizeof(text) - 50) {
            at += (size_t)snprintf(text + at, sizeof(text) - at, first == i ? " %llu" : " %llu-%llu",
                                   (unsigned long long)first, (unsigned long long)i);
        }
    }
    player_say(p, "dirty:%s", at ? text : " none");
}

static uint64_t slot_pages(struct player *p, uint32_t id)
{
    for (unsigned i = 0; i < p->nr_slots; i++) {
        if (p->slot[i].id == id) {
            return p->slot[i].size >> 12;
        }
    }
    return 0;
}

/* dirty ID: read the log. */
static int cmd_dirty(struct player *p)
{
    uint32_t id = (uint32_t)player_arg(p, 1, 0);
    uint64_t pages = slot_pages(p, id), words = (pages + 63) / 64 + 1;
    uint64_t *bits = calloc(words, 8);
    struct kvm_dirty_log log = {.slot = id, .dirty_bitmap = bits};
    int ret = bits ? vm_ioctl(p, KVM_GET_DIRTY_LOG, &log) : -ENOMEM;

    if (ret < 0) {
        player_result(p, ret);
    } else {
        say_bits(p, bits, words * 64 > pages ? pages : words * 64);
    }
    free(bits);
    return 0;
}

/* clear ID first= count= [mask=all|HEXWORD]: KVM_CLEAR_DIRTY_LOG. */
static int cmd_clear(struct player *p)
{
    uint64_t count = player_num(p, "count", 64), mask = player_num(p, "mask", UINT64_MAX);
    uint64_t *bits = calloc(count / 64 + 2, 8);
    struct kvm_clear_dirty_log log = {
        .slot = (uint32_t)player_arg(p, 1, 0),
        .num_pages = (uint32_t)count,
        .first_page = player_num(p, "first", 0),
        .dirty_bitmap = bits,
    };

    if (!bits) {
        return 2;
    }
    for (uint64_t i = 0; i < count / 64 + 2; i++) {
        bits[i] = mask;
    }
    player_result(p, vm_ioctl(p, KVM_CLEAR_DIRTY_LOG, &log));
    free(bits);
    return 0;
}

/* cap NAME [arg0 ...] on=vm|vcpu flags=: KVM_ENABLE_CAP. */
static int cmd_cap(struct player *p)
{
    struct kvm_enable_cap cap = {.flags = (uint32_t)player_num(p, "flags", 0)};
    const char *on = player_text(p, "on");
    unsigned long id;
    unsigned n = 0;
    uint64_t v;

    if (p->nr_words < 2 || !player_cap(p->word[1], &id)) {
        return 2;
    }
    cap.cap = (uint32_t)id;
    for (unsigned i = 2; i < p->nr_words && n < 4; i++) {
        if (player_parse_num(p->word[i], &v)) {
            cap.args[n++] = v;
        }
    }
    if (on && strcmp(on, "vcpu") == 0 && player_cur(p)) {
        player_result(p, accel_ioctl_ptr(p->ep, player_cur(p)->fd, KVM_ENABLE_CAP, &cap));
    } else {
        player_result(p, vm_ioctl(p, KVM_ENABLE_CAP, &cap));
    }
    return 0;
}

static int target_fd(struct player *p, const char *name)
{
    if (strcmp(name, "sys") == 0) {
        return p->sys;
    }
    if (strcmp(name, "vm") == 0) {
        return p->vm;
    }
    return player_cur(p) ? player_cur(p)->fd : -1;
}

/* raw sys|vm|vcpu REQUEST [ptr=N | hex bytes...] [show=LEN]: an ioctl as it is. */
static int cmd_raw(struct player *p)
{
    static unsigned char buf[65536] __attribute__((aligned(4096)));
    unsigned long request;
    size_t n = 0, show = player_num(p, "show", 0);
    uint64_t v;
    int ret;

    if (p->nr_words < 3 || !player_request(p->word[2], &request)) {
        return 2;
    }
    if (player_has(p, "ptr")) {
        ret = accel_ioctl(p->ep, target_fd(p, p->word[1]), request, player_num(p, "ptr", 0));
    } else {
        memset(buf, 0, sizeof(buf));
        for (unsigned i = 3; i < p->nr_words && n < sizeof(buf) - 8; i++) {
            char *colon = strchr(p->word[i], ':');
            size_t width = colon ? (size_t)atoi(colon + 1) : 1;

            if (strchr(p->word[i], '=')) {
                continue;
            }
            if (colon) {
                *colon = 0;
            }
            v = (uintptr_t)player_addr(p, p->word[i]);
            memcpy(buf + n, &v, width > 8 ? 8 : width);
            n += width;
        }
        ret = accel_ioctl_ptr(p->ep, target_fd(p, p->word[1]), request, buf);
    }
    player_result(p, ret > 0 && player_has(p, "bool") ? 1 : ret);
    if (ret >= 0 && show) {
        char text[3 * 256 + 1];
        size_t at = 0;

        for (size_t i = 0; i < show && i < 256; i++) {
            at += (size_t)snprintf(text + at, sizeof(text) - at, "%02x%s", buf[i], i % 8 == 7 ? " " : "");
        }
        player_say(p, "%s", text);
    }
    return 0;
}

/* fill MEM+OFF hex bytes... | word=N count=N */
static int cmd_fill(struct player *p)
{
    unsigned char *to = p->nr_words > 1 ? player_addr(p, p->word[1]) : NULL;

    if (!to) {
        return 2;
    }
    if (player_has(p, "word")) {
        uint64_t v = player_num(p, "word", 0);

        for (uint64_t i = 0; i < player_num(p, "count", 1); i++) {
            memcpy(to + i * 8, &v, 8);
        }
        return 0;
    }
    for (unsigned i = 2; i < p->nr_words; i++) {
        *to++ = (unsigned char)strtoul(p->word[i], NULL, 16);
    }
    return 0;
}

/* show MEM+OFF LEN */
static int cmd_show(struct player *p)
{
    unsigned char *from = p->nr_words > 1 ? player_addr(p, p->word[1]) : NULL;
    uint64_t len = player_arg(p, 2, 16);
    char text[3 * 256 + 1];
    size_t at = 0;

    if (!from) {
        return 2;
    }
    for (uint64_t i = 0; i < len && i < 256; i++) {
        at += (size_t)snprintf(text + at, sizeof(text) - at, "%02x%s", from[i], i % 8 == 7 ? " " : "");
    }
    player_say(p, "%s", text);
    return 0;
}

const struct player_command player_vm_commands[] = {
    {"require", cmd_require}, {"check", cmd_check}, {"vm", cmd_vm},       {"ram", cmd_ram},
    {"slot", cmd_slot},       {"dirty", cmd_dirty}, {"clear", cmd_clear}, {"cap", cmd_cap},
    {"raw", cmd_raw},         {"fill", cmd_fill},   {"show", cmd_show},   {NULL, NULL},
};
