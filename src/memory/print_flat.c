/*
 * Printing flat views in the form of QEMU's `info mtree -f`, with the dispatch radix (-d); RAM blocks;
 * the journal. Lock: the handle's, held while printing.
 */
#include <string.h>

#include "memory/dispatch.h"
#include "memory/journal.h"
#include "memory/print.h"
#include "memory/ram.h"

struct flat {
    struct memory_printer *p;
    bool first;
};

static int flat_json(struct flat *f, const struct memory_range *range)
{
    const struct memory_piece *piece = &range->piece;

    memory_print(f->p, "%s{\"start\":%llu,\"last\":%llu,\"offset\":%llu,\"region\":",
                 f->first ? "" : ",", (unsigned long long)piece->start,
                 (unsigned long long)piece->last, (unsigned long long)piece->offset);
    memory_print_json(f->p, piece->region->name);
    memory_print(f->p, ",\"type\":\"%s\",\"readonly\":%s,\"nonvolatile\":%s,\"log\":%u}",
                 memory_region_type(piece->region), piece->readonly ? "true" : "false",
                 piece->nonvolatile ? "true" : "false", piece->log_mask);
    f->first = false;
    return 0;
}

static int flat_range(void *opaque, struct itree_node *node)
{
    struct flat *f = opaque;
    const struct memory_range *range = container_of(node, struct memory_range, node);
    const struct memory_piece *piece = &range->piece;
    const char *type = memory_region_type(piece->region);

    if (f->p->flags & STRATA_PRINT_JSON) {
        return flat_json(f, range);
    }
    memory_print(f->p, "  %016llx-%016llx (prio %d, %s%s): ", (unsigned long long)piece->start,
                 (unsigned long long)piece->last, piece->region->priority,
                 piece->nonvolatile ? "nv-" : "",
                 piece->readonly && strcmp(type, "ram") == 0 ? "rom" : type);
    memory_print_name(f->p, piece->region->name);
    if (piece->offset) {
        memory_print(f->p, " @%016llx", (unsigned long long)piece->offset);
    }
    if (f->p->flags & STRATA_PRINT_OWNER && piece->region->owner) {
        memory_print(f->p, " owner:{");
        memory_print_name(f->p, piece->region->owner->name);
        memory_print(f->p, "}");
    }
    memory_print(f->p, "\n");
    return 0;
}

static void print_nodes(struct memory_printer *p, uintptr_t entry, unsigned level)
{
    const struct memory_node *node;

    if (!(entry & 1)) {
        return;
    }
    node = memory_node_of(entry);
    memory_print(p, "%*snode %016llx, %u slots of 2^%u bytes, %u used\n", (int)(4 + 2 * level), "",
                 (unsigned long long)node->head.base, node->head.count, node->head.shift, node->used);
    for (unsigned i = 0; i < node->head.count; i++) {
        print_nodes(p, node->head.slot[i], level + 1);
    }
}

static void count_nodes(uintptr_t entry, unsigned *nodes, unsigned depth, unsigned *deepest)
{
    const struct memory_node *node;

    if (!(entry & 1)) {
        return;
    }
    node = memory_node_of(entry);
    (*nodes)++;
    *deepest = depth > *deepest ? depth : *deepest;
    for (unsigned i = 0; i < node->head.count; i++) {
        count_nodes(node->head.slot[i], nodes, depth + 1, deepest);
    }
}

static void print_dispatch(struct memory_printer *p, const struct memory_view *view)
{
    unsigned nodes = 0, deepest = 0;

    count_nodes(view->head.root, &nodes, 1, &deepest);
    if (p->flags & STRATA_PRINT_JSON) {
        memory_print(p, ",\"dispatch\":{\"nodes\":%u,\"depth\":%u}", nodes, deepest);
        return;
    }
    memory_print(p, "  Dispatch: %u nodes, at most %u deep\n", nodes, deepest);
    print_nodes(p, view->head.root, 0);
}

/* Who shows a view; returns the first of them in order, null when none (or not `only`). */
static const struct strata_space *view_names(struct strata_memory *mem, const struct memory_view *view,
                                             struct strata_space *only, struct memory_printer *p)
{
    const struct strata_space *first = NULL;
    bool json = p && p->flags & STRATA_PRINT_JSON;
    struct list *it;

