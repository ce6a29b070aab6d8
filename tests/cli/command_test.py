#!/usr/bin/env python3
"""The command as a user meets it: bad input gets one clear line and its exit status, guests end as the
documented statuses say, the terminal is given back. Usage: command_test.py STRATA. Prints TAP."""
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

STRATA = sys.argv[1]
DIR = tempfile.mkdtemp(prefix="strata-cli-")
count = 0


def report(ok, name, *details):
    global count
    count += 1
    print(f"{'ok' if ok else 'not ok'} {count} - {name}", flush=True)
    if not ok:
        for d in details:
            print("# " + str(d).replace("\n", "\n# "))


def skip(name, why):
    global count
    count += 1
    print(f"ok {count} - {name} # skip {why}", flush=True)


def run(*args, **kw):
    return subprocess.run([STRATA, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=120, errors="replace", **kw)


def path(name, data):
    p = os.path.join(DIR, name)
    with open(p, "wb") as f:
        f.write(data)
    return p


def flat(code):
    """A flat Multiboot image at 1 MiB whose 32-bit code is `code`."""
    base, flags = 0x100000, 0x10000
    head = struct.pack("<8I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF, base, base, 0, 0, base + 32)
    return head + code


def out_word(port, value):
    return b"\x66\xba" + struct.pack("<H", port) + b"\x66\xb8" + struct.pack("<H", value) + b"\x66\xef"


HANG = b"\xeb\xfe"
HELLO = b"".join(b"\x66\xba\xf8\x03\xb0" + bytes([c]) + b"\xee" for c in b"hello\n")
GUESTS = {
    "poweroff": out_word(0x604, 5 << 10 | 0x2000) + HANG,
    "reset": b"\xb0\xfe\xe6\x64" + HANG,
    "crash": b"\x0f\x01\x1d" + struct.pack("<I", 0x100000 - 64) + b"\x0f\x0b" + HANG,
    "exit5": b"\x66\xba\x01\x05\xb0\x05\xee" + HANG,
    "hang": HELLO + HANG,
}


def refused(name, status, says, *args, **kw):
    r = run("run", *args, **kw)
    lines = [l for l in r.stderr.splitlines() if not l.startswith("strata: engine")]
    ok = r.returncode == status and len(lines) == 1 and all(s in lines[0] for s in says)
    report(ok, name, f"status {r.returncode}, wanted {status}", r.stderr)


def test_bad_input():
    good = path("poweroff", flat(GUESTS["poweroff"]))
    elf = bytearray(128)
    elf[:7] = b"\x7fELF\x02\x01\x01"
    elf[16:20] = struct.pack("<HH", 2, 183)
    soft = ("-accel", "soft", "-m", "64")
    refused("no kernel", 2, ["-kernel"], *soft)
    refused("missing kernel", 1, ["-kernel", "/nowhere/kernel", "No such file"], *soft, "-kernel", "/nowhere/kernel")
    refused("kernel is a folder", 1, [DIR, "not a regular file"], *soft, "-kernel", DIR)
    refused("empty kernel", 1, ["empty"], *soft, "-kernel", path("empty", b""))
    refused("truncated kernel", 1, ["truncated"], *soft, "-kernel",
            path("cut", b"\0" * 0x1F1 + b"\x1f" + b"\0" * 16 + b"HdrS\x0f\x02" + b"\0" * 9 + b"\1" + b"\0" * 36 + b"\1"
                 + b"\0" * 300))
    refused("text as kernel", 1, ["not a kernel"], *soft, "-kernel", path("text", b"hello\n" * 1000))
    refused("ELF of another machine", 1, ["AArch64"], *soft, "-kernel", path("arm", bytes(elf)))
    refused("missing initrd", 1, ["-initrd", "/nowhere/initrd"], *soft, "-kernel", good, "-initrd", "/nowhere/initrd")
    refused("-m 0", 2, ["-m '0'", "1M"], "-m", "0", "-kernel", good)
    refused("-m 1E", 2, ["-m '1E'", "32T"], "-m", "1E", "-kernel", good)
    refused("-smp 1000", 2, ["-smp '1000'", "64"], "-smp", "1000", "-kernel", good)
    refused("unknown option", 2, ["-kernl", "-kernel"], "-kernl", good)
    refused("unknown accelerator", 2, ["xen"], "-accel", "xen", "-m", "64", "-kernel", good)
    refused("unknown cpu", 2, ["cray"], *soft, "-cpu", "cray", "-kernel", good)
    refused("RAM file in a missing folder", 1, ["/nowhere"], *soft, "-mem-path", "/nowhere/ram", "-kernel", good)
    r = run("rum")
    report(r.returncode == 2 and "'run'" in r.stderr, "unknown command", r.stderr)
    if os.geteuid() == 0 and shutil.which("setpriv") and os.path.exists("/dev/kvm") and \
            not os.stat("/dev/kvm").st_mode & 0o006:
        r = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", STRATA, "run", "-accel",
                            "kvm", "-kernel", good], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if "setpriv" in r.stderr:
            skip("no permission on /dev/kvm", "the program is out of another user's reach")
        else:
            report(r.returncode == 3 and "permission denied" in r.stderr and "group" in r.stderr,
                   "no permission on /dev/kvm", r.returncode, r.stderr)
    else:
        skip("no permission on /dev/kvm", "needs root and a closed /dev/kvm")
    test_full_disk(good)


def test_full_disk(good):
    full = os.path.join(DIR, "full")
    os.mkdir(full)
    script = (f"mount -t tmpfs -o size=1m none {full} || exit 99; "
              f"exec {STRATA} run -accel soft -m 64 -mem-path {full}/ram -kernel {good}")
    r = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True,
                       stdin=subprocess.DEVNULL) if shutil.which("unshare") else None
    if r is None or r.returncode == 99 or "unshare" in r.stderr:
        skip("full disk behind a RAM file", "cannot mount here")
    else:
        report(r.returncode == 1 and "No space left" in r.stderr, "full disk behind a RAM file", r.returncode, r.stderr)


