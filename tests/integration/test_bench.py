"""Benchmarks work: one round of something small."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tools import require_root, require_tool

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.tools
@pytest.mark.kernel
def test_cold_start_measures_lamina(tmp_path: Path, oci_image: Callable[[str], Path]) -> None:
    require_root()
    require_tool("ip", "tc", "nsenter", "curl", "docker-registry", "skopeo", "runc")
    result = tmp_path / "result.json"
    options = ["--rounds", "1", "--rate", "200mbit", "--rtt-ms", "0,2", "--json", str(result)]
    options += ["--image", str(oci_image("minbase")), "--command", "cat /etc/debian_version"]
    options += ["--peers", "", "--variants", "default,64k"]
    program = [sys.executable, str(ROOT / "bench" / "coldstart.py"), *options]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(result.read_text())
    assert record["machine"]["cores"]
    found = {(row["rtt_ms"], row["case"]): row["samples"][0] for row in record["results"]}
    assert set(found) == {(rtt, f"lamina {name}") for rtt in (0, 2) for name in ("default", "64k")}
    whole = sum(path.stat().st_size for path in oci_image("minbase").rglob("*") if path.is_file())
    for sample in found.values():
        assert 0 < sample["received_bytes"] < whole / 2
        assert sample["requests"] > 2


@pytest.mark.tools
def test_indexing_is_measured(tmp_path: Path, oci_image: Callable[[str], Path]) -> None:
    result = tmp_path / "result.json"
    options = ["--rounds", "1", "--image", str(oci_image("minbase")), "--json", str(result)]
    program = [sys.executable, str(ROOT / "bench" / "index.py"), *options]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ours = json.loads(result.read_text())["results"]["lamina index"]
    assert ours["wall_s"][0] > 0
    assert 0.005 < ours["share"] < 0.03


def test_tables_are_measured(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    options = ["--rounds", "1", "--files", "500", "5000", "--json", str(result)]
    program = [sys.executable, str(ROOT / "bench" / "tables.py"), *options]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = [each["calls"] for each in json.loads(result.read_text())["results"].values()]
    assert 0 < calls[0]["piece"] <= calls[1]["piece"]
