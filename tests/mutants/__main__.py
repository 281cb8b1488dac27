"""See which changes of a line no test notices.

A sample of mutants of the folders that keep the promises is tried, each in a copy of the
repository: first against the unit tests of its folder, then, if these pass, against the integration
tests that the table names.  Prints a line a mutant and the survivors with their place at the end;
the exit status is 0 whatever survives: a survivor is a place to look, not a verdict.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.mutants.changes import Change, changed, changes_of

ROOT = Path(__file__).resolve().parents[2]
INTEGRATION = {
    "content": (
        "test_index_images",
        "test_index_windows",
        "test_cli_residency",
        "test_mount_daemon",
    ),
    "opening": ("test_index_images", "test_sealed_refusals", "test_sealed_releases"),
    "store": ("test_cli_residency", "test_mount_manager"),
    "source": ("test_index_windows", "test_registry", "test_cli_residency"),
    "serve": ("test_takeover", "test_mount_devices", "test_mount_daemon", "test_run_image"),
    "trust": ("test_sealed", "test_sealed_refusals", "test_kbs"),
}
"""Folder of the source → integration tests that run its code."""
UNIT_LIMIT_S = 300
INTEGRATION_LIMIT_S = 900


class Outcome(NamedTuple):
    """What became of a mutant."""

    module: Path
    change: Change
    verdict: str
    line: str


def main() -> int:
    """Try a sample; print what survives."""
    options = _parse()
    with tempfile.TemporaryDirectory(prefix="lamina-mutants-") as folder:
        copy = Path(folder) / "lamina"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(copy)], check=True)
        limits_s = {folder: _unit_limit_s(copy, folder) for folder in options.folders}
        outcomes: list[Outcome] = []
        for module, change in _sample(copy, options.folders, options.count, options.seed):
            outcomes.append(_try(copy, module, change, limits_s, unit_only=options.unit_only))
            _say(outcomes[-1])
    survivors = [each for each in outcomes if each.verdict == "survived"]
    print(f"\n{len(outcomes)} mutants, {len(outcomes) - len(survivors)} noticed; survived:")
    for each in survivors:
        _say(each)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("folders", nargs="*", default=list(INTEGRATION), metavar="FOLDER")
    parser.add_argument("--count", type=int, default=100, help="how many mutants (100)")
    parser.add_argument("--seed", type=int, default=1, help="of the sample (1)")
    parser.add_argument("--unit-only", action="store_true", help="without the integration tests")
    return parser.parse_args()


def _sample(copy: Path, folders: list[str], count: int, seed: int) -> Iterator[tuple[Path, Change]]:
    every = [
        (module, change)
        for folder in folders
        for module in sorted((copy / "src" / "lamina" / folder).rglob("*.py"))
        for change in changes_of(module.read_text())
    ]
    print(f"{len(every)} possible, {min(count, len(every))} tried", flush=True)
    yield from random.Random(seed).sample(every, min(count, len(every)))


def _unit_limit_s(copy: Path, folder: str) -> float:
    """How long the unit tests of a folder may take before a mutant counts as one that hangs: it is
    told from a machine that is busy by how long they take as they are.
    """
    begin = time.monotonic()
    if not _passes(copy, [f"tests/unit/{folder}"], 10 * UNIT_LIMIT_S):
        raise SystemExit(f"the unit tests of {folder} do not pass as they are")
    return max(UNIT_LIMIT_S, 4 * (time.monotonic() - begin))


def _try(
    copy: Path, module: Path, change: Change, limits_s: dict[str, float], *, unit_only: bool
) -> Outcome:
    source = module.read_text()
    line = source.splitlines()[change.line - 1].strip()
    mutant = changed(source, change)
    name = module.relative_to(copy)
    if mutant is None:
        return Outcome(name, change, "same", line)
    module.write_text(mutant)
    try:
        verdict = _verdict(copy, name, limits_s[name.parts[2]], unit_only=unit_only)
        return Outcome(name, change, verdict, line)
    finally:
        module.write_text(source)


def _verdict(copy: Path, module: Path, unit_limit_s: float, *, unit_only: bool) -> str:
    folder = module.parts[2]
    if not _passes(copy, [f"tests/unit/{folder}"], unit_limit_s):
        return "unit"
    suites = [f"tests/integration/{name}.py" for name in INTEGRATION.get(folder, ())]
    suites = [suite for suite in suites if (copy / suite).exists()]
    if unit_only or not suites or _passes(copy, suites, INTEGRATION_LIMIT_S):
        return "survived"
    return "integration"


def _passes(copy: Path, tests: list[str], limit_s: float) -> bool:
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not peers and not guest", *tests]
    try:
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider"],
            cwd=copy,
            env=environment,
            capture_output=True,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _say(outcome: Outcome) -> None:
    where = f"{outcome.module}:{outcome.change.line}"
    print(f"{outcome.verdict:11} {where} {outcome.change.operator}: {outcome.line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
