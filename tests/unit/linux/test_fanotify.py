"""fanotify events as bytes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tools import require_kernel, require_root

from lamina.errors import Error, KernelError
from lamina.linux import fanotify
from lamina.linux.syscalls import SyscallError

U64 = st.integers(0, 2**64 - 1)


# What process_access_response() of Linux 6.14 to 6.18 takes.
TAKEN = (
    errno.EPERM,
    errno.EIO,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ETXTBSY,
    errno.ENOSPC,
    errno.EDQUOT,
)


def event(fd: int = 9, *, records: bytes = b"", version: int = 3, extra: int = 0) -> bytes:
    length = 24 + len(records) + extra
    return struct.pack("=IBBHQii", length, version, 0, 24, 1 << 20, fd, 321) + records


def range_record(offset: int, size: int) -> bytes:
    return struct.pack("=BBHIQQ", 6, 0, 24, 0, offset, size)


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), U64, U64), max_size=5))
def test_events_with_ranges(wanted: list[tuple[int, int, int]]) -> None:
    data = b"".join(event(fd, records=range_record(*span)) for fd, *span in wanted)
    found = [(e.fd, e.offset, e.size_bytes) for e in fanotify.parse_events(data)]
    assert found == wanted


def test_one_event_fills_the_buffer() -> None:
    assert len(event(records=range_record(0, 1))) == fanotify.EVENT_BYTES


def test_other_records_are_passed_over() -> None:
    pidfd = struct.pack("=BBHi", 4, 0, 8, 77)
    (found,) = fanotify.parse_events(event(records=pidfd + range_record(4096, 8192)))
    assert (found.offset, found.size_bytes, found.pid) == (4096, 8192, 321)


@pytest.mark.parametrize("records", [b"", struct.pack("=BBHi", 4, 0, 8, 77), b"\6\0\0\0\0\0\0\0"])
def test_event_without_a_range(records: bytes) -> None:
    (found,) = fanotify.parse_events(event(records=records))
    assert (found.offset, found.size_bytes) == (0, 0)


@pytest.mark.parametrize("data", [event(version=2), event(extra=1), event()[:23], b"\0" * 24])
def test_damaged_events(data: bytes) -> None:
    with pytest.raises(KernelError):
        list(fanotify.parse_events(data))


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(Error):
        list(fanotify.parse_events(data))


@pytest.mark.parametrize(
    ("code", "passed_on"),
    [
        *((code, code) for code in TAKEN),
        # Refused by the kernel, whose reader would wait for ever.
        (errno.ETIMEDOUT, errno.EIO),
        (errno.EACCES, errno.EIO),
        (errno.ENOENT, errno.EIO),
    ],
)
def test_responses(code: int, passed_on: int) -> None:
    assert fanotify.encode_response(5) == struct.pack("=iI", 5, 1)
    expected = struct.pack("=iI", 5, 2 | passed_on << 24)
    assert fanotify.encode_response(5, code) == expected


def test_the_limit_of_groups_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE has two reasons, of which only one is about open files."""

    def refuse(*_: object) -> int:
        ctypes.set_errno(errno.EMFILE)
        return -1

    monkeypatch.setattr(fanotify, "LIBC", SimpleNamespace(fanotify_init=refuse))
    with pytest.raises(fanotify.GroupLimitError, match=r"fs\.fanotify\.max_user_groups") as told:
        fanotify.create_group()
    assert "fuse-blob" in str(told.value.hint)
    monkeypatch.setattr(fanotify, "_may_open_more", lambda: False)
    with pytest.raises(SyscallError, match="EMFILE"):
        fanotify.create_group()


FILL = """
import ctypes, os, sys
from lamina.linux import fanotify
# Groups are counted by user: this one is nobody else's, and keeps its capabilities.
libc = ctypes.CDLL(None, use_errno=True)
SECBIT_NO_SETUID_FIXUP, PR_SET_SECUREBITS = 4, 28
assert libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) == 0
os.setuid(3_000_000_000 - os.getpid())
groups = []
try:
    while len(groups) < 10_000:
        groups.append(fanotify.create_group())
except fanotify.GroupLimitError as error:
    print(len(groups), error)
    os.close(groups.pop())
    fanotify.require_group()
"""


def test_the_kernel_has_the_limit_that_is_named() -> None:
    require_root()
    require_kernel(6, 14, "a fanotify pre-content event")
    most = int(Path("/proc/sys/fs/fanotify/max_user_groups").read_text())
    if most >= 10_000:
        pytest.skip("there may be too many groups to make them all")
    done = subprocess.run([sys.executable, "-c", FILL], capture_output=True, text=True, check=True)
    count, _, words = done.stdout.partition(" ")
    assert int(count) == most
    assert f"no more than {most} fanotify groups of one user" in words
