"""A QEMU under `strata kvm-run`, with its serial line and monitor, for the conformance scripts; and TAP."""
import os
import re
import resource
import socket
import subprocess
import tempfile
import threading
import time

QEMU = "qemu-system-x86_64"


class Tap:
    """Prints one line for each check, and the plan at the end."""

    def __init__(self):
        self.count = self.failed = 0

    def check(self, ok, what, detail=""):
        self.count += 1
        self.failed += not ok
        print(f"{'' if ok else 'not '}ok {self.count} - {what}", flush=True)
        if not ok and detail:
            print("\n".join("# " + line for line in detail.splitlines()[-12:]), flush=True)
        return ok

    def skip(self, what, why):
        self.count += 1
        print(f"ok {self.count} - {what} # SKIP {why}", flush=True)

    def end(self):
        print(f"1..{self.count}")
        return 1 if self.failed else 0


class Process:
    """A command whose standard output is watched for marks."""

    def __init__(self, argv):
        self.start = time.monotonic()
        self.text = ""
        self.seen = threading.Condition()
        self.proc = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT)
        self.rusage = None
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        while True:
            data = os.read(self.proc.stdout.fileno(), 65536)
            with self.seen:
                self.text += data.decode("latin-1")
                if not data:
                    self.text += "\n[end of output]\n"
                self.seen.notify_all()
            if not data:
                return

    def wait_for(self, pattern, seconds, after=0):
        """Seconds since the start when the pattern is in the output beyond position `after`; None in time."""
        end = time.monotonic() + seconds
        with self.seen:
            while not re.search(pattern, self.text[after:]):
                left = end - time.monotonic()
                if left <= 0 or self.text.endswith("[end of output]\n"):
                    return None
                self.seen.wait(left)
        return time.monotonic() - self.start

    def wait_end(self, seconds):
        """The exit status, None if it runs on (then it is killed). Processor time goes to self.cpu."""
        end = time.monotonic() + seconds
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        while self.proc.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        status = self.proc.poll()
        if status is None:
            self.proc.kill()
            self.proc.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return status


class Vm(Process):
    """QEMU with -accel kvm on the build's library."""

    def __init__(self, build, args, memory=512, smp=1, cpu="max", launcher=()):
        self.dir = tempfile.TemporaryDirectory(prefix="strata-qemu-")
        self.path = self.dir.name + "/monitor"
        self.monitor = None
        super().__init__([build + "/strata", "kvm-run", *launcher, "--", QEMU, "-nodefaults", "-no-user-config",
                          "-display", "none", "-accel", "kvm", "-cpu", cpu, "-m", str(memory), "-smp", str(smp),
                          "-monitor", f"unix:{self.path},server=on,wait=off", *args])

    def _monitor_read(self, seconds):
        text = b""
        self.monitor.settimeout(seconds)
        try:
            while not text.endswith(b"(qemu) "):
                data = self.monitor.recv(65536)
                if not data:
                    break
                text += data
        except (socket.timeout, ConnectionError):
            pass
        return re.sub(r"\x1b\[[KD]", "", text.decode("latin-1"))

    def hmp(self, command, seconds=30):
        """A monitor command's answer; empty when there is none in time."""
        if not self.monitor:
            self.monitor = socket.socket(socket.AF_UNIX)
            for _ in range(100):
                try:
                    self.monitor.connect(self.path)
                    break
                except OSError:
                    time.sleep(0.05)
            self._monitor_read(10)
        try:
            self.monitor.sendall(command.encode() + b"\n")
        except OSError:
            return ""
        answer = self._monitor_read(seconds)
        return answer.partition("\n")[2].replace("\r", "")

    def quit(self):
        if self.proc.poll() is None:
            try:
                self.hmp("quit", 2)
            except OSError:
                pass
        return self.wait_end(10)
