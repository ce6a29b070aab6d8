/*
 * Explanations that the guest asks for: a program in it writes "explain HEXADDRESS\n" to port 0xe9 while
 * the address means something in its own page tables, and what the engine says of it is kept for the
 * report. The vCPU that wrote stands still outside KVM_RUN meanwhile. Other text goes to the debug console.
 *
 * Lock: the device lock. At most MAX_EXPLAINED addresses are kept; a guest that asks for more is ignored.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "accel/inspect.h"
#include "machine/pc.h"

#define MAX_EXPLAINED 8u

static void explain(struct machine *m, const char *text)
{
    char *end, *kept = NULL;
    size_t size = 0;
    FILE *to;
    gva_t addr;

    errno = 0;
    addr = gva(strtoull(text, &end, 16));
    if (end == text || *end || errno || m->explained_count >= MAX_EXPLAINED) {
        return;
    }
    to = open_memstream(&kept, &size);
    if (!to) {
        return;
    }
    if (accel_explain_show(m->accel, accel_current_vcpu(m->accel), addr, to) < 0) {
        fprintf(to, "  gva 0x%llx: this engine cannot be looked into\n", (unsigned long long)addr.v);
    }
    if (fclose(to) == 0 && kept) {
        m->explained[m->explained_count++] = kept;
    }
}

/* A byte from port 0xe9. opaque: the machine. Lock: the device lock. Source: own. */
void machine_explain_byte(void *opaque, uint8_t byte)
{
    struct machine *m = opaque;

    if (byte != '\n') {
        if (m->explain_at < sizeof(m->explain_line) - 1) {
            m->explain_line[m->explain_at++] = (char)byte;
        }
        return;
    }
    m->explain_line[m->explain_at] = '\0';
    m->explain_at = 0;
    if (strncmp(m->explain_line, "explain ", 8) == 0) {
        explain(m, m->explain_line + 8);
    }
}

/* Kept explanations, oldest first; NULL beyond the last. Borrowed until machine_free(). Source: own. */
const char *machine_explanation(const struct machine *m, unsigned index)
{
    return index < m->explained_count ? m->explained[index] : NULL;
}

/* Free what was kept. Source: own. */
void machine_explain_free(struct machine *m)
{
    while (m->explained_count > 0) {
        free(m->explained[--m->explained_count]);
    }
}
