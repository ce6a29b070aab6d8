/* Two-dimensional translation by definition; see cpu_walk.h. */
#include "cpu_walk.h"

static bool bit(uint64_t v, unsigned n)
{
    return v >> n & 1;
}

static uint64_t field(uint64_t v, unsigned low, unsigned high)
{
    return v >> low & (high - low == 63 ? ~0ull : (1ull << (high - low + 1)) - 1);
}

/* AMD's second stage. The fault's own bits (present, reserved) come back in *npf. */
static enum ow_result stage2_npt(struct ow_machine *m, uint64_t gpa, unsigned want, uint64_t *hpa, uint64_t *npf)
{
    bool write = true, user = true, nx = false;
    uint64_t table = m->ept_root;

    *npf = 0;
    for (unsigned level = m->stage2_levels;; level--) {
        unsigned low = 12 + 9 * (level - 1);
        uint64_t at = table + 8 * field(gpa, low, low + 8), e = m->mem.get(m->mem.opaque, at);
        bool leaf = level == 1 || (level <= 3 && bit(e, 7));

        *npf = bit(e, 0);
        if (!bit(e, 0)) {
            return OW_VIOLATION;
        }
        if (field(e, m->host_width, 51) || (level >= 4 && field(e, 7, 8)) || (leaf && level > 1 && field(e, 13, low - 1))) {
            *npf = 9;
            return OW_MISCONFIG;
        }
        write = write && bit(e, 1);
        user = user && bit(e, 2);
        nx = nx || bit(e, 63);
        if (!leaf) {
            table = field(e, 12, 51) << 12;
            continue;
        }
        if (!user || ((want & 2) && !write) || ((want & 4) && nx)) {
            return OW_VIOLATION;
        }
        m->mem.put(m->mem.opaque, at, e | 1 << 5 | (want & 2 ? 1 << 6 : 0));
        *hpa = (field(e, low, 51) << low) + field(gpa, 0, low - 1);
        return OW_OK;
    }
}

/* Second stage of one address. want: bits 0 read, 1 write, 2 execute. */
static enum ow_result stage2_ept(struct ow_machine *m, uint64_t gpa, unsigned want, uint64_t *hpa)
{
    uint64_t table = m->ept_root, rights = 7;

    for (int level = (int)m->stage2_levels; level >= 1; level--) {
        unsigned low = 12 + 9 * (unsigned)(level - 1);
        uint64_t at = table + 8 * field(gpa, low, low + 8), e = m->mem.get(m->mem.opaque, at);
        bool leaf = level == 1 || (level <= 3 && bit(e, 7));
        unsigned type = (unsigned)field(e, 3, 5);

        if (field(e, 0, 2) == 0) {
            return OW_VIOLATION;
        }
        if ((!bit(e, 0) && bit(e, 1)) || (leaf && (type == 2 || type == 3 || type == 7)) ||
            (!leaf && (field(e, 3, 6) || (level >= 4 && bit(e, 7)))) ||
            (leaf && level > 1 && field(e, 12, low - 1))) {
            return OW_MISCONFIG;
        }
        rights &= e;
        if (leaf) {
            if (want & ~rights) {
                return OW_VIOLATION;
            }
            if (m->ept_ad) {
                m->mem.put(m->mem.opaque, at, e | 1 << 8 | (want & 2 ? 1 << 9 : 0));
            }
            *hpa = (field(e, low, 51) << low) + field(gpa, 0, low - 1);
            return OW_OK;
        }
        table = field(e, 12, 51) << 12;
    }
    return OW_VIOLATION;
}

/* Either, and what AMD's fault code says of it: 2 write, 4 user, 16 fetch, bit 32 the final address, bit 33 a table. */
static enum ow_result stage2(struct ow_machine *m, uint64_t gpa, unsigned want, bool final, struct ow_outcome *out)
{
    enum ow_result r;

