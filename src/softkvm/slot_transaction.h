/* SOFTKVM_SLOT_TRANSACTION: see slot_transaction.c and softkvm/slots.h. */
#ifndef STRATA_SOFTKVM_SLOT_TRANSACTION_H
#define STRATA_SOFTKVM_SLOT_TRANSACTION_H

#include "base/compiler.h"

struct kvm_vm;

#define KVM_SLOT_TRANSACTION_MAX 1024

int kvm_slots_transaction(struct kvm_vm *vm, void *arg) must_check;

#endif
