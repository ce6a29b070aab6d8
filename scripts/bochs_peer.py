"""Bochs as a peer of the benchmarks: a disk with our boot sector, a configuration, a terminal that nobody reads.

Bochs takes no kernel on its command line, so the benchmark guest comes from a raw disk: sector 0 is
guests/bench/boot.S, the flat guest follows. Its time-stamp counter counts emulated instructions, not time: whoever
times it must use the host's clock, and asks the guest for fewer ticks a loop (ticks=N).
"""
import os
import pty
import shutil
import struct
import subprocess
import threading

SECTOR = 512
FIELDS = 0x180        # in boot.S: sectors (2 bytes), then the command line
CYLINDERS, HEADS, SPT = 4, 16, 63
SHARE = "/usr/share/bochs"
PLUGINS = "/usr/lib/x86_64-linux-gnu/bochs/plugins"


def missing():
    """Why Bochs cannot run here, or None."""
    if not shutil.which("bochs"):
        return "bochs is not installed"
    if not os.path.exists(os.path.join(PLUGINS, "libbx_term_gui.so")):
        return "bochs-term is not installed"
    for name in ("BIOS-bochs-latest", "VGABIOS-lgpl-latest"):
        if not os.path.exists(os.path.join(SHARE, name)):
            return f"{SHARE}/{name} is not installed (bochsbios, vgabios)"
    return None


def write_disk(path, boot, guest, cmdline):
    """A raw disk of the geometry above that boots `guest` (flat image) with `cmdline`."""
    sectors = (len(guest) + SECTOR - 1) // SECTOR
    text = cmdline.encode() + b"\0"
    if len(boot) != SECTOR or sectors > 127 or FIELDS + 2 + len(text) > SECTOR - 2:
        raise ValueError("the benchmark guest does not fit its boot sector's fields")
    boot = boot[:FIELDS] + struct.pack("<H", sectors) + text + boot[FIELDS + 2 + len(text):]
    with open(path, "wb") as f:
        f.write(boot + guest)
        f.truncate(CYLINDERS * HEADS * SPT * SECTOR)


CONFIG = """config_interface: textconfig
display_library: term
memory: guest={mib}, host={mib}
romimage: file={share}/BIOS-bochs-latest
vgaromimage: file={share}/VGABIOS-lgpl-latest
cpu: model=corei7_haswell_4770, count=1, ips=100000000, reset_on_triple_fault=0
clock: sync=none
ata0-master: type=disk, path="{disk}", mode=flat, cylinders={c}, heads={h}, spt={s}
boot: disk
com1: enabled=1, mode=file, dev={serial}
log: {log}
panic: action=fatal
error: action=report
info: action=ignore
debug: action=ignore
"""


class Run:
    """One run in directory `work`: `lines` gives what the guest says on its serial port, as bytes."""

    def __init__(self, work, boot, guest, cmdline, mib=2048):
        disk, serial, config, commands = (os.path.join(work, n) for n in
                                          ("bochs.img", "bochs.serial", "bochsrc", "bochs.debug"))
        write_disk(disk, boot, guest, cmdline)
        for path in (serial, disk + ".lock"):
            if os.path.exists(path):
                os.unlink(path)
        os.mkfifo(serial)
        with open(config, "w") as f:
            f.write(CONFIG.format(mib=mib, share=SHARE, disk=disk, serial=serial, c=CYLINDERS, h=HEADS, s=SPT,
                                  log=os.path.join(work, "bochs.log")))
        with open(commands, "w") as f:
            f.write("continue\n")  # Debian's build has the debugger, which waits for a word
        # Opened for both, so that neither side waits for the other.
        self.fd = os.open(serial, os.O_RDWR)
        master, slave = pty.openpty()
        self.proc = subprocess.Popen(["bochs", "-q", "-f", config, "-rc", commands], stdin=slave, stdout=slave, stderr=slave,
                                     env=dict(os.environ, TERM="vt100"), start_new_session=True)
        os.close(slave)
        threading.Thread(target=self._drain, args=(master,), daemon=True).start()
        threading.Thread(target=self._wait, daemon=True).start()

    @staticmethod
    def _drain(master):
        try:
            while os.read(master, 65536):
                pass
        except OSError:
            pass
        os.close(master)

    def _wait(self):
        self.proc.wait()
        os.write(self.fd, b"\n\0end\n")

    def lines(self):
        with os.fdopen(os.dup(self.fd), "rb", buffering=0) as f:
            rest = b""
            while True:
                rest += f.read(4096)
                *whole, rest = rest.split(b"\n")
                for line in whole:
                    if line == b"\0end":
                        return
                    yield line

    def stop(self):
        self.proc.kill()
        self.proc.wait()
