/* The player's frame: lines, words, values, outcomes; see player.h. */
#include "player.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

static const struct {
    int code;
    const char *name;
} errors[] = {
    {EPERM, "EPERM"},   {ENOENT, "ENOENT"}, {EINTR, "EINTR"},   {EIO, "EIO"},       {ENXIO, "ENXIO"},
    {E2BIG, "E2BIG"},   {EBADF, "EBADF"},   {EAGAIN, "EAGAIN"}, {ENOMEM, "ENOMEM"}, {EFAULT, "EFAULT"},
    {EBUSY, "EBUSY"},   {EEXIST, "EEXIST"}, {ENODEV, "ENODEV"}, {EINVAL, "EINVAL"}, {EMFILE, "EMFILE"},
    {ENOTTY, "ENOTTY"}, {ENOSPC, "ENOSPC"}, {ENOSYS, "ENOSYS"}, {EOPNOTSUPP, "EOPNOTSUPP"},
    {EHWPOISON, "EHWPOISON"},
};

const char *player_errname(int err)
{
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        if (errors[i].code == err) {
            return errors[i].name;
        }
    }
    return "E?";
}

void player_say(struct player *p, const char *fmt, ...)
{
    va_list args;

    if (p->hide_next) {
        return;
    }
    fputs("  ", p->out);
    va_start(args, fmt);
    vfprintf(p->out, fmt, args);
    va_end(args);
    fputc('\n', p->out);
}

void player_result(struct player *p, int ret)
{
    if (ret < 0) {
        player_say(p, "-%s", player_errname(-ret));
    } else if (ret == 0) {
        player_say(p, "ok");
    } else {
        player_say(p, "= %d", ret);
    }
}

bool player_parse_num(const char *s, uint64_t *v)
{
    char *end;
    bool negative = *s == '-';

    errno = 0;
    *v = strtoull(s + negative, &end, 0);
    if (end == s + negative || errno) {
        return false;
    }
    if (*end && strchr("kMG", *end) && !end[1]) {
        *v <<= *end == 'k' ? 10 : *end == 'M' ? 20 : 30;
        end++;
    }
    if (negative) {
        *v = -*v;
    }
    return *end == 0;
}

const char *player_text(struct player *p, const char *key)
{
    size_t len = strlen(key);

    for (unsigned i = 1; i < p->nr_words; i++) {
        if (strncmp(p->word[i], key, len) == 0 && p->word[i][len] == '=') {
            return p->word[i] + len + 1;
        }
    }
    return NULL;
}

bool player_has(struct player *p, const char *key)
{
    for (unsigned i = 1; i < p->nr_words; i++) {
        if (strcmp(p->word[i], key) == 0) {
            return true;
        }
    }
    return player_text(p, key) != NULL;
}

uint64_t player_num(struct player *p, const char *key, uint64_t fallback)
{
    const char *s = player_text(p, key);
    uint64_t v;

    return s && player_parse_num(s, &v) ? v : fallback;
}

uint64_t player_arg(struct player *p, unsigned n, uint64_t fallback)
{
    uint64_t v;

    return n < p->nr_words && player_parse_num(p->word[n], &v) ? v : fallback;
}

void *player_addr(struct player *p, const char *s)
{
    const char *plus;
    uint64_t off = 0, num;
    size_t len;

    if (!s) {
        return NULL;
    }
    if (player_parse_num(s, &num)) {
        return (void *)(uintptr_t)num;
    }
    plus = strchr(s, '+');
    len = plus ? (size_t)(plus - s) : strlen(s);
    if (plus) {
        player_parse_num(plus + 1, &off);
    }
    for (unsigned i = 0; i < p->nr_ram; i++) {
        if (strlen(p->ram[i].name) == len && strncmp(p->ram[i].name, s, len) == 0) {
            return p->ram[i].base + off;
        }
    }
    return NULL;
}

unsigned char *player_gpa(struct player *p, uint64_t gpa, size_t len)
{
    for (unsigned i = 0; i < p->nr_slots; i++) {
        struct player_slot *s = &p->slot[i];

        if (s->size && gpa >= s->gpa && gpa - s->gpa <= s->size - len && len <= s->size) {
            return s->hva + (gpa - s->gpa);
        }
    }
    return NULL;
}

struct player_vcpu *player_cur(struct player *p)
{
    return p->nr_vcpus ? &p->vcpu[p->cur] : NULL;
}

static bool cpu_flag(const char *flag)
{
    char line[8192];
    bool found = false;
    FILE *f = fopen("/proc/cpuinfo", "re");

    while (f && !found && fgets(line, sizeof(line), f)) {
        found = strncmp(line, "flags", 5) == 0 && strstr(line, flag);
    }
    if (f) {
        fclose(f);
    }
    return found;
}

