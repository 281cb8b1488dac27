"""The runtime as a child process: faked by shell scripts, so that each end of it can be had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.errors import KernelError, UnsupportedError
from lamina.serve.runtime import (
    Outcome,
    Runtime,
    find_runtime,
    forwarded_signals,
    remove_container,
    run_foreground,
)


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def fake(folder: Path, script: str) -> Runtime:
    """A runtime that runs a script; $LOG is the log it was told to write."""
    program = folder / "runtime"
    program.write_text(f'#!/bin/sh\nLOG=$4\necho "$@" > {folder}/arguments\n{script}\n')
    program.chmod(0o755)
    return Runtime(str(program), str(folder / "state"))


@pytest.fixture
def run(tmp_path: Path, server: subprocess.Popen[bytes]) -> Callable[..., Outcome]:
    def call(script: str, *, interactive: bool = False) -> Outcome:
        runtime = fake(tmp_path, script)
        return run_foreground(
            runtime, str(tmp_path), "box", interactive=interactive, server_pid=server.pid
        )

    return call


def log_line(message: str, level: str = "error") -> str:
    line = json.dumps({"level": level, "msg": message})
    return f"echo '{line}' > $LOG"


def test_arguments_and_exit_code(run: Callable[..., Outcome], tmp_path: Path) -> None:
    assert run("exit 0") == Outcome(0)
    assert run("exit 7") == Outcome(7)
    assert (tmp_path / "arguments").read_text().split() == [
        *(
            "--root",
            f"{tmp_path}/state",
            "--log",
            f"{tmp_path}/runtime.log",
            "--log-format",
            "json",
        ),
        *("run", "--bundle", str(tmp_path), "box"),
    ]


def test_a_killed_runtime(run: Callable[..., Outcome]) -> None:
    assert run("kill -9 $$").exit_code == 128 + 9


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('exec: "x": executable file not found in $PATH', 127),
        ('exec: "/x": stat /x: no such file or directory', 127),
        ("executable file `x` not found in $PATH: No such file or directory", 127),
        ('exec: "/etc": permission denied', 126),
        ("exec /x: exec format error", 126),
        ("open executable: Permission denied", 126),
        ("open executable: Operation not permitted", 126),
        ("cannot mount: operation not permitted", 125),
        ("anything else", 125),
    ],
)
def test_failures_of_the_runtime(run: Callable[..., Outcome], message: str, code: int) -> None:
    outcome = run(f"{log_line(message)}; exit 1")
    assert outcome == Outcome(code, message)


@pytest.mark.parametrize(
    "line",
    [log_line("careful", "warning"), "echo nonsense > $LOG", "echo '[1]' > $LOG", "true"],
)
def test_exit_codes_of_the_command_are_its_own(run: Callable[..., Outcome], line: str) -> None:
    assert run(f"{line}; exit 127") == Outcome(127)


def test_success_is_success_whatever_the_log_says(run: Callable[..., Outcome]) -> None:
    assert run(f"{log_line('late trouble')}; exit 0") == Outcome(0)


def test_standard_input_is_given_only_on_request(tmp_path: Path) -> None:
    program = """
    import sys
    from lamina.serve.runtime import *
    import os, subprocess
    server = subprocess.Popen(["sleep", "60"])
    runtime = Runtime(sys.argv[1], "/state")
    outcome = run_foreground(
        runtime, sys.argv[2], "box", interactive=sys.argv[3] == "yes", server_pid=server.pid
    )
    server.kill()
    server.wait()
    sys.exit(outcome.exit_code)
    """
    runtime = fake(tmp_path, "cat")
    lines = "\n".join(line[4:] for line in program.splitlines())
    for interactive, expected in (("yes", b"words"), ("no", b"")):
        done = subprocess.run(
            [sys.executable, "-c", lines, runtime.program, str(tmp_path), interactive],
            input=b"words",
            capture_output=True,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, b"")


def test_signals_reach_the_runtime(run: Callable[..., Outcome], tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)

    def send() -> None:
        ready.read_text()
        os.kill(os.getpid(), signal.SIGUSR2)

    thread = threading.Thread(target=send)
    # The signal must find only the waiting thread.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        thread.start()
        script = f"trap 'exit 33' USR2; echo > {ready}; while :; do sleep 0.02; done"
        assert run(script) == Outcome(33)
    finally:
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def test_signal_dispositions_of_the_runtime_are_plain(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    assert run(f"grep Sig /proc/self/status > {tmp_path}/signals") == Outcome(0)
    masks = dict(line.split() for line in (tmp_path / "signals").read_text().splitlines())
    assert int(masks["SigBlk:"], 16) == 0
    assert not int(masks["SigIgn:"], 16) & (1 << signal.SIGPIPE - 1)


def test_the_signal_mask_is_put_back(run: Callable[..., Outcome]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    run("exit 0")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_lost_server(
    run: Callable[..., Outcome], server: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    with pytest.raises(KernelError, match="server of the image ended"):
        run(f"kill -9 {server.pid}; exec sleep 60")


def test_forwarded_signals() -> None:
    found = forwarded_signals()
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGWINCH} <= found
    assert not found & {
        signal.SIGKILL,
        signal.SIGSTOP,
        signal.SIGCHLD,
        signal.SIGPIPE,
        signal.SIGTSTP,
    }


def test_finding_a_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = fake(tmp_path, "true")
    assert find_runtime(runtime.program, "/x") == Runtime(runtime.program, "/x")
    with pytest.raises(UnsupportedError, match="nonsense") as caught:
        find_runtime("nonsense", "/x")
    assert caught.value.hint
    monkeypatch.setattr("lamina.serve.runtime.ADMIN_PATH", "/nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="runc nor crun"):
        find_runtime(None, "/x")
    (tmp_path / "runtime").rename(tmp_path / "crun")
    assert find_runtime(None, "/x").program == str(tmp_path / "crun")


def test_removal_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runtime = fake(tmp_path, "echo noise; echo noise >&2; exit 1")
    remove_container(runtime, str(tmp_path), "box")
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "arguments").read_text().split()[-3:] == ["delete", "--force", "box"]
