/*
 * Two 8259A interrupt controllers in cascade, with the edge/level control registers of the PIIX.
 * A model alone: it knows no VM, no lock and no thread. The owner serialises calls, and after each of
 * them looks at `output` and `acked`.
 */
#ifndef STRATA_SOFTKVM_IRQCHIP_PIC_H
#define STRATA_SOFTKVM_IRQCHIP_PIC_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

struct kvm_pic {
    struct kvm_pic_state chip[2]; /* master, slave: fields as user space sees them */
    uint32_t lines[16];           /* by source, one bit each */
    bool output;                  /* INTR */
    uint32_t acked;               /* inputs whose service has ended since the owner last cleared it */
};

void kvm_pic_init(struct kvm_pic *pic);

/* Source `source` drives input 0-15. Returns 1: taken, 0: merged with a pending one, -1: masked. */
int kvm_pic_set_line(struct kvm_pic *pic, unsigned source, unsigned input, bool level);

/* INTA: the vector, with the request moved into service. A spurious one when nothing is requested. */
uint8_t kvm_pic_ack(struct kvm_pic *pic);

/* Vector that kvm_pic_ack() would return, or -1 when the output is low. */
int kvm_pic_peek(const struct kvm_pic *pic);

/* Is this one of ports 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1? */
bool kvm_pic_has_port(uint16_t port);
uint8_t kvm_pic_read(struct kvm_pic *pic, uint16_t port);
void kvm_pic_write(struct kvm_pic *pic, uint16_t port, uint8_t value);

/* KVM_GET/SET_IRQCHIP. which: 0 master, 1 slave. Any contents are accepted. */
void kvm_pic_get_state(const struct kvm_pic *pic, unsigned which, struct kvm_pic_state *out);
void kvm_pic_set_state(struct kvm_pic *pic, unsigned which, const struct kvm_pic_state *in);

#endif
