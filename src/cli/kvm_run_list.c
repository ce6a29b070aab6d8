/*
 * `strata kvm-run --list`: the KVM ABI as this build has it. Requests come from the library's table;
 * capabilities are asked of a VM.
 */
#include <linux/kvm.h>

#include "cli/kvm_run.h"
#include "softkvm/abi_list.h"

static const char *level_name(unsigned levels)
{
    static const char *const names[] = {
        [SOFTKVM_LEVEL_SYSTEM] = "system",
        [SOFTKVM_LEVEL_VM] = "VM",
        [SOFTKVM_LEVEL_VCPU] = "vCPU",
        [SOFTKVM_LEVEL_SYSTEM | SOFTKVM_LEVEL_VM] = "system,VM",
        [SOFTKVM_LEVEL_SYSTEM | SOFTKVM_LEVEL_VCPU] = "system,vCPU",
        [SOFTKVM_LEVEL_VM | SOFTKVM_LEVEL_VCPU] = "VM,vCPU",
    };

    return levels < sizeof(names) / sizeof(names[0]) && names[levels] ? names[levels] : "any";
}

static void list_requests(FILE *to)
{
    unsigned n;
    const struct softkvm_abi_ioctl *r = softkvm_abi_ioctls(&n);

    fprintf(to, "requests: descriptor, name, state\n");
    for (unsigned i = 0; i < n; i++) {
        fprintf(to, "  %-11s %-34s %-6s %s\n", level_name(r[i].levels), r[i].name, r[i].is_there ? "yes" : "absent",
                r[i].note);
    }
}

static void list_capabilities(struct softkvm *s, int vm, FILE *to)
{
    unsigned n;
    const struct softkvm_abi_cap *c = softkvm_abi_caps(&n);

    fprintf(to, "capabilities: name, what KVM_CHECK_EXTENSION of a VM answers (0: absent)\n");
    for (unsigned i = 0; i < n; i++) {
        /* Where the answer is a size, a count of host processors or a set of bits, it is a number like others. */
        int value = softkvm_ioctl(s, vm, KVM_CHECK_EXTENSION, (void *)c[i].number);

        fprintf(to, "  %-40s %10d %s\n", c[i].name, value, c[i].note);
    }
}

/* See kvm_run.h. Status 3: no engine with this kind of MMU. */
int cli_kvm_list(enum softkvm_mmu mmu, FILE *to)
{
    struct softkvm_options options = {.size = sizeof(options), .mmu = mmu};
    char err[200] = "";
    struct softkvm *s = softkvm_new(&options, err, sizeof(err));
    int kvm = s ? softkvm_open_system(s) : -1;
    int vm = kvm >= 0 ? softkvm_ioctl(s, kvm, KVM_CREATE_VM, NULL) : -1;

    if (vm < 0) {
        fprintf(stderr, "strata kvm-run: no engine: %s\n", err);
        softkvm_free(s);
        return 3;
    }
    list_requests(to);
    list_capabilities(s, vm, to);
    softkvm_free(s);
    return 0;
}
