"""Fixtures and rules of every test run: images, tools, peers, and nothing left behind."""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import images, leaks, logs, tools
from tests.support.watchdog import Watchdog

os.environ[leaks.RUN_VARIABLE] = RUN = f"{os.getpid()}-{time.time_ns()}"
_numbers = itertools.count()
_SIGNALS = signal.pthread_sigmask(signal.SIG_BLOCK, ())
PEERS = Path(__file__).parent / "peers"

pytest_plugins = [
    f"tests.support.{name}"
    for name in ("registry_server", "installed", "shell")
    if importlib.util.find_spec(f"tests.support.{name}") is not None
]


def pytest_configure(config: pytest.Config) -> None:
    """Watch from the process that hears of all results; let programs be interrupted, also where
    the tests run in the background of a shell, which has its children ignore that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Watchdog())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a built peer is a tier of its own (``make test-peers``)."""
    for item in items:
        if PEERS in item.path.parents or "peer" in getattr(item, "fixturenames", ()):
            item.add_marker("peers")


@pytest.fixture(scope="session")
def oci_image() -> Callable[[str], Path]:
    """``oci_image("minbase" | "node" | "python")``: path of an OCI layout with the tag
    ``latest``.
    """

    def layout(name: str) -> Path:
        if not images.is_built(name):
            tools.require_root()
            tools.require_tool(*images.PROGRAMS)
        return images.image_layout(name)

    return layout


@pytest.fixture(scope="session")
def peer() -> Callable[[str], Path]:
    """``peer("nydusd")``: path of a peer program; skips by name where it is missing."""
    return tools.require_peer


@pytest.fixture
def as_root() -> None:
    """The test needs root."""
    tools.require_root()


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A node store of its own for each test, made when used; and none of the user's registry
    credentials.
    """
    folder = tmp_path_factory.getbasetemp() / "stores" / str(next(_numbers))
    monkeypatch.setenv("LAMINA_STORE", str(folder))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder / "no-docker-config"))


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """The library's logger as it was, after tests that run the command line in this process."""
    with logs.restored_log():
        yield


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """No signal is held back by what a test before this one, or its fixtures, have left."""
    signal.pthread_sigmask(signal.SIG_SETMASK, _SIGNALS)
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, _SIGNALS)


@pytest.fixture(autouse=True)
def _own_mounts(tmp_path: Path) -> Iterator[None]:
    """A mount service of its own for each test, which ends with its last mount; its folder, and
    that of the test, go when every process that the test has started is gone.

    Without ``monkeypatch``: what a test has put in the place of something is back by then.
    """
    del tmp_path
    folder = tempfile.mkdtemp(prefix="lamina-test-")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LAMINA_RUNTIME", folder)
            patch.setenv(leaks.TEST_VARIABLE, folder)
            with leaks.ended_processes(folder):
                yield
    finally:
        leaks.remove_folder(Path(folder))


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the run for mounts and processes that outlive the tests; take the processes away."""
    yield
    left = [f"mount {point}" for point in leaks.mounts_below(tmp_path_factory.getbasetemp())]
    left += [
        f"process {pid}: {command[:200]}" for pid, command in leaks.end_processes(RUN, grace_s=60)
    ]
    assert not left, "tests left behind:\n" + "\n".join(left)