bool player_tag(const struct player *p, const char *tag)
{
    unsigned major, minor, have_major = 0, have_minor = 0;
    struct utsname u;

    if (strcmp(tag, "any") == 0) {
        return true;
    }
    if (strcmp(tag, "soft") == 0 || p->is_soft) {
        return p->is_soft && strcmp(tag, "soft") == 0;
    }
    if (sscanf(tag, "linux<%u.%u", &major, &minor) == 2 && uname(&u) == 0 &&
        sscanf(u.release, "%u.%u", &have_major, &have_minor) == 2) {
        return have_major < major || (have_major == major && have_minor < minor);
    }
    if (strcmp(tag, "pv") == 0) {
        return !cpu_flag(" svm") && !cpu_flag(" vmx");
    }
    return strcmp(tag, "kvm") == 0 || (strcmp(tag, "svm") == 0 && cpu_flag(" svm")) ||
           (strcmp(tag, "vmx") == 0 && cpu_flag(" vmx"));
}

static int dispatch(struct player *p)
{
    const struct player_command *const tables[] = {player_vm_commands,    player_vcpu_commands,
                                                   player_event_commands, player_guest_commands,
                                                   player_state_commands, player_fd_commands};

    for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++) {
        for (const struct player_command *c = tables[t]; c->name; c++) {
            if (strcmp(c->name, p->word[0]) == 0) {
                return c->run(p);
            }
        }
    }
    fprintf(stderr, "line %d: no command '%s'\n", p->line, p->word[0]);
    return 2;
}

static void split(struct player *p, char *line)
{
    char *save, *hash = strchr(line, '#');

    if (hash) {
        *hash = 0;
    }
    p->nr_words = 0;
    for (char *w = strtok_r(line, " \t\n", &save); w && p->nr_words < PLAYER_MAX_WORDS;
         w = strtok_r(NULL, " \t\n", &save)) {
        p->word[p->nr_words++] = w;
    }
}

static int play_line(struct player *p, char *line)
{
    bool hidden = p->hide_next;
    int ret;

    split(p, line);
    if (p->nr_words == 0) {
        return 0;
    }
    fprintf(p->out, "> ");
    for (unsigned i = 0; i < p->nr_words && i < 24; i++) {
        fprintf(p->out, "%s%s", i ? " " : "", p->word[i]);
    }
    fputc('\n', p->out);
    if (strcmp(p->word[0], "differs") == 0) {
        p->hide_next |= p->nr_words > 1 && player_tag(p, p->word[1]);
        return p->nr_words > 2 ? 0 : 2;
    }
    if (strcmp(p->word[0], "unless") == 0) {
        p->skipped = p->nr_words > 1 && player_tag(p, p->word[1]);
        return p->nr_words > 2 ? 0 : 2;
    }
    if (hidden) {
        fputs("  (differs)\n", p->out);
    }
    ret = dispatch(p);
    if (hidden) {
        p->hide_next = false;
    }
    return ret;
}

int player_play(struct player *p, FILE *script)
{
    char *line = NULL;
    size_t size = 0;
    int ret = 0;

    p->sys = p->ep->ops->open_system(p->ep);
    if (p->sys < 0) {
        fprintf(stderr, "cannot open the endpoint: %s\n", strerror(-p->sys));
        return 77;
    }
    p->vm = -1;
    p->is_soft = strcmp(p->ep->ops->name, "soft") == 0;
    p->run_size = (size_t)accel_ioctl(p->ep, p->sys, KVM_GET_VCPU_MMAP_SIZE, 0);
    memset(p->answer, 0xff, sizeof(p->answer));
    while (ret == 0 && !p->skipped && getline(&line, &size, script) >= 0) {
        p->line++;
        ret = play_line(p, line);
    }
    free(line);
    return p->skipped ? 77 : ret;
}

static void close_vm(struct player *p)
{
    if (p->load.running) {
        __atomic_store_n(&p->load.stop, true, __ATOMIC_RELEASE);
        __atomic_store_n(&p->load.v->run->immediate_exit, 1, __ATOMIC_RELEASE);
        p->ep->ops->kick(p->ep, p->load.v->fd, p->load.thread);
        pthread_join(p->load.thread, NULL);
    }
    for (unsigned i = 0; i < p->nr_vcpus; i++) {
        if (p->vcpu[i].run) {
            p->ep->ops->munmap(p->ep, p->vcpu[i].run, p->run_size);
        }
        if (p->vcpu[i].ring) {
            p->ep->ops->munmap(p->ep, p->vcpu[i].ring, p->vcpu[i].ring_entries * sizeof(*p->vcpu[i].ring));
        }
        if (p->vcpu[i].fd >= 0) {
            p->ep->ops->close(p->ep, p->vcpu[i].fd);
        }
    }
    for (unsigned i = 0; i < p->nr_vms; i++) {
        if (p->vms[i] >= 0) {
            p->ep->ops->close(p->ep, p->vms[i]);
        }
    }
    p->nr_vcpus = p->nr_vms = 0;
    p->vm = -1;
}

void player_close(struct player *p)
{
    close_vm(p);
    if (p->sys >= 0) {
        p->ep->ops->close(p->ep, p->sys);
    }
    for (unsigned i = 0; i < p->nr_events; i++) {
        if (p->event[i].fd >= 0) {
            close(p->event[i].fd);
        }
    }
    for (unsigned i = 0; i < p->nr_ram; i++) {
        munmap(p->ram[i].base, p->ram[i].size);
    }
}
