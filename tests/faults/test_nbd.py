"""A disk over NBD while its network lies and its server dies or is replaced: no wrong byte."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.block.disk import DiskView
from tests.faults.network import Network, faulty_network
from tests.faults.sample import make_samples
from tests.support.nbd_disk import Client, read_disk
from tests.support.opening import open_image

READERS = 3
READ_BYTES = 24 << 10
RATE = 0.3
MORE_READS = 60
"""So many reads come between two things that break."""


class Readers:
    """Threads that read at random, come again when the server does, and compare."""

    def __init__(self, path: Path, expected: bytes) -> None:
        self._path = path
        self._expected = expected
        self._changed = threading.Condition()
        self._ended = False
        self._threads = [
            threading.Thread(target=self._read, args=(number,)) for number in range(READERS)
        ]
        self.counts: Counter[str] = Counter()

    def _read(self, number: int) -> None:
        chance = random.Random(number)
        while not self._ended:
            # What a dying server cuts off is no answer.
            with contextlib.suppress(OSError, struct.error), Client(self._path) as client:
                assert client.go() == len(self._expected)
                while not self._ended:
                    size = chance.randrange(1, READ_BYTES)
                    offset = chance.randrange(len(self._expected) - size)
                    answer = client.read(offset, size)
                    if answer is None:
                        break
                    self._note(answer, self._expected[offset : offset + size])
            self._count("connections")
            time.sleep(0.1)

    def _note(self, answer: tuple[int, bytes], expected: bytes) -> None:
        error, data = answer
        if error:
            self._count("errors")
        else:
            self._count("right" if data == expected else "wrong")

    def _count(self, what: str) -> None:
        with self._changed:
            self.counts[what] += 1
            self._changed.notify_all()

    def wait(self, enough: Callable[[Counter[str]], bool]) -> None:
        """Return when the counts are as they are waited for."""
        with self._changed:
            self._changed.wait_for(lambda: enough(self.counts))

    def more(self, what: str = "right", count: int = MORE_READS) -> None:
        """Return when so many more of a kind were counted."""
        goal = self.counts[what] + count
        self.wait(lambda counts: counts[what] >= goal)

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        for thread in self._threads:
            thread.join()


class DiskServer:
    """``lamina serve nbd`` as a process, again and again on one socket."""

    def __init__(self, network: Network, digest: str, folder: Path) -> None:
        self.socket = folder / "disk.sock"
        self._reference = f"docker://{network.host}/faults@{digest}"
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def start(self, store: str) -> None:
        """Start it, again and again: with a network like this one it may fail before it serves."""
        command = [sys.executable, "-m", "lamina", "serve", "nbd", "--json", "--profile", "none"]
        command += ["--store", str(self._folder / store), "--socket", str(self.socket)]
        environment = {**os.environ, "LAMINA_RETRY": "attempts=3"}
        while True:
            process = subprocess.Popen(
                [*command, self._reference],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            assert process.stdout is not None
            if '"uri"' in process.stdout.readline():
                self._process = process
                return
            process.communicate()

    def end(self, number: int) -> None:
        """End it by a signal."""
        process = self._process
        assert process is not None and process.stdout is not None
        process.send_signal(number)
        process.wait()
        process.stdout.close()
        self._process = None

    def __enter__(self) -> DiskServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.end(signal.SIGKILL)


@pytest.fixture
def network() -> Iterator[Network]:
    with faulty_network(11, 0.0) as network:
        yield network


@pytest.mark.tools
def test_a_disk_has_no_wrong_byte_whatever_breaks(network: Network, tmp_path: Path) -> None:
    sample = make_samples(network, tmp_path / "trees", 11)[0]
    with open_image(
        f"docker://{network.host}/faults@{sample.digest}", store=tmp_path / "reference"
    ) as image:
        expected = read_disk(DiskView(image))
    with DiskServer(network, sample.digest, tmp_path) as server:
        server.start("first")
        network.rate = RATE
        with Readers(server.socket, expected) as readers:
            readers.more()
            server.end(signal.SIGKILL)
            server.start("first")
            readers.more()
            # Replaced, with nothing in its store.
            server.end(signal.SIGTERM)
            server.start("second")
            readers.more(count=5)
            # The registry is lost: each request is refused, until it is there again.
            network.rate, network.only = 1.0, "reset before answer"
            lost = network.injected["reset before answer"]
            while network.injected["reset before answer"] < lost + 5:
                time.sleep(0.05)
            network.rate, network.only = RATE, None
            readers.more()
            network.rate = 0.0
            readers.more()
        server.end(signal.SIGTERM)
    counts = readers.counts
    assert counts["wrong"] == 0, counts
    assert counts["right"] > 4 * MORE_READS, counts
    assert counts["connections"] >= 2 * READERS, counts
    assert network.injected.total() > 5, network.injected