    if (m->no_stage2) {
        out->hpa = gpa;
        return OW_OK;
    }
    if (!m->npt) {
        return stage2_ept(m, gpa, want, &out->hpa);
    }
    r = stage2_npt(m, gpa, final ? want : 3, &out->hpa, &out->npf);
    out->npf |= 4 | (!final || (want & 2) ? 2 : 0) | (want & 4 ? 16 : 0) | 1ull << (final ? 32 : 33);
    return r;
}

/* A guest table entry, read or replaced. */
struct entry {
    uint64_t gpa, value;
    unsigned bytes;
};

static enum ow_result entry_access(struct ow_machine *m, struct entry *e, bool write, struct ow_outcome *out)
{
    enum ow_result r = stage2(m, e->gpa, write ? 3 : 1, false, out);
    uint64_t hpa = out->hpa, word;
    unsigned shift = e->bytes == 4 && (e->gpa & 4) ? 32 : 0;

    if (r != OW_OK) {
        out->gpa = e->gpa;
        out->final = false;
        return r;
    }
    word = m->mem.get(m->mem.opaque, hpa & ~7ull);
    if (write) {
        uint64_t mask = e->bytes == 4 ? 0xffffffffull << shift : ~0ull;

        m->mem.put(m->mem.opaque, hpa & ~7ull, (word & ~mask) | (e->value << shift & mask));
    } else {
        e->value = e->bytes == 4 ? (uint32_t)(word >> shift) : word;
    }
    return OW_OK;
}

static bool is_canonical(const struct ow_machine *m, uint64_t la)
{
    unsigned top = m->levels == 5 ? 56 : 47;

    return field(la, top, 63) == 0 || field(la, top, 63) == field(~0ull, top, 63);
}

static bool is_reserved(const struct ow_machine *m, const struct entry *e, unsigned level)
{
    if (e->bytes == 4) {
        return level == 2 && m->pse && bit(e->value, 7) && bit(e->value, 21);
    }
    if (field(e->value, m->width, 51) || (!m->nxe && bit(e->value, 63)) ||
        (m->levels == 3 && field(e->value, 52, 62))) {
        return true;
    }
    if (level >= 4 || (level == 3 && !m->has_1g)) {
        return bit(e->value, 7);
    }
    return level > 1 && bit(e->value, 7) && field(e->value, 13, 12 + 9 * (level - 1) - 1);
}

static bool is_leaf(const struct ow_machine *m, const struct entry *e, unsigned level)
{
    return level == 1 || (bit(e->value, 7) && level <= 3 && (e->bytes == 8 || m->pse));
}

struct rights {
    bool write, user, nx;
};

static bool is_forbidden(const struct ow_machine *m, const struct ow_access *a, struct rights r)
{
    if (a->user) {
        return !r.user || (a->write && !r.write) || (a->fetch && r.nx);
    }
    if (a->fetch) {
        return r.nx || (r.user && m->smep);
    }
    if (r.user && m->smap && !m->ac) {
        return true;
    }
    return a->write && !r.write && m->wp;
}

/* Does the key of a user page's leaf forbid the access? Long mode, data only. */
static bool key_forbids(const struct ow_machine *m, const struct ow_access *a, struct rights r, uint64_t leaf)
{
    unsigned key = 2 * (unsigned)field(leaf, 59, 62);

    return m->pke && m->levels >= 4 && r.user && !a->fetch &&
           (bit(m->pkru, key) || (bit(m->pkru, key + 1) && a->write && (a->user || m->wp)));
}

static uint32_t error_code(const struct ow_machine *m, const struct ow_access *a, bool present, bool reserved)
{
    uint32_t code = (present ? 1 : 0) | (a->write ? 2 : 0) | (a->user ? 4 : 0) | (reserved ? 8 : 0);

    return a->fetch && ((m->nxe && m->levels > 2) || m->smep) ? code | 16 : code;
}