def ends(name, guest, status, *args):
    k = path(guest, flat(GUESTS[guest]))
    r = run("run", "-accel", "soft", "-m", "16", "-kernel", k, "-nographic", *args)
    report(r.returncode == status, name, f"status {r.returncode}, wanted {status}", r.stderr)
    return r


def test_statuses():
    ends("power-off gives 0", "poweroff", 0)
    ends("reset with -no-reboot gives 0", "reset", 0, "-no-reboot")
    r = ends("a crash with -no-reboot gives 4", "crash", 4, "-no-reboot", "-d", "cpu")
    report("triple fault" in r.stderr and "RIP=" in r.stderr, "a crash shows registers", r.stderr)
    ends("isa-debug-exit gives 2V+1", "exit5", 11, "-device", "isa-debug-exit")
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        k = path("hang", flat(GUESTS["hang"]))
        p = subprocess.Popen([STRATA, "run", "-accel", "soft", "-m", "16", "-kernel", k, "-nographic"],
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        p.stdout.read(5)
        p.send_signal(sig)
        p.communicate(timeout=60)
        report(p.returncode == 128 + sig, f"{sig.name} gives {128 + sig}", p.returncode)


def test_terminal():
    """On a terminal: raw while it runs, as before after Ctrl-A x and after a signal."""
    k = path("hang", flat(GUESTS["hang"]))
    for name, finish in (("Ctrl-A x", None), ("SIGTERM", signal.SIGTERM), ("SIGSEGV", signal.SIGSEGV)):
        master, slave = pty.openpty()
        before = termios.tcgetattr(slave)
        p = subprocess.Popen([STRATA, "run", "-accel", "soft", "-m", "16", "-kernel", k, "-nographic"],
                             stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        text, deadline = b"", time.time() + 60
        while b"hello" not in text and time.time() < deadline:
            if select.select([master], [], [], 1)[0]:
                text += os.read(master, 4096)
        during = termios.tcgetattr(slave)
        raw = not during[3] & termios.ICANON and not during[3] & termios.ISIG
        if finish is None:
            os.write(master, b"\x01x")
        else:
            p.send_signal(finish)
        p.wait(timeout=60)
        after = termios.tcgetattr(slave)
        status = 0 if finish is None else 128 + finish if finish == signal.SIGTERM else -finish
        report(raw and after == before and p.returncode == status, f"terminal after {name}",
               f"raw {raw}, restored {after == before}, status {p.returncode}", text)
        os.close(master)
        os.close(slave)


def test_output():
    r = run("--version")
    report(r.returncode == 0 and re.fullmatch(r"strata \d+\.\d+\.\d+ .*\n", r.stdout), "--version", r.stdout)
    r = run("run", "--help")
    report(r.returncode == 0 and 20 < r.stdout.count("\n") <= 60 and "-kernel" in r.stdout, "--help", r.stdout)
    r = run("doctor")
    report(r.returncode == 0 and "soft  works" in r.stdout, "doctor", r.stdout, r.stderr)
    k = path("poweroff", flat(GUESTS["poweroff"]))
    j = os.path.join(DIR, "report.json")
    r = run("run", "-accel", "soft", "-m", "16", "-kernel", k, "-nographic", "--report", f"--report-json={j}")
    report(all(w in r.stdout for w in ("region tree", "flat views", "memory slots", "exits to this program",
                                       "second stage", "address-space: memory", "slot 0")), "--report", r.stdout)
    import json
    with open(j) as f:
        d = json.load(f)
    report(d["outcome"] == "poweroff" and d["engine"] == "soft" and d["slots"] and d["exits"]["io"] >= 1
           and d["memory"]["guest_bytes"] == 16 << 20, "--report-json", d)
    out = os.path.join(DIR, "serial")
    hang = path("hello", flat(HELLO + GUESTS["poweroff"]))
    run("run", "-accel", "soft", "-m", "16", "-kernel", hang, "-serial", f"file:{out}")
    with open(out) as f:
        report(f.read() == "hello\n", "-serial file:")


try:
    test_bad_input()
    test_statuses()
    if os.path.exists("/dev/pts/ptmx"):
        test_terminal()
    else:
        skip("terminal", "no pseudo-terminals here")
    test_output()
finally:
    shutil.rmtree(DIR, ignore_errors=True)
print(f"1..{count}")
