/* Event counters that user space hands in: held as duplicates of its descriptors. No state. */
#ifndef STRATA_SOFTKVM_EVENTFD_H
#define STRATA_SOFTKVM_EVENTFD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

/* A duplicate of an eventfd. >= 0, -EBADF, -EINVAL (something else), -EMFILE. */
int kvm_eventfd_get(int fd) must_check;

/* Are both descriptors of one open event counter? */
bool kvm_eventfd_same(int a, int b);

/* Add one. Lost only when the counter stands at its maximum and its owner made it non-blocking. */
void kvm_eventfd_signal(int fd);

/* Take what is there without waiting: the count, 0 if none. */
uint64_t kvm_eventfd_take(int fd);

#endif
