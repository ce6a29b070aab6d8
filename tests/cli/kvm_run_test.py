#!/usr/bin/env python3
"""`strata kvm-run` as a user meets it. Usage: kvm_run_test.py STRATA PRELOAD_TEST. Prints TAP."""
import os
import stat
import subprocess
import sys
import tempfile

STRATA, PROGRAM = sys.argv[1:3]
# A sanitizer's runtime must come first in a process: a library that has one cannot be preloaded into others.
SANITIZED = os.environ.get("STRATA_SANITIZED") == "1"
count = 0


def report(ok, name, *details):
    global count
    count += 1
    print(f"{'ok' if ok else 'not ok'} {count} - {name}", flush=True)
    if not ok:
        for d in details:
            print("# " + str(d).replace("\n", "\n# "))


def run(*args, **kw):
    return subprocess.run([STRATA, "kvm-run", *args], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=120, **kw)


def says(result, status, *words):
    return result.returncode == status and all(w in result.stdout + result.stderr for w in words)


def script(folder, name, first, text=""):
    path = os.path.join(folder, name)
    with open(path, "w") as f:
        f.write(f"{first}\n{text}\n")
    os.chmod(path, 0o755)
    return path


def static_elf(folder):
    """A 64-bit ELF header with one loadable segment and no loader named."""
    head = (b"\x7fELF\x02\x01\x01" + bytes(9) + (2).to_bytes(2, "little") + (62).to_bytes(2, "little") +
            (1).to_bytes(4, "little") + (0x400078).to_bytes(8, "little") + (64).to_bytes(8, "little") + bytes(8) +
            bytes(4) + (64).to_bytes(2, "little") + (56).to_bytes(2, "little") + (1).to_bytes(2, "little") + bytes(6))
    body = (1).to_bytes(4, "little") + (5).to_bytes(4, "little") + bytes(8) + (0x400000).to_bytes(8, "little") * 2 + \
        (0x1000).to_bytes(8, "little") * 3
    path = os.path.join(folder, "static")
    with open(path, "wb") as f:
        f.write(head + body)
    os.chmod(path, 0o755)
    return path


def test_words():
    report(says(run("--help"), 0, "usage: strata kvm-run", "--mmu", "--prefer-real", "--list"), "--help")
    report(says(run(), 2, "which command"), "no command: status 2")
    report(says(run("--nonsense", "true"), 2, "--nonsense"), "an unknown option: status 2")
    report(says(run("--mmu", "flat", "true"), 2, "ept, npt or shadow"), "an unknown MMU: status 2")
    report(says(run("--mmu"), 2, "ept, npt or shadow"), "an option without its value: status 2")
    report(says(run("no-such-command-anywhere"), 127, "no such command"), "no such command: status 127")
    report(says(run("/nonexistent/program"), 127, "/nonexistent/program"), "no such path: status 127")
    report(says(run("/etc/passwd"), 126, "not an executable"), "not executable: status 126")
    report(says(run("/tmp"), 126, "not an executable"), "a folder: status 126")


def test_list():
    for mmu in ("ept", "npt", "shadow"):
        r = run("--list", "--mmu", mmu)
        lines = r.stdout.splitlines()
        report(r.returncode == 0 and any(l.split()[1:3] == ["KVM_RUN", "yes"] for l in lines) and
               any(l.split()[:2] == ["KVM_CAP_USER_MEMORY", "1"] for l in lines) and
               any("KVM_MEMORY_ENCRYPT_OP" in l and "absent" in l for l in lines), f"--list --mmu={mmu}", r.stderr)


def test_programs(folder):
    report(says(run(static_elf(folder)), 126, "statically linked"), "a static program is refused, with the reason")
    report(says(run(script(folder, "s1", f"#!{folder}/static")), 126, "statically linked"),
           "and a script for it")
    if not SANITIZED:
        report(says(run(script(folder, "s2", "#! /bin/sh -e", "test -r /dev/kvm && test -c /dev/kvm && echo there")),
                    0, "there"), "a script of a dynamic program runs, and sees the device")
        report(says(run("sh", "-c", "exit 7"), 7), "the command's own status")
    with open(os.path.join(folder, "text"), "w") as f:
        f.write("hello\n")
    os.chmod(f.name, 0o755)
    report(says(run(f.name), 126, "neither a program nor a script"), "a text: status 126")
    i386 = bytearray(open(os.path.join(folder, "static"), "rb").read())
    i386[4] = 1
    path = os.path.join(folder, "i386")
    with open(path, "wb") as f:
        f.write(i386)
    os.chmod(path, stat.S_IRWXU)
    report(says(run(path), 126, "not a 64-bit x86 program"), "a 32-bit program: status 126")


def test_environment(folder):
    r = run("--mmu=npt", "--stats", f"--trace={folder}/trace", "--", "env", env={**os.environ, "LD_PRELOAD": ""})
    env = dict(l.split("=", 1) for l in r.stdout.splitlines() if "=" in l)
    report(env.get("STRATA_KVM_MMU") == "npt" and env.get("STRATA_KVM_STATS") == "1" and
           env.get("STRATA_KVM_TRACE") == f"{folder}/trace" and
           env.get("LD_PRELOAD", "").endswith("/libsoftkvm-preload.so"), "options go by environment", r.stdout)
    r = run("env", env={**os.environ, "STRATA_KVM_MMU": "npt"})
    report("STRATA_KVM_MMU" not in r.stdout, "and are not inherited from outside")


def test_working(folder):
    r = run("--mmu=npt", "--stats", f"--trace={folder}/trace", PROGRAM)
    trace = open(f"{folder}/trace").read() if os.path.exists(f"{folder}/trace") else ""
    report(r.returncode == 0 and "not ok" not in r.stdout, "the tests of the library, on another MMU", r.stdout)
    report("instructions" in r.stderr and "entries" in r.stderr and "kvm-" in r.stderr,
           "--stats prints counters", r.stderr)
    report("access_violation: gpa" in trace and "not there, answered as a kernel without it" in trace,
           "--trace has the steps, and names what is not there")
    real = run("--require-real", "true")
    report(real.returncode == 0 or says(real, 3, "--require-real"), "--require-real: it works, or status 3 with why",
           real.stderr)
    report(says(run("--prefer-real", "true"), 0, "KVM"), "--prefer-real says which one it is")


with tempfile.TemporaryDirectory(prefix="strata-kvm-run-") as room:
    test_words()
    test_list()
    test_programs(room)
    if not SANITIZED:
        test_environment(room)
        test_working(room)
print(f"1..{count}")
