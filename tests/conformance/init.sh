#!/bin/busybox sh
# PID 1 of the guests of the conformance scripts: says that user space is there and does what the kernel's command
# line asks: nothing (powers off), `hold` (dirties memory and says so every half second, for ever).
echo "conformance: user space"
/bin/busybox mkdir -p /proc /sys /tmp /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t tmpfs tmp /tmp
echo "conformance: $(/bin/busybox nproc) processors"
if /bin/busybox dmesg | /bin/busybox grep -E 'WARNING:|BUG:|Oops|rcu.*stall|soft lockup|Call Trace|Marking TSC unstable'; then
    echo "conformance: kernel log FAILED"
fi
case " $(/bin/busybox cat /proc/cmdline) " in
*" hold "*)
    n=0
    while true; do
        n=$((n + 1))
        /bin/busybox dd if=/dev/zero of=/tmp/dirty bs=64k count=64 2>/dev/null
        echo "conformance: tick $n $(/bin/busybox date +%s)"
        /bin/busybox usleep 500000
    done
    ;;
esac
echo "conformance: done"
/bin/busybox poweroff -f
