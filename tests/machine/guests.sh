#!/usr/bin/env bash
# The small guests on every engine that is to be had here, driven by the same binary; what they print is
# compared with what they print under QEMU (tests/data/guests). TAP.
# Usage: guests.sh STRATA GUESTS EXPECTED
set -u
strata=$1 guests=$2 expected=$3
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
n=0

run_guest() {
    timeout 120 "$strata" run -accel "$1" -m 64 -smp 2 -kernel "$guests/$2.elf" -append cpus=2 -nographic \
        -no-reboot -d cpu -device isa-debug-exit,iobase=0xf4,iosize=4 \
        </dev/null >"$out/stdout" 2>"$out/stderr"
}

judge() {
    local engine=$1 guest=$2 status
    n=$((n + 1))
    run_guest "$engine" "$guest"
    status=$?
    if [ $status = 1 ] && cmp -s "$out/stdout" "$expected/$guest.txt"; then
        echo "ok $n - $guest on $engine"
    else
        echo "not ok $n - $guest on $engine"
        echo "# status $status (1 wanted)"
        diff "$expected/$guest.txt" "$out/stdout" | head -n 10 | sed 's/^/# /'
        tail -n 12 "$out/stderr" | sed 's/^/# /'
    fi
}

has_kvm() {
    "$strata" doctor 2>/dev/null | grep -q '^kvm *works'
}

for guest in real long paging mmio portio smc irq smp; do
    judge soft $guest
    judge soft,mmu=shadow $guest
    if has_kvm; then
        judge kvm $guest
    else
        n=$((n + 1))
        echo "ok $n - $guest on kvm # skip no /dev/kvm here"
    fi
done
judge soft extra
judge soft,mmu=shadow extra
echo "1..$n"
