"""A confidential guest without a confidential processor: ``lamina guest run`` for some cases.

``python tests/support/in_guest_confidential.py JSON``: a list of ``{"name", "init_data", "cache",
"image"}``.  Prints for each what the command printed, and ``NAME: exit code N``.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
MS_BIND, MS_MOVE, MS_REC = 0x1000, 0x2000, 0x4000
# linux/sockios.h and linux/if.h
SIOCADDRT, SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x890B, 0x8914, 0x8916, 0x891C
IFF_UP = 0x1


def mount(source: str, target: str, kind: str = "", flags: int = 0) -> None:
    if LIBC.mount(source.encode(), target.encode(), kind.encode(), flags, None):
        raise OSError(ctypes.get_errno(), f"cannot mount {target}")


def leave_first_root() -> None:
    """A container's root cannot take the place of the kernel's first root file system; it can take
    that of a view of it.
    """
    os.mkdir("/view")
    mount("/", "/view", flags=MS_BIND | MS_REC)
    os.chdir("/view")
    mount(".", "/", flags=MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def set_up_network() -> None:
    """QEMU's user network, in which the host's loopback is 10.0.2.2."""
    with socket.socket() as sock:

        def address(text: str) -> bytes:
            return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))

        def change(request: int, name: bytes, value: bytes) -> None:
            fcntl.ioctl(sock, request, struct.pack("16s16s8x", name, value))

        change(SIOCSIFFLAGS, b"lo", struct.pack("=H", IFF_UP))
        change(SIOCSIFADDR, b"eth0", address("10.0.2.15"))
        change(SIOCSIFNETMASK, b"eth0", address("255.255.255.0"))
        change(SIOCSIFFLAGS, b"eth0", struct.pack("=H", IFF_UP))


def run_case(case: dict[str, str]) -> None:
    init_data = Path("/run/initdata.toml")
    init_data.write_text(case["init_data"])
    command = [sys.executable, "-m", "lamina", "guest", "run", "--evidence", "sample"]
    command += ["--init-data", str(init_data), "--cache", case["cache"], "--cache-only"]
    command += ["--network", "none", case["image"]]
    print(f"== {case['name']}", flush=True)
    environment = {**os.environ, "TMPDIR": "/run"}
    done = subprocess.run(command, check=False, env=environment, stdin=subprocess.DEVNULL)
    print(f"\n{case['name']}: exit code {done.returncode}", flush=True)


def main() -> int:
    """Run the cases."""
    leave_first_root()
    mount("none", "/sys/fs/cgroup", "cgroup2")
    set_up_network()
    for case in json.loads(sys.argv[1]):
        run_case(case)
    return 0


if __name__ == "__main__":
    sys.exit(main())
