#!/usr/bin/env python3
"""Plays KVM scripts on two endpoints and compares the transcripts; TAP.

Usage: compare.py [--record|--against FILE] KVM_SCRIPT FOLDER [NAME...]
Each script of FOLDER (and the folders in it) is played on the soft engine and compared, command by command, with
  - the same script on the host's /dev/kvm, where there is one,
  - else NAME.out, kept from such a kernel,
  - and NAME.svm, kept from a kernel's KVM with nested paging, for what the one that gave NAME.out lacks.
A command that a script declares to differ on an endpoint (`differs`) is left out there and counted.
--record writes NAME.out anew from /dev/kvm. --against compares with transcripts in FILE ("== PATH" before each),
as tests/kvmscript/tcg.py brings them out of a guest, and keeps NAME.svm where STRATA_KVM_RECORD is set.
"""
import argparse
import concurrent.futures
import difflib
import glob
import os
import subprocess
import sys

HIDDEN = "  (differs)"


def play(program, endpoint, path):
    try:
        proc = subprocess.run([program, endpoint, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return 1, "", "does not end within 60 s"
    return proc.returncode, proc.stdout, proc.stderr


def blocks(text):
    """The transcript as [command, outcome lines...]."""
    out = []
    for line in text.splitlines():
        if line.startswith("> ") or not out:
            out.append([line])
        else:
            out[-1].append(line)
    return out


def compare(want, have):
    """Lines of difference, and how many commands were left out as declared."""
    a, b = blocks(want), blocks(have)
    hidden = 0
    for x, y in zip(a, b):
        if x[:1] == y[:1] and (HIDDEN in x[1:] or HIDDEN in y[1:]):
            hidden += 1
            x[1:] = y[1:] = [HIDDEN]
    flat_a, flat_b = [l for x in a for l in x], [l for x in b for l in x]
    return list(difflib.unified_diff(flat_a, flat_b, "kernel", "soft", lineterm="", n=2)), hidden


def read(path):
    if not os.path.exists(path):
        return None
    with open(path) as f:
        return f.read()


def references(program, path, have_kvm, record):
    """Transcripts to compare with, as (whose, text); and a remark."""
    base, out, remark = path[:-4], [], ""
    if have_kvm:
        code, kernel, why = play(program, "kvm", path)
        if code == 0:
            out.append(("kernel", kernel))
            if record:
                with open(base + ".out", "w") as f:
                    f.write(kernel)
        elif code != 77:
            remark = f"the kernel's KVM: {why.strip()}; compared with what is kept"
        elif record and os.path.exists(base + ".out"):
            os.unlink(base + ".out")
    if not out and read(base + ".out") is not None:
        out.append(("kept", read(base + ".out")))
    if read(base + ".svm") is not None:
        out.append(("svm", read(base + ".svm")))
    return out, remark


def judge(job):
    """One script: (verdict, name, lines)."""
    program, folder, path, have_kvm, record, against = job
    name = os.path.relpath(path, folder)[:-4]
    code, soft, complaint = play(program, "soft", path)
    refs, remark = references(program, path, have_kvm, record) if against is None else \
        ([("svm", against[name])] if name in against else [], "")
    lines = ["# " + name + ": " + remark] if remark else []
    if code == 77:
        declared = soft.splitlines()[-1:] and soft.splitlines()[-1].startswith("> unless soft ")
        return "named" if declared else "skip" if not refs else "lacks", name, lines
    if code != 0:
        return "bad", name, lines + [f"#   soft exit {code}: {complaint.strip()}"]
    if not refs:
        return "skip", name, lines
    hidden = 0
    for whose, want in refs:
        diff, left_out = compare(want, soft)
        hidden = max(hidden, left_out)
        if diff:
            return "bad", f"{name} ({whose})", lines + ["#   " + l for l in diff]
    if against is not None and os.environ.get("STRATA_KVM_RECORD"):
        kept = read(path[:-4] + ".out")
        if kept is None or HIDDEN in kept:
            with open(path[:-4] + ".svm", "w") as f:
                f.write(against[name])
    return ("named" if hidden else "ok"), name + " (" + ", ".join(w for w, _ in refs) + ")", lines


def split_transcripts(path):
    out, name = {}, None
    with open(path, errors="replace") as f:
        for line in f:
            if line.startswith("== "):
                name = line[3:].strip()
                name = name[:-4] if name.endswith(".kvm") else name
                out[name] = ""
            elif line.rstrip() == "SKIP" and name is not None:
                out.pop(name, None)
                name = None
            elif name is not None:
                out[name] += line
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--against")
    parser.add_argument("program")
    parser.add_argument("folder")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    record = args.record or (os.environ.get("STRATA_KVM_RECORD") and not args.against)
    have_kvm = os.access("/dev/kvm", os.R_OK | os.W_OK)
    against = split_transcripts(args.against) if args.against else None
    scripts = sorted(glob.glob(os.path.join(args.folder, "**", "*.kvm"), recursive=True))
    if args.names:
        scripts = [s for s in scripts if any(n in s for n in args.names)]
    print(f"1..{len(scripts)}")
    counts = {}
    jobs = [(args.program, args.folder, s, have_kvm, record, against) for s in scripts]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for number, (verdict, name, lines) in enumerate(pool.map(judge, jobs), 1):
            counts[verdict] = counts.get(verdict, 0) + 1
            tail = {"skip": " # SKIP no transcript: no endpoint at hand has what it requires",
                    "lacks": ": the soft engine lacks what the kernel's has"}.get(verdict, "")
            print(f"{'not ok' if verdict in ('bad', 'lacks') else 'ok'} {number} - {name}{tail}")
            for line in lines:
                print(line)
    print(f"# {len(scripts)} scripts, {counts.get('named', 0)} with differences that the script names, "
          f"{counts.get('skip', 0)} skipped, {counts.get('bad', 0) + counts.get('lacks', 0)} different")
    return 1 if counts.get("bad") or counts.get("lacks") else 0


if __name__ == "__main__":
    sys.exit(main())
