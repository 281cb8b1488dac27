"""What the service says of an image reaches who stays beside its container."""

from __future__ import annotations

import logging
from pathlib import Path

from lamina.serve.runtime_folder import state_directory
from lamina.serve.service.log_lines import MOST_LINES, LogLines

FRONT = "2026-11-30 15:55:05,402 6169"


def log() -> Path:
    return state_directory() / "service.log"


def test_only_what_is_new_and_bad_and_of_the_image() -> None:
    log().write_text(f"{FRONT} ERROR blob abc: before\n")
    lines = LogLines()
    with log().open("a") as file:
        file.write(f"{FRONT} INFO blob abc: fine\n{FRONT} ERROR blob abc: damaged, it is\n")
        file.write("Traceback (most recent call last):\n  blob abc\n\n")
        file.write(f"{FRONT} WARNING blob abd: of another\n{FRONT} WARNING blob xyz: late\n")
    assert list(lines.warnings(["abc", "xyz"])) == [
        (logging.ERROR, "blob abc: damaged, it is"),
        (logging.WARNING, "blob xyz: late"),
    ]


def test_a_service_that_starts_begins_anew() -> None:
    log().write_text(f"{FRONT} ERROR blob abc: before\n" * 3)
    lines = LogLines()
    log().write_text(f"{FRONT} ERROR blob abc: after\n")
    assert list(lines.warnings(["abc"])) == [(logging.ERROR, "blob abc: after")]


def test_no_more_than_anybody_reads() -> None:
    lines = LogLines()
    assert list(lines.warnings(["abc"])) == []
    log().write_text(f"{FRONT} ERROR blob abc: again\n" * 1000)
    assert len(list(lines.warnings(["abc"]))) == MOST_LINES
