/* What happens to the memory from outside: the host's memory management, the process, slots, the dirty log. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "host/buddy.h"
#include "host/mm.h"
#include "softkvm/engine.h"
#include "storm.h"

static struct host_mm *mm_of(struct storm *w)
{
    return w->s->mm;
}

/* A page of a slot: often of few, so that things meet. */
static char *random_page(struct storm *w, unsigned *slot)
{
    *slot = storm_random(w, 4) ? DATA + (unsigned)storm_random(w, DATA_SLOTS) : (unsigned)storm_random(w, DATA);
    return w->slot[*slot].hva +
           storm_random(w, storm_random(w, 2) ? 16 : w->slot[*slot].bytes / PAGE_BYTES) % (w->slot[*slot].bytes / PAGE_BYTES) *
               PAGE_BYTES;
}

/* Called only for what may fail for want of memory. */
static void allow(struct storm *w, int r, const char *what)
{
    if (r != 0 && r != -EBUSY && r != -ENOMEM && r != -EFAULT && r != -EINVAL) {
        storm_fail(w, "%s: %s", what, strerror(-r));
    }
}

/* ---- pages that go silently ---- */

void storm_take(struct storm *w, char *page)
{
    if (w->taken) {
        return;
    }
    w->taken = page;
    w->taken_prot = storm_random(w, 2) ? PROT_NONE : PROT_READ;
    storm_say(w, "  the process protects %p to %d", (void *)page, w->taken_prot);
    mprotect(page, PAGE_BYTES, w->taken_prot);
}

void storm_give_back(struct storm *w)
{
    if (w->taken) {
        mprotect(w->taken, PAGE_BYTES, PROT_READ | PROT_WRITE);
        w->taken = NULL;
    }
}

/* ---- the host's memory management ---- */

static void host_pin(struct storm *w)
{
    struct host_page page = {.counted = true};
    unsigned i = (unsigned)storm_random(w, 4), slot;
    char *p = random_page(w, &slot);

    storm_say(w, "%s page %p", w->pages[i] ? "unpin" : "pin", (void *)p);
    if (w->pages[i]) {
        page.pfn = pfn(w->pages[i] - 1);
        host_page_put(mm_of(w), &page);
        w->pages[i] = 0;
    } else if (host_gup(mm_of(w), ptr_to_hva(p), HOST_FAULT_PIN, &page) == 0) {
        w->pages[i] = page.pfn.v + 1;
    }
}

void storm_unpin_all(struct storm *w)
{
    for (unsigned i = 0; i < 4; i++) {
        if (w->pages[i]) {
            struct host_page page = {.counted = true, .pfn = pfn(w->pages[i] - 1)};

            host_page_put(mm_of(w), &page);
            w->pages[i] = 0;
        }
    }
}

static void host_mm_step(struct storm *w)
{
    unsigned slot;
    char *page = random_page(w, &slot);
    hva_t at = ptr_to_hva(page);
    uint64_t kind = storm_random(w, 10), n = 1 + storm_random(w, 300);

    static const char *const names[] = {"reclaim", "reclaim", "migrate", "collapse", "split",
                                        "merge", "compact", "fork", "recheck", "background work"};
    storm_say(w, "host: %s (page %p of slot %u, %llu)", names[kind], (void *)page, slot,
              (unsigned long long)n);
    switch (kind) {
    case 0:
    case 1:
        host_mm_reclaim(mm_of(w), n);
        break;
    case 2:
        allow(w, host_mm_migrate(mm_of(w), at), "migrate");
        break;
    case 3:
        allow(w, host_mm_collapse(mm_of(w), at, 511), "collapse");
        break;
    case 4:
        allow(w, host_mm_split(mm_of(w), at), "split");
        break;
    case 5:
        (void)!host_mm_advise(mm_of(w), ptr_to_hva(w->slot[slot].hva),
                             ptr_to_hva(w->slot[slot].hva + w->slot[slot].bytes), HOST_VMA_MERGEABLE, 0);
        host_mm_merge_scan(mm_of(w), n * 4);
        break;
    case 6:
        host_memory_compact(w->s->hm, 1);
        break;
    case 7:
        allow(w, host_mm_forked(mm_of(w)), "fork");
        break;
    case 9:
        host_mm_work(mm_of(w), HOST_WORK_ALL);
        break;
    case 8:
        host_mm_recheck(mm_of(w), ptr_to_hva(w->slot[slot].hva),
                        ptr_to_hva(w->slot[slot].hva + w->slot[slot].bytes));
        break;
    }
}

