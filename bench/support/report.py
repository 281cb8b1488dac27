"""Results as a table for people and as JSON with date and machine for the record."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in _lines("/proc/cpuinfo")
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_kib = next(
        int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")
    )
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory_kib / (1 << 20), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def describe_machine() -> str:
    """One line of the same."""
    facts = machine()
    return (
        f"{facts['date']}; {facts['cores']} cores {facts['cpu']}, {facts['memory_gib']} GiB, "
        f"Linux {facts['kernel']}, Python {facts['python']}"
    )


def median(values: Sequence[float]) -> float:
    """The median of at least one value."""
    return statistics.median(values)


def spread(values: Sequence[float], unit: str = "") -> str:
    """Median, and the extremes where there is more than one value."""
    middle = f"{median(values):.2f}{unit}"
    return middle if len(values) < 2 else f"{middle} ({min(values):.2f}-{max(values):.2f})"


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table with aligned columns."""
    table = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    for number, row in enumerate(table):
        print(
            "| "
            + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            + " |"
        )
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def write_json(path: Path, benchmark: str, settings: Mapping[str, object], results: object) -> None:
    """Write results with the machine and the settings they were taken with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": benchmark,
        "machine": machine(),
        "settings": dict(settings),
        "results": results,
    }
    path.write_text(json.dumps(record, indent=2, default=str) + "\n")


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
