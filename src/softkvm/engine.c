/*
 * Instances: creation, services, descriptors. See engine.h for the rules of descriptors.
 */
#include "softkvm/engine.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <x86intrin.h>

#include "base/guard.h"
#include "softkvm/gmem.h"
#include "softkvm/stats.h"
#include "softkvm/vcpu.h"
#include "softkvm/vm.h"

void *kvm_alloc(struct softkvm *s, size_t bytes)
{
    if (s->options.fail_alloc && s->options.fail_alloc(s->options.fail_opaque)) {
        return NULL;
    }
    return calloc(1, bytes);
}

void *kvm_alloc_array(struct softkvm *s, size_t count, size_t bytes)
{
    size_t total;

    return __builtin_mul_overflow(count, bytes, &total) ? NULL : kvm_alloc(s, total);
}

void kvm_log(struct softkvm *s, int level, const char *fmt, ...)
{
    char line[256];
    va_list ap;

    if (!s->options.log) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    s->options.log(s->options.log_opaque, level, line);
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* A pair of readings of both clocks, the closest of several tries. */
static void read_clocks(uint64_t *ns, uint64_t *tsc)
{
    uint64_t best = UINT64_MAX;

    for (int i = 0; i < 8; i++) {
        uint64_t before = __rdtsc(), t = now_ns(), after = __rdtsc();

        if (after - before < best) {
            best = after - before;
            *ns = t;
            *tsc = before + (after - before) / 2;
        }
    }
}

/* Frequency of the host's counter against CLOCK_MONOTONIC, over 4 ms: good to a few parts in 10^5. */
static uint32_t measure_tsc_khz(void)
{
    uint64_t ns0 = 0, tsc0 = 0, ns1 = 0, tsc1 = 0;

    read_clocks(&ns0, &tsc0);
    while (now_ns() - ns0 < 4000000) {
        _mm_pause();
    }
    read_clocks(&ns1, &tsc1);
    return (uint32_t)((unsigned __int128)(tsc1 - tsc0) * 1000000 / (ns1 - ns0));
}

/* From a trace point to the caller's function. */
static void trace_sink(void *opaque, const struct base_trace_point *point, const uint64_t *args)
{
    struct softkvm *s = opaque;
    char text[200];

    base_trace_format(point, args, text, sizeof(text));
    s->options.trace(s->options.trace_opaque, point->name, point->file, point->function, text);
}

static int check_options(const struct softkvm_options *o, char *err, size_t size)
{
    if (!kvm_mmu_kind((int)o->mmu)) {
        snprintf(err, size, "mmu mode %d is not in this build", (int)o->mmu);
        return -EOPNOTSUPP;
    }
    if (o->ept_levels != 0 && o->ept_levels != 4 && o->ept_levels != 5) {
        snprintf(err, size, "ept_levels %u: 4 or 5 wanted", o->ept_levels);
        return -EINVAL;
    }
    if ((o->stage2 & SOFTKVM_STAGE2_PML) &&
        (o->mmu != SOFTKVM_MMU_EPT || (o->stage2 & SOFTKVM_STAGE2_NO_AD))) {
        snprintf(err, size, "a log of modified pages is of EPT with accessed and dirty bits");
        return -EINVAL;
    }
    if ((o->stage2 & SOFTKVM_STAGE2_NO_AD) && o->mmu != SOFTKVM_MMU_EPT) {
        snprintf(err, size, "accessed and dirty bits can be off in EPT only");
        return -EINVAL;
    }
    if (o->max_page_level > 3) {
        snprintf(err, size, "max_page_level %u: 1 to 3 wanted", o->max_page_level);
        return -EINVAL;
    }
    return 0;
}

static int make_host(struct softkvm *s, char *err, size_t size)
{
    struct host_memory_options mo = {.bytes = s->options.host_memory,
                                     .nr_cpus = s->options.host_cpus,
                                     .fail_alloc = s->options.fail_alloc,
                                     .opaque = s->options.fail_opaque};
    struct host_mm_options mm = {.trace = &s->trace, .swap_pages = s->options.swap >> PAGE_SHIFT,
                                 .announced = s->options.announced};
    int r = host_memory_new(&mo, &s->hm);

    if (r < 0) {
        snprintf(err, size, "host memory of %llu bytes: %s", (unsigned long long)mo.bytes,
                 strerror(-r));
        return r;
    }
    r = host_mm_new(s->hm, &mm, &s->mm);
    if (r < 0) {
        snprintf(err, size, "host address space: %s", strerror(-r));
        return r;
    }
    r = s->options.background ? host_mm_work_start(s->mm, HOST_WORK_ALL, s->options.background) : 0;
    if (r < 0) {
        snprintf(err, size, "background work of the host: %s", strerror(-r));
    }
    return r;
}

struct softkvm *softkvm_new(const struct softkvm_options *options, char *err, size_t err_size)
{
    struct softkvm_options o = {0};
    struct softkvm *s;
    char scratch[8];

    if (!err || !err_size) {
        err = scratch;
        err_size = sizeof(scratch);
    }
    if (options) {
        memcpy(&o, options, options->size < sizeof(o) ? options->size : sizeof(o));
    }
    if (check_options(&o, err, err_size) < 0) {
        return NULL;
    }
    s = o.fail_alloc && o.fail_alloc(o.fail_opaque) ? NULL : calloc(1, sizeof(*s));
    if (!s) {
        snprintf(err, err_size, "out of memory");
        return NULL;
    }
    s->options = o;
    s->max_page_level = o.max_page_level ? o.max_page_level : 3;
    pthread_mutex_init(&s->lock, NULL);
    base_lock_set_rank(&s->lock, BASE_RANK_FILES);
    list_init(&s->mappings);
    s->tsc_khz = measure_tsc_khz();
    s->guarded = !o.no_fault_guard && base_guard_install() == 0;
    if (o.trace) {
        s->trace = (struct base_trace){trace_sink, s};
    }
    if (make_host(s, err, err_size) < 0) {
        softkvm_free(s);
        return NULL;
    }
    return s;
}

void kvm_mapping_free(struct kvm_mapping *m)
{
    if (m->owned) {
        munmap(m->addr, m->length);
    }
    kvm_object_put(m->kind, m->object);
    free(m);
}

static void close_everything(struct softkvm *s)
{
    while (!list_is_empty(&s->mappings)) {
        struct kvm_mapping *m = list_entry(s->mappings.next, struct kvm_mapping, node);

        list_del(&m->node);
        kvm_mapping_free(m);
    }
    for (uint32_t c = 0; c < atomic_load(&s->nr_chunks); c++) {
        struct kvm_file *chunk = atomic_load(&s->chunks[c]);

        for (unsigned i = 0; i < KVM_FILES_PER_CHUNK; i++) {
            if (atomic_load(&chunk[i].refs) && atomic_exchange(&chunk[i].open, 0)) {
                kvm_file_put(s, &chunk[i]);
            }
        }
    }
}

void softkvm_free(struct softkvm *s)
{
    if (!s) {
        return;
    }
    close_everything(s);
    host_mm_free(s->mm);
    host_memory_free(s->hm);
    for (uint32_t c = 0; c < atomic_load(&s->nr_chunks); c++) {
        free(atomic_load(&s->chunks[c]));
    }
    if (s->guarded) {
        base_guard_uninstall();
    }
    pthread_mutex_destroy(&s->lock);
    free(s);
}

/* The lowest free slot, a new chunk if need be. Lock: s->lock. */
static struct kvm_file *find_free(struct softkvm *s, int *fd)
{
    uint32_t n = atomic_load_explicit(&s->nr_chunks, memory_order_relaxed);
    struct kvm_file *chunk;

    for (uint32_t c = 0; c < n; c++) {
        chunk = atomic_load_explicit(&s->chunks[c], memory_order_relaxed);
        for (unsigned i = 0; i < KVM_FILES_PER_CHUNK; i++) {
            if (chunk[i].kind == KVM_FILE_NONE) {
                *fd = (int)(c * KVM_FILES_PER_CHUNK + i);
                return &chunk[i];
            }
        }
    }
    if (n == KVM_MAX_CHUNKS) {
        *fd = -EMFILE;
        return NULL;
    }
    chunk = kvm_alloc_array(s, KVM_FILES_PER_CHUNK, sizeof(*chunk));
    if (!chunk) {
        *fd = -ENOMEM;
        return NULL;
    }
    atomic_store(&s->chunks[n], chunk);
    atomic_store(&s->nr_chunks, n + 1);
    *fd = (int)(n * KVM_FILES_PER_CHUNK);
    return chunk;
}

int kvm_file_open(struct softkvm *s, enum kvm_file_kind kind, void *object)
{
    struct kvm_file *f;
    int fd;

    pthread_mutex_lock(&s->lock);
    f = find_free(s, &fd);
    if (f) {
        f->kind = kind;
        f->object = object;
        atomic_store(&f->open, 1);
        atomic_store_explicit(&f->refs, 1, memory_order_release);
    }
    pthread_mutex_unlock(&s->lock);
    return fd;
}

struct kvm_file *kvm_file_get(struct softkvm *s, int fd)
{
    uint32_t c = (uint32_t)fd / KVM_FILES_PER_CHUNK;
    struct kvm_file *f;
    uint32_t refs;

    if (fd < 0 || c >= atomic_load_explicit(&s->nr_chunks, memory_order_acquire)) {
        return NULL;
    }
    f = atomic_load_explicit(&s->chunks[c], memory_order_acquire) +
        (uint32_t)fd % KVM_FILES_PER_CHUNK;
    refs = atomic_load_explicit(&f->refs, memory_order_relaxed);
    do {
        if (refs == 0) {
            return NULL;
        }
    } while (!atomic_compare_exchange_weak_explicit(&f->refs, &refs, refs + 1, memory_order_acquire,
                                                    memory_order_relaxed));
    if (!atomic_load_explicit(&f->open, memory_order_relaxed)) {
        kvm_file_put(s, f);
        return NULL;
    }
    return f;
}

void kvm_object_put(enum kvm_file_kind kind, void *object)
{
    switch (kind) {
    case KVM_FILE_VM:
        kvm_vm_put(object);
        break;
    case KVM_FILE_VCPU:
        kvm_vcpu_put(object);
        break;
    case KVM_FILE_STATS:
        kvm_stats_put(object);
        break;
    case KVM_FILE_GMEM:
        kvm_gmem_close(object);
        break;
    case KVM_FILE_SYSTEM:
    case KVM_FILE_NONE:
        break;
    }
}

void kvm_file_put(struct softkvm *s, struct kvm_file *f)
{
    enum kvm_file_kind kind;
    void *object;

    if (atomic_fetch_sub_explicit(&f->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    pthread_mutex_lock(&s->lock);
    kind = f->kind;
    object = f->object;
    f->kind = KVM_FILE_NONE;
    f->object = NULL;
    pthread_mutex_unlock(&s->lock);
    kvm_object_put(kind, object);
}
