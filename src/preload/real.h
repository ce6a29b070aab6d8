/*
 * The functions behind the hooks, looked up once with dlsym(RTLD_NEXT). PRELOAD_REAL(name) declares
 * `real_name()`, which returns the pointer; the look-up is idempotent, so a race is harmless.
 */
#ifndef STRATA_PRELOAD_REAL_H
#define STRATA_PRELOAD_REAL_H

#include <dlfcn.h>
#include <stdatomic.h>

#define PRELOAD_REAL(ret, name, ...)                                                               \
    typedef ret real_##name##_fn(__VA_ARGS__);                                                     \
    static real_##name##_fn *real_##name(void)                                                     \
    {                                                                                              \
        static _Atomic(void *) found;                                                              \
        void *p = atomic_load_explicit(&found, memory_order_relaxed);                              \
                                                                                                   \
        if (!p) {                                                                                  \
            p = dlsym(RTLD_NEXT, #name);                                                           \
            atomic_store_explicit(&found, p, memory_order_relaxed);                                \
        }                                                                                          \
        return (real_##name##_fn *)p;                                                              \
    }

#endif
