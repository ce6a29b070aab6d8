/*
 * One counter of an 8254 and its three-byte protocol. A model alone: time is an argument (ns of any
 * steady clock), the state is what KVM_GET_PIT2 shows.
 */
#ifndef STRATA_SOFTKVM_IRQCHIP_PIT_CHANNEL_H
#define STRATA_SOFTKVM_IRQCHIP_PIT_CHANNEL_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#define KVM_PIT_HZ UINT64_C(1193182)

/* Length of `ticks` periods of the input clock, in ns, and the number of whole ticks in ns. */
uint64_t kvm_pit_ticks_to_ns(uint64_t ticks);
uint64_t kvm_pit_ns_to_ticks(uint64_t ns);

void kvm_pit_channel_init(struct kvm_pit_channel_state *c, bool gate, uint64_t now);

/* A write to the counter's port. True: a count has been loaded, the timer starts anew. */
bool kvm_pit_channel_write(struct kvm_pit_channel_state *c, uint8_t value, uint64_t now);
uint8_t kvm_pit_channel_read(struct kvm_pit_channel_state *c, uint64_t now);

/* Control word for this counter (not a read-back command). */
void kvm_pit_channel_control(struct kvm_pit_channel_state *c, uint8_t value, uint64_t now);

/* The two latches of the read-back command. */
void kvm_pit_channel_latch_count(struct kvm_pit_channel_state *c, uint64_t now);
void kvm_pit_channel_latch_status(struct kvm_pit_channel_state *c, uint64_t now);

/* Load a count of 1 to 65536 (0 counts as 65536). */
void kvm_pit_channel_load(struct kvm_pit_channel_state *c, uint32_t count, uint64_t now);

/* Level of OUT and of GATE. */
bool kvm_pit_channel_out(const struct kvm_pit_channel_state *c, uint64_t now);
void kvm_pit_channel_set_gate(struct kvm_pit_channel_state *c, bool gate, uint64_t now);

/* Make fields that came from outside lie in the ranges that the functions above keep. */
void kvm_pit_channel_sanitise(struct kvm_pit_channel_state *c);

#endif
