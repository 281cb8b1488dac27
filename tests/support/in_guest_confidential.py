"""A confidential guest without a confidential processor: ``lamina guest run`` for some cases.

``python tests/support/in_guest_confidential.py JSON``: a list of ``{"name", "init_data", "cache",
"image"}``, some with the tag of a share of blobs as ``"share"``.  A cache that is the name
of a serial port is relayed.  Prints for each what the command printed, and ``NAME: exit code N``.
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
    cache = case["cache"]
    if "://" not in cache:
        cache = relayed(cache)
    command += ["--init-data", str(init_data), "--cache", cache, "--cache-only"]
    if "share" in case:
        folder = Path("/run/share")
        folder.mkdir()
        mount(case["share"], str(folder), "virtiofs")
        command += ["--blob-dir", str(folder)]
    command += ["--network", "none", case["image"]]
    print(f"== {case['name']}", flush=True)
    environment = {**os.environ, "TMPDIR": "/run"}
    done = subprocess.run(command, check=False, env=environment, stdin=subprocess.DEVNULL)
    print(f"\n{case['name']}: exit code {done.returncode}", flush=True)


def relayed(port: str) -> str:
    """The address of a cache that is behind a serial port.  The relay ends with the machine."""
    command = [sys.executable, "-m", "lamina", "guest", "relay", "--channel", port]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told = process.stderr.readline()
    assert "cache is at" in told, told
    return told.split()[-1]


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
