#!/usr/bin/env python3
"""Plays KVM scripts on two endpoints and compares the transcripts; TAP.

Usage: compare.py KVM_SCRIPT FOLDER
Where there is no /dev/kvm, each script is still played on the soft engine and compared with the transcript
kept beside it (NAME.out), taken from a kernel's KVM.
STRATA_KVM_RECORD=1 writes the kept transcripts anew from the kernel's /dev/kvm.
"""
import difflib
import glob
import os
import subprocess
import sys


def play(program, endpoint, path):
    try:
        proc = subprocess.run([program, endpoint, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return 1, "", "does not end within 60 s"
    return proc.returncode, proc.stdout, proc.stderr


def main():
    program, folder = sys.argv[1], sys.argv[2]
    have_kvm = os.access("/dev/kvm", os.R_OK | os.W_OK)
    scripts = sorted(glob.glob(os.path.join(folder, "*.kvm")))
    print(f"1..{len(scripts)}")
    bad = 0
    for number, path in enumerate(scripts, 1):
        name, kept = os.path.basename(path)[:-4], path[:-4] + ".out"
        code, soft, complaint = play(program, "soft", path)
        want, whose = None, ""
        if have_kvm:
            kcode, kernel, why = play(program, "kvm", path)
            if kcode not in (0, 77):
                print(f"# {name}: the kernel's KVM: {why.strip()}; compared with what is kept")
            if kcode == 0:
                want, whose = kernel, "kernel"
                if os.environ.get("STRATA_KVM_RECORD"):
                    with open(kept, "w") as f:
                        f.write(kernel)
        if want is None and os.path.exists(kept):
            with open(kept) as f:
                want, whose = f.read(), "kept"
        if want is None or code == 77:
            print(f"ok {number} - {name} # SKIP no transcript to compare with" if code in (0, 77)
                  else f"not ok {number} - {name}: exit {code} {complaint}")
            continue
        if code == 0 and soft == want:
            print(f"ok {number} - {name} ({whose})")
            continue
        bad += 1
        print(f"not ok {number} - {name} ({whose}), soft exit {code} {complaint.strip()}")
        for line in difflib.unified_diff(want.splitlines(), soft.splitlines(), whose, "soft", lineterm="", n=1):
            print("#   " + line)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
