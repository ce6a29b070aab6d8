#!/usr/bin/env python3
"""Writes a random KVM script: slot surgery, dirty tracking in one of its modes, event descriptors, coalesced zones,
discards, and a guest that stores, loads and copies meanwhile.

Usage: generate.py SEED [STEPS]
The same seed gives the same script. Slot 0 (code) and the vCPU are always there; everything else comes and
goes, with arguments that are mostly right and sometimes wrong.
"""
import random
import sys

PAGE = 4096
MODES = ["auto", "auto", "manual", "initial", "ring"]


class Script:
    def __init__(self, seed, steps):
        self.rng = random.Random(seed)
        self.steps = steps
        self.slots = {}
        self.mode = self.rng.choice(MODES)
        self.lines = []
        self.events = {}
        self.zones = False

    def say(self, line):
        self.lines.append(line)

    def place(self):
        """An address in a slot, at its edges, or where nothing is."""
        rng = self.rng
        if self.slots and rng.random() < 0.8:
            gpa, size = rng.choice(list(self.slots.values()))[:2]
            return gpa + rng.randrange(size // PAGE) * PAGE + rng.choice([0, 0, 8, PAGE - 4, PAGE - 2, PAGE - 1])
        return 0x100000 + rng.randrange(0x800) * PAGE + rng.choice([0, 4, PAGE - 1])

    def step(self):
        """One step of guest code."""
        rng, at = self.rng, self.place()
        kind = rng.random()
        if kind < 0.5:
            return f"{rng.choice(['st8', 'st16', 'st32'])} {at:#x}"
        if kind < 0.65:
            return f"{rng.choice(['ld8', 'ld16', 'ld32'])} {at:#x} ; st32 0x5000"
        if kind < 0.75:
            return f"{rng.choice(['inc32', 'add32', 'xchg32', 'lockinc'])} {at & ~3:#x}"
        if kind < 0.85:
            return f"edi {at & ~3:#x} ; ecx {rng.randint(1, 40)} ; rstos32"
        if kind < 0.95:
            return f"esi {at & ~3:#x} ; edi {self.place() & ~3:#x} ; ecx {rng.randint(1, 20)} ; rmovs32"
        return f"pages {at & ~0xfff:#x} {rng.randint(1, 20)}"

    def run(self):
        code = " ; ".join(self.step() for _ in range(self.rng.randint(1, 8)))
        self.say(f"guest 0x1000 {code} ; hlt")
        self.say(f"regs rip=0x1000 rax={self.rng.getrandbits(32):#x}")
        self.say("run exits=300")
        if self.mode == "ring":
            self.say("harvest unique")
            self.say("reset bool")

    def slot(self):
        rng = self.rng
        slot = rng.randint(1, 6)
        old = self.slots.get(slot)
        gpa = 0x100000 + rng.randrange(0x40) * 16 * PAGE
        size = rng.choice([1, 2, 15, 16, 64, 100, 128]) * PAGE
        off, flags, roll = rng.randrange(64) * PAGE, rng.choice([0, 0, 1, 1, 1, 2, 3]), rng.random()
        if old and roll < 0.3:
            size = 0
        elif old and roll < 0.55:
            gpa, size, off, flags = old[0], old[1], old[2], old[3] ^ 1
        elif old and roll < 0.8:
            size, off, flags = old[1], old[2], old[3]
        elif roll > 0.95:
            gpa += rng.choice([8, 0x800])
        self.say(f"slot {slot} gpa={gpa:#x} size={size:#x} mem=m+{off:#x} flags={flags}")
        if self.applies(slot, gpa, size, off, flags):
            if size:
                self.slots[slot] = (gpa, size, off, flags)
            else:
                del self.slots[slot]

    def applies(self, slot, gpa, size, off, flags):
        """Would a correct KVM accept it? Keeps the generator's idea of what is mapped."""
        old = self.slots.get(slot)
        if gpa % PAGE:
            return False
        if size == 0:
            return old is not None
        if old and (size != old[1] or off != old[2] or (flags ^ old[3]) & 2):
            return False
        return all(other == slot or gpa >= g + s or g >= gpa + size for other, (g, s, *_) in self.slots.items())

    def event(self):
        rng = self.rng
        if "e" not in self.events:
            self.events["e"] = True
            self.say("event e")
        at, length = 0x300000 + rng.randrange(4) * 8, rng.choice([0, 1, 2, 4, 4, 8, 3])
        flags = rng.choice([0, 0, 1, 4, 5])
        self.say(f"ioevent e addr={at:#x} len={length} flags={flags} data={rng.randrange(3)}")
        if rng.random() < 0.6:
            self.say(f"guest 0x1000 eax {rng.randrange(3)} ; {rng.choice(['st8', 'st16', 'st32'])} {at:#x} ; hlt")
            self.say("regs rip=0x1000")
            self.say("run exits=300")
            self.say("count e")

    def zone(self):
        rng = self.rng
        where = rng.randrange(8)  # kernels do not find all that is in nested zones: these lie apart
        at, size = 0x310000 + where * 0x80, (1, 4, 16, 64)[where % 4]
        self.say(f"zone {rng.choice(['add', 'add', 'del'])} addr={at:#x} size={size}")
        spots = " ; ".join(f"{rng.choice(['st8', 'st16', 'st32'])} {at + rng.randrange(-2, 66):#x}" for _ in range(4))
        self.say(f"guest 0x1000 {spots} ; hlt")
        self.say(f"regs rip=0x1000 rax={rng.getrandbits(32):#x}")
        self.say("run exits=300")
        self.say("ring")

    def log(self):
        rng = self.rng
        if self.mode != "ring" and rng.random() < 0.4:
            first, count = rng.choice([0, 0, 64, 1, 128]), rng.choice([64, 64, 16, 100, 15, 128])
            self.say(f"clear {rng.randint(1, 6)} first={first} count={count} mask={rng.getrandbits(64):#x}")
        else:
            self.say(f"dirty {rng.randint(0, 7)}")

    def write(self):
        self.say("require READONLY_MEM\nrequire COALESCED_MMIO")
        if self.mode == "ring":
            self.say("require DIRTY_LOG_RING_ACQ_REL")
        self.say("vm")
        if self.mode == "ring":
            self.say("cap DIRTY_LOG_RING_ACQ_REL 0x10000")
        elif self.mode != "auto":
            self.say("cap MANUAL_DIRTY_LOG_PROTECT2 %d" % (1 if self.mode == "manual" else 3))
        self.say("ram c 64k\nram m 1M\nslot 0 gpa=0 size=64k mem=c\nvcpu 0\nflat32")
        if self.mode == "ring":
            self.say("dring entries=4096")
        actions = [(self.slot, 45), (self.run, 25), (self.log, 15), (self.event, 6), (self.zone, 5),
                   (lambda: self.say(f"discard m+{self.rng.randrange(128) * PAGE:#x} {PAGE}"), 4)]
        for _ in range(self.steps):
            self.rng.choices([a for a, _ in actions], [w for _, w in actions])[0]()
        for slot in sorted(self.slots):
            self.say(f"dirty {slot}")
        for page in self.rng.sample(range(192), 12):
            self.say(f"show m+{page * PAGE:#x} 8")
        self.say("show c+0x5000 4")
        return "\n".join(self.lines) + "\n"


def main():
    print(Script(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 40).write(), end="")


if __name__ == "__main__":
    main()
