/*
 * Printing region trees in the form of QEMU's `info mtree`: spaces with the same root together, then
 * their tree, children by address (the one that wins first, where they begin together); at the end
 * the trees that are only shown through aliases.
 * Lock: the handle's, held while printing: the sink must not change the topology.
 * Source: QEMU mtree_print_mr(), by rule. Differs: what is below a disabled region is left out with
 * it, and control characters in names are escaped.
 */
#include "memory/print.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Format into the sink; one piece is at most 512 bytes. */
void memory_print(struct memory_printer *p, const char *fmt, ...)
{
    char text[512];
    va_list args;
    int n;

    va_start(args, fmt);
    n = vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    if (n > 0) {
        p->sink(p->opaque, text, (size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1);
    }
}

/* A name, whatever is in it, on one line. */
void memory_print_name(struct memory_printer *p, const char *name)
{
    for (; *name; name++) {
        if ((unsigned char)*name < 0x20 || *name == 0x7f) {
            memory_print(p, "\\x%02x", (unsigned char)*name);
        } else {
            p->sink(p->opaque, name, 1);
        }
    }
}

/* A JSON string, quotes included. */
void memory_print_json(struct memory_printer *p, const char *text)
{
    memory_print(p, "\"");
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;

        if (c == '"' || c == '\\') {
            memory_print(p, "\\%c", c);
        } else if (c < 0x20 || c == 0x7f) {
            memory_print(p, "\\u%04x", c);
        } else {
            p->sink(p->opaque, text, 1);
        }
    }
    memory_print(p, "\"");
}

/* The word for what a region is, as QEMU has it. */
const char *memory_region_type(const struct strata_region *region)
{
    while (region->target) {
        region = region->target;
    }
    if (region->kind == STRATA_RAM_DEVICE) {
        return "ramd";
    }
    if (region->kind == STRATA_ROM_DEVICE && region->romd) {
        return "romd";
    }
    if (region->kind == STRATA_ROM || (region->kind == STRATA_RAM && region->readonly)) {
        return "rom";
    }
    return region->kind == STRATA_RAM ? "ram" : "i/o";
}

/* One region to be printed; JSON's closing brackets are entries of their own. */
struct entry {
    const struct strata_region *region; /* null: close a list of children */
    uint64_t base;
    unsigned level;
    bool last;                          /* JSON: no comma behind */
};

struct tree {
    struct strata_memory *mem;
    struct memory_printer *p;
    struct entry *stack;
    size_t depth, cap;
    const struct strata_region **kids;
    size_t nkids, cap_kids;
    int err;
};

static void push(struct tree *t, struct entry e)
{
    t->err = t->err ? t->err
                    : memory_grow(t->mem, &t->stack, &t->cap, t->depth + 1, sizeof(*t->stack));
    if (!t->err) {
        t->stack[t->depth++] = e;
    }
}

static int take_kid(void *opaque, struct itree_node *node)
{
    struct tree *t = opaque;

    t->err = memory_grow(t->mem, &t->kids, &t->cap_kids, t->nkids + 1, sizeof(struct strata_region *));
    if (!t->err) {
        t->kids[t->nkids++] = container_of(node, struct strata_region, node);
    }
    return t->err;
}

static int by_address(const void *pa, const void *pb)
{
    const struct strata_region *a = *(struct strata_region *const *)pa;
    const struct strata_region *b = *(struct strata_region *const *)pb;

    if (a->addr != b->addr) {
        return a->addr < b->addr ? -1 : 1;
    }
    if (a->priority != b->priority) {
        return a->priority > b->priority ? -1 : 1;
    }
    return a->seq > b->seq ? -1 : 1;
}

static bool is_printed(const struct tree *t, const struct strata_region *region)
{
    return region->enabled || t->p->flags & STRATA_PRINT_DISABLED;
}

/* Children onto the stack, the first on top. Returns how many. */
static size_t push_children(struct tree *t, const struct entry *e, uint64_t base)
{
    size_t n = 0;

    t->nkids = 0;
    memory_itree_visit(&e->region->children, 0, UINT64_MAX, take_kid, t);
    for (size_t i = 0; i < t->nkids; i++) {
        if (is_printed(t, t->kids[i])) {
            t->kids[n++] = t->kids[i];
        }
    }
    if (n > 1) {
        qsort(t->kids, n, sizeof(*t->kids), by_address);
    }
    for (size_t i = n; i > 0; i--) {
        push(t, (struct entry){t->kids[i - 1], base, e->level + 1, i == n});
    }
    return n;
}

