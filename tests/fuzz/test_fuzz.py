"""A few seconds of each fuzz target, so that a broken target or a shallow defect shows in every
test run.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import run

SECONDS = float(os.environ.get("LAMINA_FUZZ_SECONDS", "3"))


@pytest.mark.parametrize("name", run.target_names())
def test_target_finds_nothing(name: str, tmp_path: Path) -> None:
    ok, report = run.run_target(name, SECONDS, tmp_path / "artifacts", run.default_engine())
    assert ok, report


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one target that crashes on inputs of another end than its seed has: so many
    that no run misses them by chance, whatever an engine makes of a seed.
    """
    folder = tmp_path / "fuzz"
    folder.mkdir()
    (folder / "run.py").write_text(Path(run.__file__).read_text())
    (folder / "fuzz_planted.py").write_text(
        "def target(data):\n"
        "    if len(data) > 2 and data[-1:] != b'!':\n"
        "        raise ValueError('planted')\n"
        "def seeds():\n"
        "    return [b'ok!']\n"
    )
    return folder


@pytest.mark.parametrize("engine", ["atheris", "mutation"])
def test_a_planted_defect_is_found_and_kept(planted: Path, engine: str, tmp_path: Path) -> None:
    if engine == "atheris":
        pytest.importorskip("atheris")
    kept = tmp_path / "kept"
    command = ["planted", "--seconds", "20", "--artifacts", str(kept), "--engine", engine]
    done = subprocess.run(
        [sys.executable, str(planted / "run.py"), *command],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    (crash,) = kept.iterdir()
    assert len(crash.read_bytes()) > 2 and crash.read_bytes()[-1:] != b"!"
    assert str(crash) in done.stdout


def test_an_input_that_never_ends_is_a_defect() -> None:
    with pytest.raises(run.HangError), run.cpu_limit(0.05):
        while True:
            pass


def test_mutations_are_bounded_and_differ() -> None:
    generator = random.Random(1)
    made = {run.mutate(generator, [b"seed" * 20000, b""]) for _ in range(300)}
    assert len(made) > 100
    assert max(map(len, made)) <= run.MAX_INPUT_BYTES
