/* The parts of `strata kvm-run`. */
#ifndef STRATA_CLI_KVM_RUN_H
#define STRATA_CLI_KVM_RUN_H

#include <limits.h>
#include <stdio.h>

#include "base/error.h"
#include "softkvm/softkvm.h"

/*
 * Find the program that execvp(name) would run, and the ELF file behind it (interpreters of scripts are
 * followed), and judge whether the dynamic loader will take a preloaded library into it. 0; -ENOENT or
 * -EACCES: nothing to run; -ENOEXEC: it can run, but the library cannot reach it. err says why.
 */
int cli_program_check(const char *name, struct base_error *err) must_check;

/* Where libsoftkvm-preload.so is: beside the command, in the build's tree, or installed. -ENOENT with err. */
int cli_preload_find(char out[PATH_MAX], struct base_error *err) must_check;

/* Does the kernel's own KVM make a VM here? err says why not. 0 or -errno. */
int cli_real_kvm_try(struct base_error *err) must_check;

/* Print requests and capabilities with their state. Returns the exit status. */
int cli_kvm_list(enum softkvm_mmu mmu, FILE *to);

#endif