/* ---- the process ---- */

/* Contents of n pages are zero from now on: not a write of the guest's. */
static void forget(struct storm *w, struct storm_slot *s, const char *page, unsigned n)
{
    memset(s->model + (page - s->hva), 0, n * (size_t)PAGE_BYTES);
    memset(s->mirror + (page - s->hva), 0, n * (size_t)PAGE_BYTES);
}

/* Discard, protection and back, or a new mapping in the old one's place; told in two halves. */
static void process_maps(struct storm *w)
{
    struct storm_slot *s = &w->slot[DATA + storm_random(w, DATA_SLOTS)];
    uint64_t first = storm_random(w, 24), kind = storm_random(w, 3);
    unsigned n = 1 + (unsigned)storm_random(w, storm_random(w, 8) ? 4 : 512);
    enum softkvm_change what = kind == 0   ? SOFTKVM_CHANGE_DISCARD
                               : kind == 1 ? SOFTKVM_CHANGE_UNMAP
                                           : SOFTKVM_CHANGE_PROTECT;
    char *page = s->hva + first * PAGE_BYTES;
    struct softkvm_memory_change c;

    storm_say(w, "process: change %d of %u pages at %p", (int)what, n, (void *)page);
    if (softkvm_memory_begin(w->s, &c, what, page, n * (size_t)PAGE_BYTES, PROT_READ) != 0) {
        return;
    }
    if (what == SOFTKVM_CHANGE_DISCARD) {
        madvise(page, n * (size_t)PAGE_BYTES, MADV_DONTNEED);
    } else if (what == SOFTKVM_CHANGE_UNMAP) {
        mmap(page, n * (size_t)PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
             0);
    } else {
        mprotect(page, n * (size_t)PAGE_BYTES, PROT_READ);
    }
    softkvm_memory_end(&c, true);
    if (what != SOFTKVM_CHANGE_PROTECT) {
        forget(w, s, page, n);
        return;
    }
    mprotect(page, n * (size_t)PAGE_BYTES, PROT_READ | PROT_WRITE); /* without a word */
}

/* A device of the process's reads a page, and writes some of it. */
static void process_touches(struct storm *w)
{
    struct storm_slot *s = &w->slot[DATA + storm_random(w, DATA_SLOTS)];
    uint64_t at = storm_random(w, 16) * PAGE_BYTES;
    bool write = storm_random(w, 2);

    storm_say(w, "process: %s page %p", write ? "writes" : "reads", (void *)(s->hva + at));
    if (w->config.announced && softkvm_memory_access_begin(w->s, s->hva + at, PAGE_BYTES) != 0) {
        if (!w->failing) {
            storm_fail(w, "the process's own access is refused");
        }
        return;
    }
    if (memcmp(s->hva + at, s->model + at, PAGE_BYTES) != 0) {
        storm_fail(w, "the process reads something else at slot %ld byte %llx", (long)(s - w->slot),
                   (unsigned long long)at);
    }
    for (unsigned i = 0; write && i < PAGE_BYTES; i += 512) {
        uint64_t v = storm_random(w, 4) ? 0 : storm_random(w, 0);

        memcpy(s->hva + at + i, &v, 8);
        memcpy(s->model + at + i, &v, 8);
        memcpy(s->mirror + at + i, &v, 8);
    }
    if (w->config.announced) {
        softkvm_memory_access_end(w->s, s->hva + at, PAGE_BYTES);
    }
}

void storm_host_step(struct storm *w)
{
    uint64_t kind = storm_random(w, 16);

    w->failing = w->config.inject && storm_random(w, 4) == 0;
    if (kind < 9) {
        host_mm_step(w);
    } else if (kind < 11) {
        host_pin(w);
    } else if (kind < 14) {
        process_touches(w);
    } else {
        process_maps(w);
    }
    w->failing = false;
}

