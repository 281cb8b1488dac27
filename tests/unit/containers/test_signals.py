"""Signals by name."""

from __future__ import annotations

import pytest

from lamina.containers.signals import signal_name, signal_number, signal_of_image
from lamina.errors import UsageError


@pytest.mark.parametrize(
    ("text", "name", "number"),
    [
        ("SIGTERM", "SIGTERM", 15),
        ("term", "SIGTERM", 15),
        ("9", "SIGKILL", 9),
        ("SIGRTMIN+3", "SIGRTMIN+3", 37),
        ("RTMAX-1", "SIGRTMAX-1", 63),
        ("40", "40", 40),
    ],
)
def test_names(text: str, name: str, number: int) -> None:
    assert signal_name(text) == name
    assert signal_number(name) == number


@pytest.mark.parametrize(
    "text", ["", "0", "65", "9" * 5000, "-9", "SIGFOO", "--help", "RTMIN+99", "RTMAX-64", "_DFL"]
)
def test_no_signals(text: str) -> None:
    with pytest.raises(UsageError, match="no signal"):
        signal_name(text)
    # Of an image it is what docker takes then.
    assert signal_of_image(text) == "SIGTERM"


def test_an_image_may_leave_sig_out() -> None:
    assert signal_of_image("quit") == "SIGQUIT"
