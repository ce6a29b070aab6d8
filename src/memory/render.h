/*
 * Rendering: what a region tree shows in a window of addresses. Pure: reads the tree, writes pieces.
 */
#ifndef STRATA_MEMORY_RENDER_H
#define STRATA_MEMORY_RENDER_H

#include "memory/view.h"

struct memory_pieces {
    struct strata_memory *mem;
    struct memory_piece *item;
    size_t count, cap;
};

must_check int memory_render(struct strata_region *root, uint64_t start, uint64_t last,
                             struct memory_pieces *out);
must_check int memory_pieces_add(struct memory_pieces *pieces, const struct memory_piece *piece);
void memory_pieces_fini(struct memory_pieces *pieces);

#endif
