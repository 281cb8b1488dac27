"""Make what many tests need and what takes minutes, before the tests and their time limits begin.

As a program: ``python -m tests.support.prepare``.  Says on standard error what it does; what cannot
be made on this machine is named, and the tests that need it say so again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import guest_kernel, images
from tests.support.peers import find_peer
from tests.support.tools import find_program

ROOT = Path(__file__).parents[2]

KERNELS = (("6.1", False), ("6.12", False), ("6.12", True))
"""Series of Debian's kernels that guests boot, and whether the oldest of the series is meant."""


def main() -> None:
    """Build the images and fetch the kernels that are not in the cache."""
    absent = [name for name in images.PROGRAMS if find_program(name) is None]
    for name in images.PACKAGES:
        if images.is_built(name):
            continue
        if absent or os.geteuid() != 0:
            say(f"no test image {name}: {f'no {absent[0]} here' if absent else 'needs root'}")
            continue
        make(f"test image {name} (minutes, once)", lambda name=name: images.image_layout(name))
    if not (find_program("crictl") or find_peer("crictl")):
        make("crictl (minutes, once)", build_crictl)
    for series, oldest in KERNELS:
        if not guest_kernel.folder_of(series, oldest=oldest).exists():
            age = "oldest" if oldest else "newest"
            make(
                f"the {age} kernel {series}",
                lambda series=series, oldest=oldest: guest_kernel.require_kernel_package(
                    series, oldest=oldest
                ),
            )


def build_crictl() -> None:
    """Build what Debian has no package of; it says itself that there is no Go."""
    subprocess.run([ROOT / "scripts/peers", "crictl"], check=False, stdout=sys.stderr)


def make(what: str, how: Callable[[], object]) -> None:
    """Tell, do, and go on where it cannot be done."""
    say(f"making {what}")
    try:
        how()
    except (pytest.skip.Exception, pytest.fail.Exception, OSError, RuntimeError) as error:
        say(f"  not to be had: {error}")


def say(words: str) -> None:
    """Write a line of the story."""
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
