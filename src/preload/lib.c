/* See lib.h. Locks: preload_lock for loading; the results are published with the engine. */
#include "preload/lib.h"

#include <dlfcn.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "preload/preload.h"

struct preload_lib preload_lib;

static uintptr_t lib_start, lib_end;

bool preload_lib_has(const void *address)
{
    return (uintptr_t)address >= lib_start && (uintptr_t)address < lib_end;
}

/* The bounds of the object that `opaque` points into. */
static int find_bounds(struct dl_phdr_info *info, size_t size, void *opaque)
{
    uintptr_t start = UINTPTR_MAX, end = 0, at = (uintptr_t)opaque;

    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];

        if (p->p_type == PT_LOAD) {
            uintptr_t from = info->dlpi_addr + p->p_vaddr, to = from + p->p_memsz;

            start = from < start ? from : start;
            end = to > end ? to : end;
        }
    }
    if (at < start || at >= end) {
        return 0;
    }
    lib_start = start;
    lib_end = end;
    return 1;
}

static void *open_library(void)
{
    static const char *const places[] = {"/libsoftkvm.so.0", "/libsoftkvm.so", "/../libs/libsoftkvm.so.0"};
    const char *slash;
    char path[4096];
    void *lib = NULL;
    Dl_info self;

    if (dladdr(&preload_lib, &self) && self.dli_fname && (slash = strrchr(self.dli_fname, '/'))) {
        for (unsigned i = 0; !lib && i < sizeof(places) / sizeof(places[0]); i++) {
            snprintf(path, sizeof(path), "%.*s%s", (int)(slash - self.dli_fname), self.dli_fname, places[i]);
            lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        }
    }
    return lib ? lib : dlopen("libsoftkvm.so.0", RTLD_NOW | RTLD_LOCAL);
}

int preload_lib_load(char *err, size_t size)
{
    void *lib;

    if (preload_lib.new) {
        return 0;
    }
    lib = open_library();
    if (!lib) {
        snprintf(err, size, "%s", dlerror());
        return -1;
    }
#define FIND(name)                                                                                 \
    preload_lib.name = (__typeof__(softkvm_##name) *)dlsym(lib, "softkvm_" #name);                 \
    if (!preload_lib.name) {                                                                       \
        snprintf(err, size, "libsoftkvm.so has no softkvm_%s: another version", #name);            \
        preload_lib.new = NULL;                                                                    \
        return -1;                                                                                 \
    }
    PRELOAD_LIB_CALLS(FIND)
#undef FIND
    (void)dl_iterate_phdr(find_bounds, (void *)(uintptr_t)preload_lib.new);
    return 0;
}
