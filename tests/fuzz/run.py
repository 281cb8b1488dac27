"""Run the fuzz targets of this folder: ``python tests/fuzz/run.py [--seconds N] [NAME...]``.

A target is a file ``fuzz_NAME.py`` with ``target(data: bytes)``, which raises only on a defect, and
``seeds()``, a small corpus made in code.  Each runs in a process of its own with a memory limit and
a limit of CPU time for each input: by atheris (coverage guided) where it is installed, else by
plain mutation of the seeds.  Times are CPU seconds, so that other work on the machine neither makes
a run shorter nor looks like a hang.  A crash or a hang prints the path of the input that did it and
ends in exit status 1.  ``python tests/fuzz/run.py NAME --reproduce FILE`` runs one input again.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parent
INPUT_LIMIT_S = 10
"""One input must be done in this CPU time; what takes longer is a hang."""
SILENT_LIMIT_S = 300
"""What is not done after this much wall time waits for something."""
MEMORY_LIMIT_BYTES = 2 << 30
MAX_INPUT_BYTES = 1 << 16


class HangError(BaseException):
    """An input took too long; no target may catch it."""


def main() -> int:
    """Run the named targets one after the other; return 1 if any found a defect."""
    options = _parse(sys.argv[1:])
    if options.child:
        return _run_child(options)
    if options.reproduce:
        _load(options.names[0]).target(Path(options.reproduce).read_bytes())
        return 0
    failed = []
    for name in options.names or target_names():
        ok, report = run_target(name, options.seconds, Path(options.artifacts), options.engine)
        print(f"fuzz {name}: {report}", flush=True)
        if not ok:
            failed.append(name)
    if failed:
        print(f"defects found by: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def target_names() -> list[str]:
    """The names of all targets of this folder."""
    return sorted(path.stem.removeprefix("fuzz_") for path in FOLDER.glob("fuzz_*.py"))


def run_target(name: str, seconds: float, artifacts: Path, engine: str) -> tuple[bool, str]:
    """Run one target in a child process; return (no defect, one-line or longer report)."""
    artifacts.mkdir(parents=True, exist_ok=True)
    before = set(artifacts.iterdir())
    options = [name, "--seconds", str(seconds), "--child", str(artifacts), "--engine", engine]
    command = [sys.executable, str(Path(__file__).resolve()), *options]
    # A machine with much other work gives a tenth of its time; the child ends itself by CPU time.
    limit_s = 10 * seconds + 2 * SILENT_LIMIT_S
    with tempfile.TemporaryDirectory(prefix="lamina-corpus-") as corpus:
        try:
            done = subprocess.run(
                [*command, "--corpus", corpus],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired:
            return False, f"still running after {limit_s:.0f} s, killed"
    output = done.stdout + done.stderr
    if done.returncode == 0:
        return True, _statistics(output)
    inputs = [str(path) for path in sorted(set(artifacts.iterdir()) - before)]
    where = f"input kept at {' '.join(inputs)}" if inputs else "no input was kept"
    return False, f"DEFECT (exit status {done.returncode}), {where}\n{output[-4000:]}"


def _statistics(output: str) -> str:
    lines = [
        line for line in output.splitlines() if line.startswith(("Done ", "stat::", "mutation:"))
    ]
    return "; ".join(lines) if lines else "done"


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the fuzz targets of this folder.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="targets to run (default: all)")
    parser.add_argument(
        "--seconds", type=float, default=60, help="CPU time for each target (default: 60)"
    )
    parser.add_argument(
        "--artifacts",
        default=tempfile.gettempdir() + "/lamina-fuzz",
        help="where crashing inputs go",
    )
    parser.add_argument("--reproduce", metavar="FILE", help="run one input through one target")
    parser.add_argument("--engine", choices=("atheris", "mutation"), default=default_engine())
    parser.add_argument("--child", metavar="ARTIFACTS", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(target_names())
    if unknown:
        parser.error(
            f"no such target: {', '.join(sorted(unknown))}; there are: {', '.join(target_names())}"
        )
    return options


def _load(name: str) -> ModuleType:
    sys.path[:0] = [str(FOLDER), str(FOLDER.parents[1]), str(FOLDER.parents[1] / "src")]
    return importlib.import_module(f"fuzz_{name}")


def default_engine() -> str:
    """``atheris`` where it is installed, else ``mutation``."""
    return "atheris" if importlib.util.find_spec("atheris") is not None else "mutation"


def _run_child(options: argparse.Namespace) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    name, prefix = options.names[0], f"{options.child}/{options.names[0]}-"
    if options.engine == "atheris":
        _run_atheris(name, options.seconds, prefix, Path(options.corpus))
        return 0
    return _run_mutation(name, options.seconds, prefix)


def _run_atheris(name: str, seconds: float, prefix: str, corpus: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["lamina"], enable_loader_override=False):
        module = _load(name)
    for seed in module.seeds():
        module.target(seed)
        Path(corpus, hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    flags = (
        f"-timeout={SILENT_LIMIT_S}",
        f"-rss_limit_mb={MEMORY_LIMIT_BYTES >> 20}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-artifact_prefix={prefix}",
    )
    count, started_s = 0, time.process_time()

    def one_input(data: bytes) -> None:
        nonlocal count
        with cpu_limit(INPUT_LIMIT_S):
            module.target(data)
        count += 1
        used_s = time.process_time() - started_s
        if used_s >= seconds:
            # libFuzzer has no other way to be told that it is enough.
            print(f"Done {count} inputs in {used_s:.0f} s of CPU", flush=True)
            os._exit(0)

    atheris.Setup([f"fuzz_{name}", *flags, str(corpus)], one_input)
    atheris.Fuzz()


def _run_mutation(name: str, seconds: float, prefix: str) -> int:
    """The fallback: mutate the seeds, with no coverage to guide it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    module = _load(name)
    seeds = [bytes(seed) for seed in module.seeds()] or [b""]
    generator = random.Random(int.from_bytes(os.urandom(8)))
    deadline_s = time.process_time() + seconds
    pending, count = list(seeds), 0
    while pending or time.process_time() < deadline_s:
        data = pending.pop() if pending else mutate(generator, seeds)
        count += 1
        if not _try_input(module.target, data, prefix):
            return 1
    print(f"mutation: {count} inputs from {len(seeds)} seeds in {seconds:.0f} s of CPU")
    return 0