static uint64_t leaf_address(const struct ow_machine *m, const struct entry *e, unsigned level, uint64_t la)
{
    unsigned low = 12 + (m->levels == 2 ? 10 : 9) * (level - 1);

    if (e->bytes == 4 && level == 2) {
        return field(e->value, 13, 20) << 32 | field(e->value, 22, 31) << 22 | field(la, 0, 21);
    }
    return (e->bytes == 4 ? field(e->value, 12, 31) << 12 : field(e->value, low, 51) << low) | field(la, 0, low - 1);
}

/* From the root to the leaf; entries used are left in used[]. */
static enum ow_result descend(struct ow_machine *m, const struct ow_access *a, struct entry *used, unsigned *nused,
                              struct rights *r, struct ow_outcome *out)
{
    unsigned level = m->levels == 3 ? 2 : m->levels, bits = m->levels == 2 ? 10 : 9;
    uint64_t table = m->root;

    if (m->levels == 3) {
        uint64_t top = m->pdpte[field(a->la, 30, 31)];

        table = field(top, 12, 51) << 12;
        if (!bit(top, 0)) {
            out->error = error_code(m, a, false, false);
            return OW_FAULT;
        }
    }
    for (;; level--) {
        struct entry *e = &used[(*nused)++];
        unsigned low = 12 + bits * (level - 1);
        enum ow_result res;

        e->bytes = m->levels == 2 ? 4 : 8;
        e->gpa = table + e->bytes * field(a->la, low, low + bits - 1);
        res = entry_access(m, e, false, out);
        if (res != OW_OK) {
            return res;
        }
        if (!bit(e->value, 0) || is_reserved(m, e, level)) {
            out->error = error_code(m, a, bit(e->value, 0), bit(e->value, 0));
            return OW_FAULT;
        }
        r->write = r->write && bit(e->value, 1);
        r->user = r->user && bit(e->value, 2);
        r->nx = r->nx || (e->bytes == 8 && bit(e->value, 63));
        if (is_leaf(m, e, level)) {
            out->gpa = leaf_address(m, e, level, a->la);
            return OW_OK;
        }
        table = e->bytes == 4 ? field(e->value, 12, 31) << 12 : field(e->value, 12, 51) << 12;
    }
}

/* Accessed on every entry, dirty on the last. */
static enum ow_result mark(struct ow_machine *m, const struct ow_access *a, struct entry *used, unsigned nused,
                           struct ow_outcome *out)
{
    for (unsigned i = 0; i < nused; i++) {
        uint64_t want = used[i].value | 1 << 5 | (a->write && i == nused - 1 ? 1 << 6 : 0);
        enum ow_result res;

        if (want == used[i].value) {
            continue;
        }
        used[i].value = want;
        res = entry_access(m, &used[i], true, out);
        if (res != OW_OK) {
            return res;
        }
    }
    return OW_OK;
}

void ow_translate(struct ow_machine *m, const struct ow_access *a, struct ow_outcome *out)
{
    struct rights r = {true, true, false};
    struct entry used[5];
    unsigned nused = 0;
    uint64_t gpa;
    bool key;

    *out = (struct ow_outcome){0};
    if (m->levels >= 4 && !is_canonical(m, a->la)) {
        out->result = OW_CANONICAL;
        return;
    }
    out->result = descend(m, a, used, &nused, &r, out);
    if (out->result != OW_OK) {
        return;
    }
    key = key_forbids(m, a, r, used[nused - 1].value);
    if (is_forbidden(m, a, r) || key) {
        out->result = OW_FAULT;
        out->error = error_code(m, a, true, false) | (key ? 32 : 0);
        return;
    }
    gpa = out->gpa;
    out->result = mark(m, a, used, nused, out);
    if (out->result != OW_OK) {
        return;
    }
    out->gpa = gpa;
    out->final = true;
    out->result = stage2(m, gpa, a->fetch ? 4 : a->write ? 3 : 1, true, out);
}
