/*
 * Unpacking of a kernel's payload: gzip, xz, zstd, and the legacy LZ4 frame that kernel builds use. The
 * format is known by its first bytes. The output is bounded by the caller, whatever the data claims.
 *
 * Leaves out: bzip2, lzma-alone and lzo payloads; such a kernel is left to unpack itself in the guest.
 */
#include <errno.h>
#include <lz4.h>
#include <lzma.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "machine/loader.h"

#define LZ4_LEGACY_MAGIC UINT32_C(0x184c2102)
#define LZ4_BLOCK_MAX    (8u << 20)

struct unpack_job {
    const uint8_t *src;
    size_t size;
    uint8_t *out;
    size_t max, done;
};

static uint32_t le32(const uint8_t *p)
{
    return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
}

static int unpack_gzip(struct unpack_job *j)
{
    z_stream z;
    int ret;

    memset(&z, 0, sizeof(z));
    z.next_in = (Bytef *)j->src;
    z.avail_in = j->size;
    z.next_out = j->out;
    z.avail_out = j->max;
    if (inflateInit2(&z, 15 + 16) != Z_OK) {
        return -ENOMEM;
    }
    ret = inflate(&z, Z_FINISH);
    j->done = z.total_out;
    inflateEnd(&z);
    return ret == Z_STREAM_END ? 0 : -EINVAL;
}

static int unpack_xz(struct unpack_job *j)
{
    lzma_stream s = LZMA_STREAM_INIT;
    lzma_ret ret;

    if (lzma_stream_decoder(&s, UINT64_C(256) << 20, 0) != LZMA_OK) {
        return -ENOMEM;
    }
    s.next_in = j->src;
    s.avail_in = j->size;
    s.next_out = j->out;
    s.avail_out = j->max;
    ret = lzma_code(&s, LZMA_FINISH);
    j->done = s.total_out;
    lzma_end(&s);
    return ret == LZMA_STREAM_END ? 0 : -EINVAL;
}

static int unpack_zstd(struct unpack_job *j)
{
    ZSTD_DStream *s = ZSTD_createDStream();
    ZSTD_inBuffer in = {j->src, j->size, 0};
    ZSTD_outBuffer out = {j->out, j->max, 0};
    size_t ret = 1;

    if (!s) {
        return -ENOMEM;
    }
    while (in.pos < in.size) {
        size_t before = in.pos + out.pos;

        ret = ZSTD_decompressStream(s, &out, &in);
        if (ret == 0 || ZSTD_isError(ret) || in.pos + out.pos == before) {
            break;
        }
    }
    j->done = out.pos;
    ZSTD_freeDStream(s);
    return ret == 0 ? 0 : -EINVAL;
}

/* Blocks of [packed size][data]; a trailing size of less than a block's header, or the length word that
 * kernel builds append, ends it. */
static int unpack_lz4(struct unpack_job *j)
{
    size_t at = 4;

    while (j->size - at > 4) {
        uint32_t packed = le32(j->src + at);
        size_t room = j->max - j->done < LZ4_BLOCK_MAX ? j->max - j->done : LZ4_BLOCK_MAX;
        int got;

        at += 4;
        if (packed == LZ4_LEGACY_MAGIC) {
            continue;
        }
        if (packed == 0 || packed > j->size - at) {
            return -EINVAL;
        }
        got = LZ4_decompress_safe((const char *)j->src + at, (char *)j->out + j->done, packed, room);
        if (got < 0) {
            return -EINVAL;
        }
        j->done += got;
        at += packed;
    }
    return 0;
}

typedef int unpack_fn(struct unpack_job *j);

static unpack_fn *format_of(const uint8_t *p, size_t size)
{
    static const uint8_t xz[6] = {0xfd, '7', 'z', 'X', 'Z', 0};

    if (size < 8) {
        return NULL;
    }
    if (p[0] == 0x1f && p[1] == 0x8b) {
        return unpack_gzip;
    }
    if (memcmp(p, xz, sizeof(xz)) == 0) {
        return unpack_xz;
    }
    if (le32(p) == UINT32_C(0xfd2fb528)) {
        return unpack_zstd;
    }
    return le32(p) == LZ4_LEGACY_MAGIC ? unpack_lz4 : NULL;
}

/*
 * Unpack src into memory of ours; bytes after the end of the packed stream are ignored.
 * max: bytes allowed for the result.
 * Returns: 0 with *out, freed by machine_image_free(); -ENOTSUP unknown format; -EINVAL damaged, or
 * larger than max; -ENOMEM. Lock: none. Source: the formats' own documents.
 */
int machine_unpack(struct machine_image *out, const uint8_t *src, size_t size, size_t max,
                   struct base_error *err)
{
    struct unpack_job job = {src, size, NULL, max, 0};
    unpack_fn *unpack = format_of(src, size);
    int ret;

    if (!unpack) {
        return base_error_set(err, ENOTSUP, "payload of an unknown packing");
    }
    job.out = malloc(max ? max : 1);
    if (!job.out) {
        return base_error_set(err, ENOMEM, "out of memory for an unpacked kernel");
    }
    ret = unpack(&job);
    if (ret < 0) {
        free(job.out);
        return base_error_set(err, -ret, "the packed kernel is damaged or truncated");
    }
    out->data = job.out;
    out->size = job.done;
    return 0;
}
