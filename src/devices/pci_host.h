/* The PCI host bridge: configuration mechanism 1 at 0xcf8, the functions behind it, and the reset register. */
#ifndef STRATA_DEVICES_PCI_HOST_H
#define STRATA_DEVICES_PCI_HOST_H

#include "devices/board.h"

struct devices_pci_host;

/* A function on bus 0. config is read and written byte by byte through `writable`, a mask per byte. */
struct devices_pci_function {
    uint8_t config[256];
    uint8_t writable[256];
    /* After a write of len bytes at offset; may be NULL. Device lock held. */
    void (*written)(struct devices_pci_function *f, unsigned offset, unsigned len);
    void *opaque;
};

int devices_pci_host_new(struct devices_pci_host **out, const struct devices_board *board,
                        struct base_error *err) must_check;
void devices_pci_host_free(struct devices_pci_host *h);

/* Put a function at device:function of bus 0; borrowed. -EBUSY: taken. */
int devices_pci_function_add(struct devices_pci_host *h, unsigned device, unsigned function,
                            struct devices_pci_function *f) must_check;

#endif
