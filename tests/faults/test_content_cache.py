"""Layers for containerd while their network lies and their server dies: no wrong byte."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.network import Network, faulty_network
from tests.support.index_layers import content
from tests.support.layer_cache import Cache, LayerReaders, served, start
from tests.support.layer_stack import mounted
from tests.support.layers import Item, folder, oci_layout, tar_bytes
from tests.support.tools import require_erofs, require_kernel, require_root

LARGE = content(24_000_000, 8)
RATE = 0.3
MORE_READS = 60
"""So many right reads come between two things that break."""


@pytest.fixture
def network() -> Iterator[Network]:
    with faulty_network(12, 0.0) as network:
        yield network


def again(work: Path, reference: str) -> Cache:
    """Start a server, again and again: with this network it may fail before it serves."""
    while True:
        try:
            return start(work, reference)
        except (KeyError, ValueError):
            time.sleep(0.1)


@pytest.mark.tools
@pytest.mark.kernel
def test_a_layer_has_no_wrong_byte_whatever_breaks(network: Network, tmp_path: Path) -> None:
    require_root()
    require_erofs()
    require_kernel(6, 12, "an EROFS mount of files")
    oci_layout(tmp_path / "layout", [tar_bytes([folder("d"), Item("d/large", LARGE)])])
    reference = f"docker://{network.host}/layers:1"
    commands = (
        ("copy", "--plain-http", f"oci:{tmp_path}/layout:latest", reference),
        ("index", "--plain-http", "--layers", reference),
    )
    for words in commands:
        subprocess.run([sys.executable, "-m", "lamina", *words], check=True, timeout=120)
    with (
        served(tmp_path, reference) as cache,
        mounted(cache.files[0], tmp_path / "layer"),
        LayerReaders(tmp_path / "layer/d/large", LARGE) as readers,
    ):
        network.rate = RATE
        for _ in range(4):
            goal = readers.right + MORE_READS
            readers.wait(lambda goal=goal: readers.right > goal)  # type: ignore[misc]
            cache.process.send_signal(signal.SIGKILL)
            cache.process.wait(60)
            cache = again(tmp_path, reference)
        # The registry is lost, and comes back.
        network.rate, network.only = 1.0, "reset before answer"
        time.sleep(2)
        network.rate, network.only = 0.0, None
        goal = readers.right + 5 * MORE_READS
        readers.wait(lambda: readers.right > goal)
        injected = network.injected.total()
    cache.process.kill()
    cache.process.wait(60)
    assert injected > 5, network.injected
