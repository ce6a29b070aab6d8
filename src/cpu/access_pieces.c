/*
 * The slow memory path, second half: the bytes of an access whose targets are found, to and from RAM and
 * devices. See access.c for the flow and its invariants.
 *
 * Locks: none.
 */
#include "cpu/access_impl.h"

#include "cpu/block.h"
#include "cpu/peers.h"
#include "cpu/replay.h"
#include "cpu/shadow.h"
#include "host/frame.h"

/* A device access of up to 8 bytes; false: recorded, or to be restarted. */
static bool device_read(struct access *a, const struct piece *p, unsigned done, unsigned n)
{
    struct cpu_xlate x = {.la = p->la + done, .gpa = p->gpa + done, .final = true};
    struct piece part = {.la = x.la, .off = p->off + done, .len = n};

    switch (cpu_replay_read(a->cpu, a->op, false, x.gpa, a->buf + part.off, n)) {
    case CPU_REPLAY_DONE:
        return true;
    case CPU_REPLAY_NEW:
        cpu_access_refused(a->cpu, &x, CPU_XLATE_MISCONFIG, a, &part);
        return false;
    case CPU_REPLAY_RESTART:
        break;
    }
    return false;
}

static bool device_write(struct access *a, const struct piece *p, unsigned done, unsigned n)
{
    struct cpu_xlate x = {.la = p->la + done, .gpa = p->gpa + done, .final = true};
    struct piece part = {.la = x.la, .off = p->off + done, .len = n};

    switch (cpu_replay_write(a->cpu, a->op, false, x.gpa, a->buf + part.off, n)) {
    case CPU_REPLAY_DONE:
        return true;
    case CPU_REPLAY_NEW:
        cpu_access_refused(a->cpu, &x, CPU_XLATE_MISCONFIG, a, &part);
        a->cpu->restart_alone = 0;
        return true;
    case CPU_REPLAY_RESTART:
        break;
    }
    return false;
}

bool cpu_pieces_read(struct access *a)
{
    for (unsigned i = 0; i < a->pieces; i++) {
        struct piece *p = &a->piece[i];

        if (likely(p->host || p->rom)) {
            ram_read(a->buf + p->off, p->host ? p->host : p->rom, p->len);
            continue;
        }
        for (unsigned done = 0; done < p->len; done += 8) {
            if (!device_read(a, p, done, p->len - done > 8 ? 8 : p->len - done)) {
                return false;
            }
        }
    }
    return true;
}

/* A page that had code when its TLB entry was made: tell the blocks, or make the entry anew. */
static void code_page_written(struct access *a, const struct piece *p)
{
    struct cpu_tlb_entry *e = cpu_tlb_entry_of(a->cpu, a->set, p->la);

    if (cpu_frame_has_code(a->cpu, p->pfn)) {
        cpu_code_written(a->cpu, p->pfn, (unsigned)page_offset(p->la), p->len);
    } else {
        e->tag_r = 0;
    }
}

/* The shadow tables refuse a piece: by grant, or an exit (false). */
bool cpu_piece_shadow(struct access *a, struct piece *p, const struct cpu_xlate *x,
                      enum cpu_xlate_result res)
{
    struct cpu *cpu = a->cpu;
    const struct cpu_grant *g = cpu_shadow_find_grant(cpu, a->op, p->la, a->set == CPU_TLB_USER);
    struct host_frame *frame = g && g->pfn ? host_frame_at(cpu->mem, pfn(g->pfn)) : NULL;
    uint8_t *data = frame ? host_frame_data(frame) : NULL;

    if (!g || (!data && !g->device)) {
        cpu_shadow_refused(cpu, a->op, x, res == CPU_XLATE_FAULT);
        cpu_sync_rip(cpu, a->op);
        return false;
    }
    p->gpa = g->gpa + page_offset(p->la);
    if (g->device) {
        p->host = NULL;
        p->rom = data ? data + page_offset(p->la) : NULL;
        return true;
    }
    p->host = data + page_offset(p->la);
    p->pfn = g->pfn;
    p->granted = a->kind == CPU_ACCESS_WRITE;
    p->has_code = cpu_frame_has_code(cpu, g->pfn);
    return true;
}

/* Devices first: they can ask for a restart, and then RAM must not have been written. */
bool cpu_pieces_write(struct access *a)
{
    bool granted = a->piece[0].granted || (a->pieces > 1 && a->piece[1].granted);

    if (unlikely(granted) && !cpu_shadow_may_write(a->cpu, a->op)) {
        return false;
    }
    for (unsigned i = 0; i < a->pieces; i++) {
        struct piece *p = &a->piece[i];

        for (unsigned done = 0; !p->host && done < p->len; done += 8) {
            if (!device_write(a, p, done, p->len - done > 8 ? 8 : p->len - done)) {
                return false;
            }
        }
    }
    for (unsigned i = 0; i < a->pieces; i++) {
        struct piece *p = &a->piece[i];

        if (p->host) {
            ram_write(p->host, a->buf + p->off, p->len);
            if (unlikely(p->has_code)) {
                code_page_written(a, p);
            }
            if (unlikely(p->granted)) {
                cpu_shadow_wrote(a->cpu, p->gpa, p->len);
            }
        }
    }
    return true;
}
