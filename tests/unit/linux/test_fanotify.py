"""fanotify events as bytes."""

from __future__ import annotations

import contextlib
import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import Error, KernelError
from lamina.linux import fanotify

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
