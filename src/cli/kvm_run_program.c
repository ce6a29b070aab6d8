/*
 * What `strata kvm-run` is asked to run: found as execvp() finds it, and looked into, so that a program into
 * which no library can be preloaded is refused with the reason, not run on in silence without its KVM.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "cli/kvm_run.h"

#ifndef STRATA_LIBDIR
#define STRATA_LIBDIR "/usr/local/lib"
#endif

#define LIBRARY     "libsoftkvm-preload.so"
#define MAX_SCRIPTS 4 /* interpreters that are scripts themselves, as the kernel bounds it */

/* ---- finding ---- */

static bool is_runnable(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

/* As execvp(): a name without a slash is looked for along PATH. */
static int find_program(const char *name, char out[PATH_MAX], struct base_error *err)
{
    const char *path = getenv("PATH"), *at, *end;

    if (strchr(name, '/')) {
        snprintf(out, PATH_MAX, "%s", name);
        if (access(name, F_OK) != 0) {
            return base_error_set(err, ENOENT, "'%s': %s", name, strerror(errno));
        }
        return is_runnable(name) ? 0 : base_error_set(err, EACCES, "'%s' is not an executable file", name);
    }
    for (at = path ? path : "/bin:/usr/bin"; *name && at; at = *end ? end + 1 : NULL) {
        end = strchrnul(at, ':');
        snprintf(out, PATH_MAX, "%.*s%s%s", (int)(end - at), at, end == at ? "" : "/", name);
        if (is_runnable(out)) {
            return 0;
        }
    }
    return base_error_set(err, ENOENT, "'%s': no such command", name);
}

/* ---- looking into ---- */

/* The loader that an ELF file names: its length, 0 for none, -errno. */
static int read_loader(int fd, const Elf64_Ehdr *h, char *out, size_t size)
{
    for (unsigned i = 0; i < h->e_phnum; i++) {
        Elf64_Phdr p;
        ssize_t n;

        if (pread(fd, &p, sizeof(p), (off_t)(h->e_phoff + i * (uint64_t)h->e_phentsize)) != sizeof(p)) {
            return -EIO;
        }
        if (p.p_type == PT_INTERP) {
            n = pread(fd, out, p.p_filesz < size ? p.p_filesz : size - 1, (off_t)p.p_offset);
            out[n > 0 ? n : 0] = '\0';
            return (int)strlen(out);
        }
    }
    return 0;
}

static int check_elf(int fd, const char *path, struct base_error *err)
{
    char loader[256] = "";
    Elf64_Ehdr h;
    struct stat st;
    int n;

    if (pread(fd, &h, sizeof(h), 0) != sizeof(h) || memcmp(h.e_ident, ELFMAG, SELFMAG) != 0) {
        return base_error_set(err, ENOEXEC, "'%s' is neither a program nor a script", path);
    }
    if (h.e_ident[EI_CLASS] != ELFCLASS64 || h.e_machine != EM_X86_64) {
        return base_error_set(err, ENOEXEC, "'%s' is not a 64-bit x86 program: the library cannot be loaded into it",
                              path);
    }
    n = read_loader(fd, &h, loader, sizeof(loader));
    if (n <= 0) {
        return base_error_set(err, ENOEXEC,
                              "'%s' is statically linked: it loads no library, so its /dev/kvm cannot be answered. "
                              "Link it dynamically, or link it with libsoftkvm", path);
    }
    if (!strstr(loader, "ld-linux-x86-64.so.2")) {
        return base_error_set(err, ENOEXEC,
                              "'%s' is of another C library (loader %s): the library needs the GNU C library", path,
                              loader);
    }
    if (fstat(fd, &st) == 0 && geteuid() != 0 &&
        ((st.st_mode & (S_ISUID | S_ISGID)) || fgetxattr(fd, "security.capability", NULL, 0) > 0)) {
        return base_error_set(err, ENOEXEC,
                              "'%s' changes its rights when it starts (set-user-ID or capabilities): the loader "
                              "takes no library from its caller then", path);
    }
    return 0;
}

/* The interpreter of a script: true, and its path in place. */
static bool read_script(int fd, char path[PATH_MAX])
{
    char head[256];
    ssize_t n = pread(fd, head, sizeof(head) - 1, 0);
    char *start = head + 2;

    if (n < 3 || head[0] != '#' || head[1] != '!') {
        return false;
    }
    head[n] = '\0';
    start += strspn(start, " \t");
    start[strcspn(start, " \t\n")] = '\0';
    snprintf(path, PATH_MAX, "%s", start);
    return true;
}

/* See kvm_run.h. Source: the kernel's and execvp()'s rules of what is run; ld.so's of what is preloaded. */
int cli_program_check(const char *name, struct base_error *err)
{
    char path[PATH_MAX];
    int ret = find_program(name, path, err);

    for (int depth = 0; ret == 0; depth++) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);

        if (fd < 0) {
            return errno == EACCES ? 0 : base_error_set(err, errno, "'%s': %s", path, strerror(errno));
        }
        if (depth < MAX_SCRIPTS && read_script(fd, path)) {
            close(fd);
            continue;
        }
        ret = check_elf(fd, path, err);
        close(fd);
        break;
    }
    return ret;
}

/* ---- the library, and the kernel's KVM ---- */

/* See kvm_run.h. */
int cli_preload_find(char out[PATH_MAX], struct base_error *err)
{
    static const char *const beside[] = {"/" LIBRARY, "/../preload/" LIBRARY, "/../lib/" LIBRARY,
                                         "/../lib/x86_64-linux-gnu/" LIBRARY, "/../lib64/" LIBRARY};
    char self[PATH_MAX / 2];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    char *slash;

    if (n > 0) {
        self[n] = '\0';
        slash = strrchr(self, '/');
        *slash = '\0';
        for (unsigned i = 0; i < sizeof(beside) / sizeof(beside[0]); i++) {
            char path[PATH_MAX];

            snprintf(path, sizeof(path), "%s%s", self, beside[i]);
            if (access(path, R_OK) == 0 && realpath(path, out)) {
                return 0;
            }
        }
    }
    if (access(STRATA_LIBDIR "/" LIBRARY, R_OK) == 0) {
        snprintf(out, PATH_MAX, "%s", STRATA_LIBDIR "/" LIBRARY);
        return 0;
    }
    return base_error_set(err, ENOENT, LIBRARY " is neither beside this program nor in " STRATA_LIBDIR);
}

/* See kvm_run.h. */
int cli_real_kvm_try(struct base_error *err)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm, ret = 0;

    if (kvm < 0) {
        return base_error_set(err, errno, "/dev/kvm: %s", strerror(errno));
    }
    vm = ioctl(kvm, KVM_CREATE_VM, 0);
    if (ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
        ret = base_error_set(err, ENODEV, "/dev/kvm is not the KVM that programs know");
    } else if (vm < 0) {
        ret = base_error_set(err, errno, "/dev/kvm makes no VM: %s", strerror(errno));
    }
    if (vm >= 0) {
        close(vm);
    }
    close(kvm);
    return ret;
}
