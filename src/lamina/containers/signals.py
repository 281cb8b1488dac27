"""Signals by name, as people and images write them."""

from __future__ import annotations

import re
import signal
from typing import Final

from lamina.errors import UsageError

DEFAULT: Final = "SIGTERM"


def signal_name(text: str) -> str:
    """``TERM``, ``SIGTERM`` or ``15`` as ``SIGTERM``; ``SIGRTMIN+3`` as it is.  Raises UsageError
    for what is no signal.
    """
    upper = text.upper().removeprefix("SIG")
    if upper.isascii() and upper.isdigit() and int(upper[:4]) in signal.valid_signals():
        number = int(upper[:4])
        return signal.Signals(number).name if number in set(signal.Signals) else str(number)
    if re.fullmatch(r"RTM(IN\+|AX-)\d{1,2}", upper):
        if signal_number(f"SIG{upper}") in signal.valid_signals():
            return f"SIG{upper}"
    elif f"SIG{upper}" in signal.Signals.__members__:
        return f"SIG{upper}"
    raise UsageError(f"{text!r} is no signal", hint="write a name or number, as TERM or 15")


def signal_of_image(text: str) -> str:
    """Return the signal that an image wants to be stopped with; that for all where it names none,
    as docker has it.
    """
    try:
        return signal_name(text)
    except UsageError:
        return DEFAULT


def signal_number(name: str) -> int:
    """Return the number of what :func:`signal_name` returned."""
    if name.isdigit():
        return int(name)
    base, sign, offset = name.partition("+") if "+" in name else name.partition("-")
    number = int(signal.Signals[base])
    return number + int(f"{sign}{offset}") if offset else number
