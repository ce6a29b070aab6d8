#!/usr/bin/env python3
"""Writes a random KVM script: slot surgery, dirty logging and a guest that stores meanwhile.

Usage: generate.py SEED [STEPS]
The same seed gives the same script. Slot 0 (code) and the vCPU are always there; everything else comes and
goes, with arguments that are mostly right and sometimes wrong.
"""
import random
import sys

PAGE = 4096


def store_code(pages):
    """32-bit code: one store to each guest page address, then hlt."""
    code = []
    for gpa in pages:
        code += [0xA3, *gpa.to_bytes(4, "little")]  # mov [gpa], eax
    return code + [0xF4]


def touch(rng, slots):
    """Addresses in slots, at their edges, and sometimes where nothing is."""
    out = []
    for _ in range(rng.randint(1, 12)):
        if slots and rng.random() < 0.85:
            gpa, size = rng.choice(list(slots.values()))[:2]
            page = rng.randrange(size // PAGE)
            out.append(gpa + page * PAGE + rng.choice([0, 0, 8, PAGE - 4, PAGE - 2]))
        else:
            out.append(0x100000 + rng.randrange(0x800) * PAGE)
    return out


def slot_line(rng, slots):
    slot = rng.randint(1, 6)
    old = slots.get(slot)
    gpa = 0x100000 + rng.randrange(0x40) * 16 * PAGE
    size = rng.choice([1, 2, 15, 16, 64, 100]) * PAGE
    off = rng.randrange(64) * PAGE
    flags = rng.choice([0, 0, 1, 1, 1, 2, 3])
    roll = rng.random()
    if old and roll < 0.3:
        size = 0
    elif old and roll < 0.55:
        gpa, size, off, flags = old[0], old[1], old[2], old[3] ^ 1
    elif old and roll < 0.8:
        size, off, flags = old[1], old[2], old[3]
    elif roll > 0.95:
        gpa += rng.choice([8, 0x800])
    line = f"slot {slot} gpa={gpa:#x} size={size:#x} mem=m+{off:#x} flags={flags}"
    return line, slot, gpa, size, off, flags


def applies(slots, slot, gpa, size, off, flags):
    """Would a correct KVM accept it? Keeps the generator's idea of what is mapped."""
    old = slots.get(slot)
    if gpa % PAGE:
        return False
    if size == 0:
        return old is not None
    if old and (size != old[1] or off != old[2] or (flags ^ old[3]) & 2):
        return False
    for other, (g, s, *_) in slots.items():
        if other != slot and gpa < g + s and g < gpa + size:
            return False
    return True


def main():
    rng = random.Random(int(sys.argv[1]))
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    slots = {}
    print("require READONLY_MEM\nvm\nram c 64k\nram m 1M\nslot 0 gpa=0 size=64k mem=c\nvcpu 0\nflat32")
    if rng.random() < 0.4:
        print("cap MANUAL_DIRTY_LOG_PROTECT2 %d" % rng.choice([1, 3]))
    for _ in range(steps):
        roll = rng.random()
        if roll < 0.5:
            line, slot, gpa, size, off, flags = slot_line(rng, slots)
            print(line)
            if applies(slots, slot, gpa, size, off, flags):
                if size:
                    slots[slot] = (gpa, size, off, flags)
                else:
                    del slots[slot]
        elif roll < 0.75:
            code = store_code(touch(rng, slots))
            print("code 0x1000 " + " ".join(f"{b:02x}" for b in code))
            print(f"regs rip=0x1000 rax={rng.getrandbits(32):#x}")
            print("run")
        elif roll < 0.92:
            print(f"dirty {rng.randint(0, 7)}")
        else:
            first = rng.choice([0, 0, 64, 1, 128])
            count = rng.choice([64, 64, 16, 100, 15, 128])
            print(f"clear {rng.randint(1, 6)} first={first} count={count} mask={rng.getrandbits(64):#x}")
    for slot in sorted(slots):
        print(f"dirty {slot}")
    for page in rng.sample(range(164), 12):
        print(f"show m+{page * PAGE:#x} 8")


if __name__ == "__main__":
    main()