/* ---- slots and the dirty log ---- */

/* The log of slot i into its mirror. */
void storm_harvest(struct storm *w, unsigned i)
{
    struct storm_slot *s = &w->slot[i];
    uint64_t map[DATA_BYTES / PAGE_BYTES / 64] = {0};
    struct kvm_dirty_log log = {.slot = i, .dirty_bitmap = map};
    struct kvm_clear_dirty_log clear = {.slot = i, .num_pages = (uint32_t)(s->bytes / PAGE_BYTES),
                                        .dirty_bitmap = map};
    int r = storm_vm_ioctl(w, KVM_GET_DIRTY_LOG, &log);

    if (r == 0 && w->config.manual) {
        r = storm_vm_ioctl(w, KVM_CLEAR_DIRTY_LOG, &clear);
    }
    if (r != 0) {
        storm_fail(w, "the dirty log of slot %u: %s", i, strerror(-r));
    }
    for (uint64_t p = 0; p < s->bytes / PAGE_BYTES; p++) {
        if (!(map[p / 64] >> p % 64 & 1)) {
            continue;
        }
        if (w->config.announced && softkvm_memory_access_begin(w->s, s->hva + p * PAGE_BYTES, PAGE_BYTES) != 0) {
            storm_fail(w, "the process's own access to a dirty page is refused");
        }
        memcpy(s->mirror + p * PAGE_BYTES, s->hva + p * PAGE_BYTES, PAGE_BYTES);
        if (w->config.announced) {
            softkvm_memory_access_end(w->s, s->hva + p * PAGE_BYTES, PAGE_BYTES);
        }
    }
}

/* Logging begins: the mirror is what is there. */
static void begin_mirror(struct storm *w, struct storm_slot *s)
{
    if (w->config.announced && softkvm_memory_access_begin(w->s, s->hva, s->bytes) != 0) {
        storm_fail(w, "the process's own access to a slot is refused");
    }
    memcpy(s->mirror, s->hva, s->bytes);
    if (w->config.announced) {
        softkvm_memory_access_end(w->s, s->hva, s->bytes);
    }
}

/* Apply a changed slot; an injected failure must leave the old one. */
static bool apply(struct storm *w, unsigned i, const struct storm_slot *old)
{
    int r = storm_slot_set(w, i);

    if (r == 0) {
        return true;
    }
    if (r != -ENOMEM || !w->failing) {
        storm_fail(w, "slot %u: %s", i, strerror(-r));
    }
    storm_say(w, "  ENOMEM as injected");
    w->slot[i] = *old;
    return false;
}

void storm_slot_step(struct storm *w)
{
    unsigned i = storm_random(w, 4) ? DATA + (unsigned)storm_random(w, DATA_SLOTS) : (unsigned)storm_random(w, DATA);
    struct storm_slot *s = &w->slot[i], old = *s;
    uint64_t kind = storm_random(w, 8);

    w->failing = w->config.inject && storm_random(w, 4) == 0;
    if (!s->present) {
        s->present = true;
        s->logging = storm_random(w, 2);
        storm_say(w, "slot %u comes back at %llx, logging %d", i, (unsigned long long)s->gpa, s->logging);
    } else if (i >= DATA && kind == 0) {
        s->present = false;
        storm_say(w, "slot %u is deleted", i);
    } else if (i >= DATA && kind == 1) {
        s->gpa ^= UINT64_C(1) << 24;
        storm_say(w, "slot %u moves to %llx", i, (unsigned long long)s->gpa);
    } else if (s->logging && kind < 6) {
        storm_say(w, "slot %u: log harvested", i);
        w->failing = false;
        storm_harvest(w, i);
        return;
    } else {
        s->logging = !s->logging;
        storm_say(w, "slot %u: logging %d", i, s->logging);
    }
    if (apply(w, i, &old) && s->present && s->logging && (!old.logging || !old.present)) {
        w->failing = false;
        begin_mirror(w, s);
    }
    w->failing = false;
}