def _try_input(target: Callable[[bytes], None], data: bytes, prefix: str) -> bool:
    try:
        with cpu_limit(INPUT_LIMIT_S):
            target(data)
    except BaseException:
        traceback.print_exc()
        Path(f"{prefix}crash-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
        return False
    return True


@contextmanager
def cpu_limit(limit_s: float) -> Iterator[None]:
    """Raise HangError in the code inside once it has used *limit_s* seconds of CPU."""

    def on_alarm(_signal: int, _frame: object) -> None:
        raise HangError(f"one input took more than {limit_s} s of CPU")

    signal.signal(signal.SIGVTALRM, on_alarm)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def mutate(generator: random.Random, seeds: list[bytes]) -> bytes:
    """One seed with a few bits, integers, cuts, repeats or splices changed; at most MAX_INPUT_BYTES
    long.
    """
    data = bytearray(generator.choice(seeds))
    for _ in range(generator.randint(1, 8)):
        at = generator.randrange(len(data) + 1)
        kind = generator.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            width = generator.choice((1, 2, 4, 8))
            value = generator.choice(
                (
                    0,
                    1,
                    0x7F,
                    0x80,
                    0xFF,
                    (1 << 8 * width) - 1,
                    1 << 8 * width - 1,
                    generator.getrandbits(8 * width),
                )
            )
            data[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(
                width, generator.choice(("little", "big"))
            )
        elif kind == 2:
            del data[at : at + generator.randint(1, 64)]
        elif kind == 3:
            data[at:at] = data[at : at + generator.randint(1, 512)]
        elif kind == 4:
            other = generator.choice(seeds)
            data[at:] = other[generator.randrange(len(other) + 1) :]
        else:
            del data[at:]
    return bytes(data[:MAX_INPUT_BYTES])


if __name__ == "__main__":
    sys.exit(main())
