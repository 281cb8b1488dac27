"""The form of container logs: written and read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamina.containers.log_format import (
    LONGEST_BYTES,
    LogStream,
    read_entry,
    read_time_ns,
    shown_time,
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def written(log: Path, *pieces: bytes) -> list[tuple[str, bool, bytes]]:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    stream = LogStream("stdout", fd)
    for piece in pieces:
        stream.feed(piece)
    stream.end()
    os.close(fd)
    entries = [read_entry(line) for line in log.read_bytes().splitlines()]
    return [(each.stream, each.is_whole, each.content) for each in entries if each is not None]


def test_lines_are_cut_where_they_end(log: Path) -> None:
    found = written(log, b"o", b"ne\ntw", b"o\n\nopen")
    assert found == [
        ("stdout", True, b"one"),
        ("stdout", True, b"two"),
        ("stdout", True, b""),
        ("stdout", False, b"open"),
    ]


def test_long_lines_are_entries_that_go_on(log: Path) -> None:
    data = bytes(range(32, 127)) * 400
    found = written(log, data[:100], data[100:] + b"\n", b"next\n")
    assert b"".join(content for _, _, content in found[:-1]) == data
    assert [whole for _, whole, _ in found] == [False, False, True, True]
    assert all(len(content) <= LONGEST_BYTES for _, _, content in found)


def test_a_full_disk_costs_lines_only() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    stream = LogStream("stderr", fd)
    stream.feed(b"lost\n" * 3)
    stream.end()
    os.close(fd)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"2016-10-06T00:17:09.669794202Z stdout F",
        b"yesterday stdout F text",
        b"2016-10-06T00:17:09.669794202Z stdin F text",
        b"2016-10-06T00:17:09.669794202Z stdout X text",
        b"2016-99-06T00:17:09Z stdout F text",
        b"\xff\xfe stdout F text",
    ],
)
def test_what_is_no_entry(line: bytes) -> None:
    assert read_entry(line) is None


def test_an_entry_as_kubernetes_has_it() -> None:
    found = read_entry(b"2016-10-06T00:17:09.669794202Z stdout P:tag The content of the log")
    assert found is not None
    assert (found.stream, found.is_whole) == ("stdout", False)
    assert found.content == b"The content of the log"
    assert shown_time(found.time_ns) == "2016-10-06T00:17:09.669794202Z"


def test_times() -> None:
    noon = 1_769_860_800 * 10**9
    assert read_time_ns("2026-01-31T12:00:00Z") == noon
    assert read_time_ns("2026-01-31T13:00:00.5+01:00") == noon + 5 * 10**8
    assert read_time_ns("2026-01-31T12:00") == noon
    assert read_time_ns("2026-01-31") == noon - 12 * 3600 * 10**9
    assert read_time_ns("2026-01-31T12:00:00+99:99") is None
