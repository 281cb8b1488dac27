"""What is kept of an old audit log: each kind of decision, how often, first and last."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import msgspec

EVENTS: Final = ("auth", "attest", "resource", "error")
UNKNOWN: Final = "unknown"
"""The event of a request that is none of these, and of lines that cannot be read."""
OTHERS: Final = "others"
MAX_LINE_BYTES: Final = 16 << 10
MAX_KINDS: Final = 512
"""Of one event.  What is beyond is told apart by result and reason only."""
_OF_ONE_LINE: Final = frozenset(("time", "session", "first", "count"))


def summarize(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """Lines of a log, themselves summaries or not, as few lines with ``first`` and ``count``.

    No line is left out of the counts.  Memory is bounded by the number of kinds.
    """
    found: dict[bytes, dict[str, Any]] = {}
    kinds = dict.fromkeys((*EVENTS, UNKNOWN), 0)
    for text in lines:
        line = _parse(text)
        facts = {name: value for name, value in line.items() if name not in _OF_ONE_LINE}
        key = msgspec.json.encode(facts)
        if key not in found:
            event = facts["event"]
            if kinds[event] >= MAX_KINDS:
                facts = _coarse(facts)
                key = msgspec.json.encode(facts)
            kinds[event] += key not in found
        _add(found.setdefault(key, facts), line)
    return list(found.values())


def _add(total: dict[str, Any], line: dict[str, Any]) -> None:
    first, last = line.get("first", line["time"]), line["time"]
    total["time"] = max(total.get("time", last), last)
    total["first"] = min(total.get("first", first), first)
    total["count"] = total.get("count", 0) + line.get("count", 1)


def _coarse(facts: dict[str, Any]) -> dict[str, Any]:
    names = ("event", "result", "reason")
    return {**{name: facts[name] for name in names if name in facts}, "client": OTHERS}


def _parse(text: bytes) -> dict[str, Any]:
    """Return a line of ours, or one of an unknown event in its place."""
    try:
        line = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        line = None
    if not isinstance(line, dict):
        line = {}
    times: tuple[Any, ...] = (line.get("time"), line.get("first", 0))
    count = line.get("count", 1)
    is_ours = (
        line.get("event") in (*EVENTS, UNKNOWN)
        and all(type(moment) in (int, float) and math.isfinite(moment) for moment in times)
        and type(count) is int
        and count > 0
    )
    return line if is_ours else {"time": 0, "event": UNKNOWN}
