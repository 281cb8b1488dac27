"""The three standard streams, made fit for a program that writes names of any bytes."""

from __future__ import annotations

import os
import sys


def prepare_streams() -> None:
    """Open those that the caller has closed on the null device, and make standard output take any
    text: what its encoding lacks is written as an escape.

    Otherwise the next file that is opened would be taken for the stream, and written over.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
