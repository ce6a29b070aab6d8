/* Cached translations; see strata/cache.h. Source: QEMU address_space_cache_init(), by rule.
 * Differs: a device behind the cache is cut to the piece of the view it was found in. */
#include "strata/cache.h"

#include <errno.h>

#include "memory/access.h"
#include "memory/copy.h"
#include "memory/ram.h"

/*
 * Look [addr, addr + len) up once. cache->len: how much of it one piece covers. The region is held
 * until strata_cache_fini(). Returns 0, -ENOENT, -EINVAL; the cache is empty on failure.
 */
int strata_cache_init(struct strata_cache *cache, struct strata_space *space, strata_addr addr,
                      uint64_t len, bool write)
{
    struct memory_access access = {.space = space, .write = write};
    struct memory_place place;
    int err = -ENOENT;

    *cache = (struct strata_cache){.space = space, .addr = addr, .write = write};
    if (!len) {
        return -EINVAL;
    }
    base_rcu_read_lock();
    memory_translate(&access, addr, len, &place);
    if (place.range) {
        uint64_t left = place.range->head.last - place.addr + 1;

        cache->region = memory_place_region(&place);
        cache->offset = memory_place_offset(&place);
        cache->len = place.len < left || !left ? place.len : left;
        cache->ptr = memory_place_is_direct(&place, &access) ? memory_place_host(&place) : NULL;
        strata_region_ref(cache->region);
        err = 0;
    }
    base_rcu_read_unlock();
    return err;
}

/* Let go; the cache is empty afterwards. */
void strata_cache_fini(struct strata_cache *cache)
{
    if (cache->region) {
        strata_region_unref(cache->region);
    }
    *cache = (struct strata_cache){0};
}

static bool fits(const struct strata_cache *cache, uint64_t offset, uint64_t len)
{
    return offset <= cache->len && len <= cache->len - offset;
}

/* Read [offset, offset + len) of what is cached. */
enum strata_result strata_cache_read(struct strata_cache *cache, uint64_t offset, void *buf, size_t len)
{
    if (!fits(cache, offset, len)) {
        return STRATA_DECODE_ERROR;
    }
    if (!cache->ptr) {
        return strata_read(cache->space, cache->addr + offset, STRATA_ATTRS_NONE, buf, len);
    }
    memory_copy(buf, (uint8_t *)cache->ptr + offset, len);
    return STRATA_OK;
}

/* Write, and mark dirty. */
enum strata_result strata_cache_write(struct strata_cache *cache, uint64_t offset, const void *buf,
                                      size_t len)
{
    if (!fits(cache, offset, len)) {
        return STRATA_DECODE_ERROR;
    }
    if (!cache->write) {
        return STRATA_ACCESS_ERROR;
    }
    if (!cache->ptr) {
        return strata_write(cache->space, cache->addr + offset, STRATA_ATTRS_NONE, buf, len);
    }
    memory_copy((uint8_t *)cache->ptr + offset, buf, len);
    strata_cache_invalidate(cache, offset, len);
    return STRATA_OK;
}

/* Enter [offset, offset + len) in the dirty bitmaps of whoever wants to know. */
void strata_cache_invalidate(struct strata_cache *cache, uint64_t offset, uint64_t len)
{
    if (cache->ptr && fits(cache, offset, len)) {
        strata_region_set_dirty(cache->region, cache->offset + offset, len);
    }
}
