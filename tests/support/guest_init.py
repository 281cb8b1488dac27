"""The first program in a guest: make the machine usable, run the script, say how it went, halt.

What the script prints goes to the second serial port; ``begun`` is the first
line of it, and ``exit code N`` the last.
"""

import ctypes
import os
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
RB_POWER_OFF = 0x4321FEDC
SYS_FINIT_MODULE = 313
MOUNTS = (
    ("proc", "/proc", "proc"),
    ("sysfs", "/sys", "sysfs"),
    ("devtmpfs", "/dev", "devtmpfs"),
    ("tmpfs", "/run", "tmpfs"),
)


def mount(source, target, kind):
    """Mount, or raise OSError."""
    if LIBC.mount(source.encode(), target.encode(), kind.encode(), 0, None):
        raise OSError(ctypes.get_errno(), f"cannot mount {kind}")


def prepare():
    """Mount what every program expects, load the modules, and mount the disk."""
    for source, target, kind in MOUNTS:
        mount(source, target, kind)
    for name in sorted(os.listdir("/modules")):
        fd = os.open(f"/modules/{name}", os.O_RDONLY)
        if LIBC.syscall(SYS_FINIT_MODULE, fd, b"", 0):
            print(f"module {name}: {os.strerror(ctypes.get_errno())}", flush=True)
        os.close(fd)
    os.chmod("/dev/fuse", 0o666)
    os.chmod("/tmp", 0o1777)
    mount("/dev/vda", "/disk", "ext4")


def run():
    """Run the command that was put into the archive; return its exit code."""
    with open("/command") as file:
        words = file.read().split("\0")
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": "/project/src:/project",
        "HOME": "/root",
        "TMPDIR": "/disk",
        "LAMINA_STORE": "/disk/store",
        "LAMINA_RUNTIME": "/run/lamina",
    }
    with open("/dev/ttyS1", "wb", buffering=0) as port:
        port.write(b"begun\n")
        done = subprocess.run(
            [sys.executable, *words], stdout=port, stderr=port, env=environment, cwd="/project"
        )
        port.write(b"\nexit code %d\n" % done.returncode)
    return done.returncode


try:
    prepare()
    run()
finally:
    os.sync()
    LIBC.reboot(RB_POWER_OFF)
