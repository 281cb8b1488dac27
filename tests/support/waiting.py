"""Waiting for what others do: on the thing itself, with a limit that no load of a machine meets."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import pytest

from lamina.serve.mounts import list_mounts

LIMIT_S: Final = 120.0
_LOOK_S: Final = 0.02


def wait_until(condition: Callable[[], object], what: str = "it", limit_s: float = LIMIT_S) -> None:
    """Return when a condition holds; fail, naming *what* did not come, after the limit."""
    end_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end_s:
            pytest.fail(f"{what} has not come within {limit_s:.0f} s")
        time.sleep(_LOOK_S)


def wait_for_no_mounts() -> None:
    """Wait until no image is mounted or served.

    One that is unmounted may go on to be served for a while: a program of another test, which has a
    mount namespace of its own, has a copy for as long as it runs.
    """
    end_s = time.monotonic() + LIMIT_S
    while mounts := list_mounts():
        assert time.monotonic() < end_s, mounts
        time.sleep(_LOOK_S)
