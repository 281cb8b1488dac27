"""Data on standard output, the story on standard error."""

from __future__ import annotations

import io
import json
import logging
import os
import sys

import pytest

from lamina.cli import console, output, progress


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9994, "9.99 kB"),
        (12345, "12.3 kB"),
        (139_000_000, "139 MB"),
        (999_600, "1.00 MB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_human_sizes(size: int, text: str) -> None:
    assert output.human_size(size) == text


def test_shares_do_not_round_to_none_or_all() -> None:
    pairs = [(0, 0), (0, 9), (1, 9999), (1, 2), (9998, 9999), (9, 9)]
    assert [output.share(*pair) for pair in pairs] == [
        "100 %",
        "0 %",
        "1 %",
        "50 %",
        "99 %",
        "100 %",
    ]


def test_binary_sizes() -> None:
    assert [output.binary_size(size) for size in (4096, 131072, 1 << 20, 100)] == [
        "4 KiB",
        "128 KiB",
        "1 MiB",
        "100 B",
    ]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain", "plain"),
        ("größe".encode(), "größe"),
        (b"a\nb", "a\\x0ab"),
        (b"\x1b[31m", "\\x1b[31m"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("\u202e".encode(), "\\xe2\\x80\\xae"),
    ],
)
def test_names_are_safe_on_a_terminal(name: bytes, shown: str) -> None:
    assert output.shown_name(name) == shown


def test_json_keeps_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    names = [b"\xff", "é".encode(), b"\n"]
    output.print_json({"names": [os.fsdecode(name) for name in names]})
    text = capsys.readouterr().out
    assert text.count("\n") == 1
    assert text.isascii()
    assert [os.fsencode(name) for name in json.loads(text)["names"]] == names


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table([("a", "1", "x"), ("bbb", "22", "")], right=frozenset((1,)))
    output.print_table([])
    assert capsys.readouterr().out == "a     1  x\nbbb  22\n"


def test_quiet_and_levels(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("lamina.somewhere")

    def said() -> list[str]:
        console.info("told")
        console.warning("warned")
        log.error("error")
        log.warning("warning")
        log.info("info")
        log.debug("debug")
        return capsys.readouterr().err.splitlines()

    console.set_up(quiet=True)
    assert said() == ["lamina: error"]
    console.set_up()
    assert said() == [
        "lamina: told",
        "lamina: warning: warned",
        "lamina: error",
        "lamina: warning: warning",
    ]
    console.set_up(verbosity=1)
    assert said()[-1] == "lamina: info"
    console.set_up(verbosity=2)
    assert said()[-1] == "lamina: debug: debug"
    console.set_up()


def test_log_records_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    console.set_up(form="json")
    logging.getLogger("lamina.x").warning("chunk %d", 7)
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["message"], line["logger"]) == ("warning", "chunk 7", "lamina.x")
    assert line["time"] > 1.6e9
    console.set_up()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_meters_by_situation(monkeypatch: pytest.MonkeyPatch) -> None:
    console.set_up(quiet=True)
    assert type(progress.open_meter()) is progress.SilentMeter
    console.set_up()
    assert type(progress.open_meter()) is progress.LineMeter
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert type(progress.open_meter()) is progress.RichMeter
    monkeypatch.setitem(sys.modules, "rich", None)
    assert type(progress.open_meter()) is progress.LineMeter
    console.set_up(form="json")
    assert type(progress.open_meter()) is progress.LineMeter
    console.set_up()


def test_lines_come_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    times_s = iter((0.0, 1.0, 4.9, 5.1, 6.0, 10.2))
    with progress.LineMeter(lambda: next(times_s)) as meter:
        advance = meter.add("blob", 10_000)
        for _ in range(5):
            advance(1000)
    assert (
        capsys.readouterr().err == "lamina: blob: 3.00 kB of 10.0 kB, 588 B/s, 12 s left\n"
        "lamina: blob: 5.00 kB of 10.0 kB, 490 B/s, 10 s left\n"
    )


def test_bars_start_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    before = set(threading.enumerate())
    with progress.RichMeter() as meter:
        advance = meter.add("blob 1", 100)
        advance(50)
        assert not set(threading.enumerate()) - before
    assert "blob 1" in terminal.getvalue()
