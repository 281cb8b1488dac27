"""The process that serves a container's image: reports, obeys, and cleans up after its caller."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import AuthError, Error, KernelError
from lamina.image.errors import PathNotFoundError
from lamina.serve import run_server
from lamina.serve.run_server import start_server


class Fake:
    """Writes down what happens to it."""

    def __init__(self, folder: Path, *, fail: Exception | None = None) -> None:
        self._folder = folder
        self._fail = fail

    def start(self) -> dict[str, Any]:
        if self._fail is not None:
            raise self._fail
        return {"pid": os.getpid(), "session": os.getsid(0), "stdin": os.read(0, 10).decode()}

    def stop(self, *, orphaned: bool) -> None:
        (self._folder / "stopped").write_text(f"orphaned={orphaned}")


def stopped(folder: Path) -> str:
    deadline_s = time.monotonic() + 60
    while not (folder / "stopped").exists() or not (folder / "stopped").read_text():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    return (folder / "stopped").read_text()


def test_report_and_goodbye(tmp_path: Path) -> None:
    server = start_server(lambda: Fake(tmp_path))
    report = server.wait_ready()
    assert report == {"pid": server.pid, "session": server.pid, "stdin": ""}
    server.stop()
    assert stopped(tmp_path) == "orphaned=False"
    server.stop()


def test_a_caller_that_vanishes(tmp_path: Path) -> None:
    server = start_server(lambda: Fake(tmp_path))
    server.wait_ready()
    server.channel.close()
    assert stopped(tmp_path) == "orphaned=True"
    os.waitpid(server.pid, 0)


def test_one_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(Fake):
        def stop(self, *, orphaned: bool) -> None:
            super().stop(orphaned=orphaned)
            signal.pause()

    monkeypatch.setattr(run_server, "STOP_S", 0.0)
    server = start_server(lambda: Endless(tmp_path))
    pid = server.wait_ready()["pid"]
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("error", [AuthError("no entry", hint="log in"), Error("other")])
def test_errors_come_over(tmp_path: Path, error: Error) -> None:
    server = start_server(lambda: Fake(tmp_path, fail=error))
    with pytest.raises(type(error), match=str(error)) as caught:
        server.wait_ready()
    assert type(caught.value) is type(error)
    assert caught.value.hint == error.hint
    server.stop()
    assert stopped(tmp_path) == "orphaned=False"


def test_subclasses_come_over_as_their_family(tmp_path: Path) -> None:
    server = start_server(lambda: Fake(tmp_path, fail=PathNotFoundError("no such path")))
    with pytest.raises(Error, match="no such path") as caught:
        server.wait_ready()
    assert caught.value.exit_code == PathNotFoundError.exit_code
    server.stop()


def test_a_server_that_crashes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server = start_server(lambda: Fake(tmp_path, fail=ZeroDivisionError("oh")))
    with pytest.raises(KernelError, match="ended before"):
        server.wait_ready()
    server.stop()
    assert "ZeroDivisionError: oh" in capfd.readouterr().err
    assert stopped(tmp_path) == "orphaned=False"


def test_a_server_that_is_killed(tmp_path: Path) -> None:
    server = start_server(lambda: Fake(tmp_path))
    server.wait_ready()
    os.kill(server.pid, signal.SIGKILL)
    server.stop()


def test_signals_of_the_terminal_do_not_end_it(tmp_path: Path) -> None:
    server = start_server(lambda: Fake(tmp_path))
    server.wait_ready()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        os.kill(server.pid, number)
    time.sleep(0.05)
    assert os.waitpid(server.pid, os.WNOHANG) == (0, 0)
    server.stop()
    assert stopped(tmp_path) == "orphaned=False"


class Slow(Fake):
    """Never gets ready."""

    def start(self) -> dict[str, Any]:
        time.sleep(3600)
        return {}


def test_a_server_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    server = start_server(lambda: Slow(tmp_path))
    pid = server.pid
    server.stop()
    # Nobody is left to be waited for: it was killed, and this was noticed.
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
