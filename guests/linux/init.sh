#!/bin/busybox sh
# PID 1 of the demo guest: says that user space is there, runs the memory workload, powers off.
echo "strata-demo: user space"
/bin/busybox mkdir -p /proc /sys /tmp /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev 2>/dev/null
/bin/busybox mount -t tmpfs tmp /tmp
echo "strata-demo: $(/bin/busybox uname -r), $(/bin/busybox nproc) processors," \
    "$(/bin/busybox awk '/MemTotal/ { printf "%d", $2 / 1024 }' /proc/meminfo) MiB"
size=256
for word in $(/bin/busybox cat /proc/cmdline); do
    case $word in
    memwork=*) size=${word#memwork=} ;;
    shell) exec /bin/busybox setsid /bin/busybox cttyhack /bin/busybox sh ;;
    esac
done
/bin/memwork "$size" || echo "strata-demo: workload FAILED"
if /bin/busybox dmesg | /bin/busybox grep -E 'WARNING:|BUG:|Oops|rcu.*stall|soft lockup|Call Trace|Marking TSC unstable'; then
    echo "strata-demo: kernel log FAILED"
fi
echo "strata-demo: done"
/bin/busybox poweroff -f
