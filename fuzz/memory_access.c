/* Fuzzer of the library's access: a stream of bytes as a program, against an oracle. See
 * tests/memory/stream.h; a disagreement is a crash. */
#include <stdio.h>
#include <stdlib.h>

#include "memory/stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char why[256];

    if (!stream_access(data, size, why)) {
        fprintf(stderr, "%s\n", why);
        abort();
    }
    return 0;
}
