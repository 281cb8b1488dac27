"""The audit log is bounded, and nothing that it knew of is forgotten."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import StoreError
from lamina.kbs import audit_summary
from lamina.kbs.audit import AuditLog
from lamina.kbs.audit_summary import summarize

REFUSED = {
    "client": "192.0.2.9",
    "result": "refused",
    "reason": "PolicyDeny",
    "resource": "kbs:///a/b/c",
}
CHALLENGE = {"client": "192.0.2.1", "result": "ok", "tee": "sample"}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def everything(path: Path) -> Counter[tuple[str, str]]:
    """How often each event and reason is in the log, summaries included."""
    found: Counter[tuple[str, str]] = Counter()
    for file in (path, Path(f"{path}.1")):
        for line in lines(file) if file.exists() else []:
            found[line["event"], line.get("reason", "ok")] += line.get("count", 1)
    return found


def test_a_flood_leaves_refusals_in_a_bounded_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(str(path), 4096) as log:
        log.write("resource", **REFUSED, session="5" * 16)
        for number in range(5000):
            log.write("auth", **CHALLENGE, session=f"{number:016x}")
            assert path.stat().st_size <= 4096
    assert sorted(os.listdir(tmp_path)) == ["audit.jsonl", "audit.jsonl.1"]
    assert Path(f"{path}.1").stat().st_size <= 4096
    assert everything(path) == {("resource", "PolicyDeny"): 1, ("auth", "ok"): 5000}
    both = lines(path) + lines(Path(f"{path}.1"))
    (kept,) = [line for line in both if line["event"] == "resource"]
    assert kept["count"] == 1
    assert kept["first"] == kept["time"] > 0
    assert {name: kept[name] for name in REFUSED} == REFUSED
    assert {path.stat().st_mode & 0o777, Path(f"{path}.1").stat().st_mode & 0o777} == {0o600}


def test_a_small_log_is_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(str(path)) as log:
        log.write("auth", **CHALLENGE, session="a")
        log.write("auth", **CHALLENGE, session="b")
    assert [line["session"] for line in lines(path)] == ["a", "b"]


def test_many_kinds_of_refusals_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_summary, "MAX_KINDS", 10)
    text = [
        json.dumps({"time": number, "event": "auth", "client": f"192.0.2.{number}", "result": "ok"})
        for number in range(100)
    ]
    text += [json.dumps({"time": 200, "event": "resource", **REFUSED})] * 3
    found = summarize(line.encode() for line in text)
    assert len(found) <= 12
    assert sum(line["count"] for line in found if line["event"] == "auth") == 100
    others = next(line for line in found if line["client"] == "others")
    assert (others["first"], others["time"], others["result"]) == (10, 99, "ok")
    # Those of another event have room of their own.
    assert found[-1] == {"event": "resource", **REFUSED, "time": 200, "first": 200, "count": 3}
    again = summarize(json.dumps(line).encode() for line in found)
    assert again == found


def test_lines_that_cannot_be_read_are_counted() -> None:
    text = [b"", b"nonsense", b"[]", b'{"event":"other","time":5}', b'{"event":"auth","time":"x"}']
    text += [b'{"event":"auth","time":1e999}', b'{"event":"auth","time":5,"count":-7}', b"[" * 9999]
    (found,) = summarize(text)
    assert (found["event"], found["count"]) == ("unknown", 8)
    asked = {"time": 5, "event": "unknown", "client": "192.0.2.1", "reason": "PluginNotFound"}
    (found,) = summarize([json.dumps(asked).encode()] * 2)
    assert found == {**asked, "first": 5, "count": 2}


def test_a_log_that_was_renamed_is_begun_again(tmp_path: Path) -> None:
    """As programs do that rotate logs."""
    path = tmp_path / "audit.jsonl"
    with AuditLog(str(path)) as log:
        log.write("auth", **CHALLENGE)
        path.rename(tmp_path / "old")
        log.write("attest", **CHALLENGE)
    assert [line["event"] for line in lines(path)] == ["attest"]


def test_two_brokers_with_one_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(str(path), 1000) as one, AuditLog(str(path), 1000) as other:
        for _ in range(100):
            one.write("auth", **CHALLENGE)
            other.write("resource", **REFUSED)
    assert everything(path) == {("resource", "PolicyDeny"): 100, ("auth", "ok"): 100}


@pytest.mark.parametrize("at", ["unlink", "open", "rename", "second rename"])
def test_a_broker_that_dies_while_the_log_is_begun_anew(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost and nothing counted twice, wherever it is."""
    path = tmp_path / "audit.jsonl"
    written = {"auth": 0, "resource": 0}

    class Dead(BaseException):
        pass

    def dying(name: str, skipped: int) -> Any:
        real, left = getattr(os, name), [skipped]

        def call(*arguments: Any, **more: Any) -> Any:
            if not left[0]:
                raise Dead
            left[0] -= 1
            return real(*arguments, **more)

        return call

    log = AuditLog(str(path), 1000)
    for _ in range(20):
        log.write("auth", **CHALLENGE)
        written["auth"] += 1
    log.write("resource", **REFUSED)
    written["resource"] += 1
    name, skipped = at.rsplit(maxsplit=1)[-1], int(at.startswith("second"))
    with monkeypatch.context() as patch:
        patch.setattr(os, name, dying(name, skipped))
        with pytest.raises(Dead):
            for _ in range(20):
                log.write("auth", **CHALLENGE)
                written["auth"] += 1
    log.close()
    with AuditLog(str(path), 1000) as log:
        log.write("auth", **CHALLENGE)
        written["auth"] += 1
    assert everything(path) == {
        ("resource", "PolicyDeny"): written["resource"],
        ("auth", "ok"): written["auth"],
    }


def test_a_log_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="audit log"):
        AuditLog(str(tmp_path / "absent" / "audit.jsonl"))
    path = tmp_path / "audit.jsonl"
    with AuditLog(str(path)) as log:
        log.write("auth", **CHALLENGE)
        size = path.stat().st_size
        real = os.write
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: real(fd, data[:10]))
            with pytest.raises(StoreError, match="cut short"):
                log.write("auth", **CHALLENGE)
        assert path.stat().st_size == size, "half a line is taken back"
        log.write("auth", **CHALLENGE)
    assert len(lines(path)) == 2