static uint64_t extent(const struct strata_region *region)
{
    return region->size ? memory_region_last(region) : 0;
}

static void print_line(struct tree *t, const struct entry *e)
{
    const struct strata_region *r = e->region;
    uint64_t start = e->base + r->addr, last = start + extent(r);

    memory_print(t->p, "%*s", (int)(2 * (e->level < 100 ? e->level : 100)), "");
    if ((e->level > 1 && start < e->base) || last < start) {
        memory_print(t->p, "[DETECTED OVERFLOW!] ");
    }
    memory_print(t->p, "%016llx-%016llx (prio %d, %s%s): ", (unsigned long long)start,
                 (unsigned long long)last, r->priority, r->nonvolatile ? "nv-" : "",
                 memory_region_type(r));
    if (r->target) {
        memory_print(t->p, "alias ");
        memory_print_name(t->p, r->name);
        memory_print(t->p, " @");
        memory_print_name(t->p, r->target->name);
        memory_print(t->p, " %016llx-%016llx", (unsigned long long)r->offset,
                     (unsigned long long)(r->offset + extent(r)));
    } else {
        memory_print_name(t->p, r->name);
    }
    memory_print(t->p, "%s", r->enabled ? "" : " [disabled]");
    if (t->p->flags & STRATA_PRINT_OWNER && r->owner) {
        memory_print(t->p, " owner:{");
        memory_print_name(t->p, r->owner->name);
        memory_print(t->p, "}");
    }
    memory_print(t->p, "\n");
}

static void json_object(struct tree *t, const struct entry *e)
{
    const struct strata_region *r = e->region;
    uint64_t start = e->base + r->addr;

    memory_print(t->p, "{\"name\":");
    memory_print_json(t->p, r->name);
    memory_print(t->p, ",\"start\":%llu,\"last\":%llu,\"priority\":%d,\"type\":\"%s\"",
                 (unsigned long long)start, (unsigned long long)(start + extent(r)), r->priority,
                 memory_region_type(r));
    memory_print(t->p, ",\"enabled\":%s,\"readonly\":%s,\"nonvolatile\":%s",
                 r->enabled ? "true" : "false", r->readonly ? "true" : "false",
                 r->nonvolatile ? "true" : "false");
    if (r->target) {
        memory_print(t->p, ",\"alias\":");
        memory_print_json(t->p, r->target->name);
        memory_print(t->p, ",\"offset\":%llu", (unsigned long long)r->offset);
    }
    if (t->p->flags & STRATA_PRINT_OWNER && r->owner) {
        memory_print(t->p, ",\"owner\":");
        memory_print_json(t->p, r->owner->name);
    }
    memory_print(t->p, ",\"children\":[");
}

static void print_entry(struct tree *t, struct entry e)
{
    bool json = t->p->flags & STRATA_PRINT_JSON;

    if (!e.region) {
        memory_print(t->p, "]}%s", e.last ? "" : ",");
        return;
    }
    if (json) {
        json_object(t, &e);
        push(t, (struct entry){.last = e.last});
    } else {
        print_line(t, &e);
    }
    push_children(t, &e, e.base + e.region->addr);
}

static int print_tree(struct strata_memory *mem, struct memory_printer *p,
                      const struct strata_region *root)
{
    struct tree t = {.mem = mem, .p = p};

    /* A root begins at 0 of its space, whatever its own address says. */
    push(&t, (struct entry){root, 0 - root->addr, 1, true});
    while (t.depth > 0 && !t.err) {
        struct entry e = t.stack[--t.depth];

        if (!e.region || e.level > 1 || is_printed(&t, e.region)) {
            print_entry(&t, e);
        }
    }
    memory_free(mem, t.stack, t.cap * sizeof(*t.stack));
    memory_free(mem, t.kids, t.cap_kids * sizeof(*t.kids));
    return t.err;
}

/* Is this the first of the spaces (from `list` on) with its root? */
static bool first_of_root(struct strata_memory *mem, const struct strata_space *space)
{
    struct list *it;

    list_for_each(it, &mem->spaces) {
        const struct strata_space *s = list_entry(it, struct strata_space, node);

        if (s->root == space->root) {
            return s == space;
        }
    }
    return true;
}