    list_for_each(it, &mem->spaces) {
        const struct strata_space *s = list_entry(it, struct strata_space, node);

        if (memory_space_view(s) != view || (only && s != only)) {
            continue;
        }
        if (json) {
            memory_print(p, "%s", first ? "," : "");
            memory_print_json(p, s->name);
        } else if (p) {
            memory_print(p, " AS \"");
            memory_print_name(p, s->name);
            memory_print(p, "\", root: ");
            memory_print_name(p, s->root->name);
            memory_print(p, "\n");
        }
        first = first ? first : s;
    }
    return first;
}

static void print_view_json(struct strata_memory *mem, const struct memory_view *view,
                            struct strata_space *only, struct memory_printer *p)
{
    struct flat f = {p, true};

    memory_print(p, "{\"spaces\":[");
    view_names(mem, view, only, p);
    memory_print(p, "],\"root\":");
    if (view->root) {
        memory_print_json(p, view->root->name);
    } else {
        memory_print(p, "null");
    }
    memory_print(p, ",\"ranges\":[");
    memory_itree_visit(&view->ranges, 0, UINT64_MAX, flat_range, &f);
    memory_print(p, "]");
    if (p->flags & STRATA_PRINT_DISPATCH) {
        print_dispatch(p, view);
    }
    memory_print(p, "}");
}

static void print_view(struct strata_memory *mem, const struct memory_view *view,
                       struct strata_space *only, struct memory_printer *p)
{
    struct flat f = {p, true};

    view_names(mem, view, only, p);
    memory_print(p, " Root memory region: ");
    memory_print_name(p, view->root ? view->root->name : "(none)");
    memory_print(p, "\n");
    if (!view->nranges) {
        memory_print(p, "  No rendered FlatView\n");
    }
    memory_itree_visit(&view->ranges, 0, UINT64_MAX, flat_range, &f);
    if (p->flags & STRATA_PRINT_DISPATCH) {
        print_dispatch(p, view);
    }
    memory_print(p, "\n");
}

/* The flat views of all spaces, each once, or of one space. Always 0. */
int memory_print_flat(struct strata_memory *mem, struct strata_space *only, struct memory_printer *p)
{
    bool json = p->flags & STRATA_PRINT_JSON;
    unsigned number = 0;
    struct list *it;

    memory_print(p, "%s", json ? "[" : "");
    list_for_each(it, &mem->spaces) {
        struct strata_space *space = list_entry(it, struct strata_space, node);
        struct memory_view *view = memory_space_view(space);

        if ((only && space != only) || view_names(mem, view, only, NULL) != space) {
            continue;
        }
        if (json) {
            memory_print(p, "%s", number++ ? "," : "");
            print_view_json(mem, view, only, p);
        } else {
            memory_print(p, "FlatView #%u\n", number++);
            print_view(mem, view, only, p);
        }
    }
    memory_print(p, "%s", json ? "]\n" : "");
    return 0;
}

/* RAM blocks: name, page size, linear number, used and largest size, host address. Always 0.
 * Lock: taken. Source: QEMU `info ramblock`, by form. */
int strata_print_ram(struct strata_memory *mem, unsigned flags, strata_sink sink, void *opaque)
{
    struct memory_printer p = {sink, opaque, flags};
    bool json = flags & STRATA_PRINT_JSON;

    memory_lock(mem);
    memory_print(&p, "%s", json ? "[" : "              Block Name    PSize              Offset  "
                                        "             Used              Total                HVA\n");
    for (struct strata_ram *ram = mem->rams; ram; ram = ram->next) {
        if (json) {
            memory_print(&p, "%s{\"name\":", ram == mem->rams ? "" : ",");
            memory_print_json(&p, ram->name);
            memory_print(&p, ",\"page_size\":%llu,\"addr\":%llu,\"size\":%llu,\"max_size\":%llu,"
                         "\"host\":%llu}", (unsigned long long)ram->page_size,
                         (unsigned long long)ram->addr, (unsigned long long)ram->size,
                         (unsigned long long)ram->max_size, (unsigned long long)(uintptr_t)ram->host);
        } else {
            memory_print(&p, "%24s %4llu KiB  0x%016llx 0x%016llx 0x%016llx 0x%016llx\n", ram->name,
                         (unsigned long long)ram->page_size / 1024, (unsigned long long)ram->addr,
                         (unsigned long long)ram->size, (unsigned long long)ram->max_size,
                         (unsigned long long)(uintptr_t)ram->host);
        }
    }
    memory_print(&p, "%s", json ? "]\n" : "");
    memory_unlock(mem);
    return 0;
}
