"""Sockets that are handed over."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lamina.errors import UsageError
from lamina.serve.nbd.listening import _check_activated


def test_what_virtual_machines_reach_without_a_network_is_refused() -> None:
    """By vsock any guest of the machine could read the disk, and nothing says its address."""
    handed = SimpleNamespace(
        family=socket.AF_VSOCK, type=socket.SOCK_STREAM, getsockopt=lambda *_: 1
    )
    for is_guarded in (False, True):
        with pytest.raises(UsageError, match="neither a unix socket nor TCP"):
            _check_activated(cast("Any", handed), is_guarded=is_guarded)
