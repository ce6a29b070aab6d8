#!/usr/bin/env python3
"""Plays generated KVM scripts on the soft engine and on the host's /dev/kvm and compares; TAP.

Usage: generated.py KVM_SCRIPT [COUNT [FIRST]]
COUNT: 50, with STRATA_LONG=1 10,000; FIRST: the first seed (1). Without /dev/kvm: that no script crashes the soft
engine, and that it answers the same twice. Scripts go through the player in batches; a batch that ends badly is
played again one by one. The seeds that differ are named; generate.py SEED gives the script again.
"""
import concurrent.futures
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import compare
import generate

BATCH = 25


def play_batch(program, endpoint, folder, names):
    try:
        proc = subprocess.run([program, endpoint] + names, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, timeout=600, check=False)
    except subprocess.TimeoutExpired:
        return None
    if proc.returncode != 0:
        return None
    out = {}
    for part in ("\n" + proc.stdout).split("\n== ")[1:]:
        name, _, text = part.partition("\n")
        out[name.strip()] = text
    return out


def play_all(program, endpoint, folder, names):
    out = play_batch(program, endpoint, folder, names) if len(names) > 1 else None
    if out is not None and len(out) == len(names):
        return out
    out = {}
    for name in names:
        code, text, why = compare.play(program, endpoint, os.path.join(folder, name))
        out[name] = text if code == 0 else "SKIP" if code == 77 else f"exit {code}: {why}"
    return out


def judge(job):
    program, first, count, other = job
    bad, played = [], 0
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for seed in range(first, first + count):
            names.append(f"{seed}.kvm")
            with open(os.path.join(folder, names[-1]), "w") as f:
                f.write(generate.Script(seed, 40).write())
        mine, theirs = (play_all(program, e, folder, names) for e in ("soft", other))
        for name in names:
            if theirs[name].strip() == "SKIP":
                continue
            played += 1
            diff = compare.compare(theirs[name], mine[name])[0]
            if diff or "exit " in mine[name][:5]:
                bad.append((name[:-4], diff))
    return bad, played


def main():
    program = os.path.abspath(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 10000 if os.environ.get("STRATA_LONG") else 50
    first = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    other = "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "soft"
    jobs = [(program, s, min(BATCH, first + count - s), other) for s in range(first, first + count, BATCH)]
    bad, played = [], 0
    print("1..1")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for wrong, n in pool.map(judge, jobs):
            bad += wrong
            played += n
            for seed, diff in wrong:
                print(f"# seed {seed}:")
                for line in diff[:20]:
                    print("#   " + line, flush=True)
    print(f"{'not ok' if bad or not played else 'ok'} 1 - {played} generated scripts, soft against {other}: {len(bad)} different"
          + (": seeds " + " ".join(s for s, _ in bad[:20]) if bad else ""))
    return 1 if bad or not played else 0


if __name__ == "__main__":
    sys.exit(main())
