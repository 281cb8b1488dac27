"""Errors on their way from one process to another."""

from __future__ import annotations

import pytest

from lamina.errors import FetchError, IntegrityError, KernelError, UsageError
from lamina.linux.syscalls import SyscallError
from lamina.serve.error_wire import decode_error, encode_error, encode_failure, read_report


@pytest.mark.parametrize("error", [IntegrityError("no"), FetchError("x\ny", hint="try äöü")])
def test_errors_travel(error: FetchError | IntegrityError) -> None:
    found = decode_error(encode_error(error))
    assert type(found) is type(error)
    assert (str(found), found.hint) == (str(error), error.hint)


def test_subclasses_travel_as_their_family() -> None:
    found = decode_error(encode_error(SyscallError("mount", 1, "cannot mount")))
    assert type(found) is KernelError
    assert "mount failed with EPERM" in str(found)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"family": "errno", "message": 1}'])
def test_what_is_no_error_report(data: bytes) -> None:
    assert type(decode_error(data)) is KernelError


def test_reports() -> None:
    assert read_report(b'{"a": 1}\n', "silent") == {"a": 1}
    with pytest.raises(UsageError, match="not so"):
        read_report(encode_failure(UsageError("not so")) + b"\n", "silent")


@pytest.mark.parametrize("data", [b"", b'{"a": ', b"\xff"])
def test_a_report_that_was_cut_off(data: bytes) -> None:
    with pytest.raises(KernelError, match="silent"):
        read_report(data, "silent")