static int print_space(struct strata_memory *mem, struct memory_printer *p,
                       const struct strata_space *space, bool group, bool first)
{
    bool json = p->flags & STRATA_PRINT_JSON, comma = false;
    struct list *it;
    int err;

    memory_print(p, "%s", json ? first ? "{\"spaces\":[" : ",{\"spaces\":[" : "");
    list_for_each(it, &mem->spaces) {
        const struct strata_space *s = list_entry(it, struct strata_space, node);

        if (s != space && !(group && s->root == space->root)) {
            continue;
        }
        if (json) {
            memory_print(p, "%s", comma ? "," : "");
            memory_print_json(p, s->name);
        } else {
            memory_print(p, "address-space: ");
            memory_print_name(p, s->name);
            memory_print(p, "\n");
        }
        comma = true;
    }
    memory_print(p, "%s", json ? "],\"tree\":" : "");
    err = print_tree(mem, p, space->root);
    memory_print(p, "%s", json ? "}" : "\n");
    return err;
}

/* Is a region below some root, without aliases? Then its tree is printed there. */
static bool is_in_a_space(const struct strata_region *region)
{
    while (region->container) {
        region = region->container;
    }
    return !list_is_empty(&region->spaces);
}

static int print_alias_targets(struct strata_memory *mem, struct memory_printer *p, bool first)
{
    struct list *it;
    int err = 0;

    list_for_each(it, &mem->regions) {
        const struct strata_region *r = list_entry(it, struct strata_region, all_node);

        if (err || list_is_empty(&r->aliases) || is_in_a_space(r)) {
            continue;
        }
        if (p->flags & STRATA_PRINT_JSON) {
            memory_print(p, "%s{\"region\":", first ? "" : ",");
            memory_print_json(p, r->name);
            memory_print(p, ",\"tree\":");
        } else {
            memory_print(p, "memory-region: ");
            memory_print_name(p, r->name);
            memory_print(p, "\n");
        }
        err = print_tree(mem, p, r);
        memory_print(p, "%s", p->flags & STRATA_PRINT_JSON ? "}" : "\n");
        first = false;
    }
    return err;
}

static int print_trees(struct strata_memory *mem, struct strata_space *only, struct memory_printer *p)
{
    struct list *it;
    bool first = true;
    int err = 0;

    if (only) {
        return print_space(mem, p, only, false, true);
    }
    memory_print(p, "%s", p->flags & STRATA_PRINT_JSON ? "[" : "");
    list_for_each(it, &mem->spaces) {
        const struct strata_space *space = list_entry(it, struct strata_space, node);

        if (!err && first_of_root(mem, space)) {
            err = print_space(mem, p, space, true, first);
            first = false;
        }
    }
    err = err ? err : print_alias_targets(mem, p, first);
    memory_print(p, "%s", p->flags & STRATA_PRINT_JSON ? "]\n" : "");
    return err;
}

/*
 * Print all spaces, or one. flags: enum strata_print_flags; sink: gets the text in pieces.
 * Returns 0 or -ENOMEM (what was printed is incomplete). Lock: taken.
 */
int strata_print(struct strata_memory *mem, struct strata_space *space, unsigned flags,
                 strata_sink sink, void *opaque)
{
    struct memory_printer p = {sink, opaque, flags};
    int err;

    memory_lock(mem);
    err = flags & STRATA_PRINT_FLAT ? memory_print_flat(mem, space, &p)
                                    : print_trees(mem, space, &p);
    memory_unlock(mem);
    return err;
}

/*
 * Write a name in the form that paths and migration ids use: '/', '[', ']' and '\' become \xNN.
 * buf: size bytes, always ended. Returns how long the whole is. Source: QEMU memory_region_escape_name().
 */
size_t strata_escape_name(const char *name, char *buf, size_t size)
{
    size_t n = 0;

    for (; *name; name++) {
        char piece[5];
        int len = strchr("/[]\\", *name) ? snprintf(piece, sizeof(piece), "\\x%02x", *name)
                                         : snprintf(piece, sizeof(piece), "%c", *name);

        for (int i = 0; i < len; i++, n++) {
            if (n + 1 < size) {
                buf[n] = piece[i];
            }
        }
    }
    if (size) {
        buf[n < size ? n : size - 1] = '\0';
    }
    return n;
}
