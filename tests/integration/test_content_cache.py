"""``lamina serve content-cache``: the kernel mounts what it offers, and never sees zeros."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lamina.cli.dispatch import run_command
from lamina.http.client_options import ClientOptions
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from lamina.linux.mount import create_mount
from tests.support.fake_registry import FakeRegistry, reset
from tests.support.fake_registry import fake_registry as registry_in_this_process
from tests.support.index_layers import content
from tests.support.layer_cache import LayerReaders, served, start
from tests.support.layer_stack import mounted, stacked
from tests.support.layers import Item, folder, oci_layout, opaque, tar_bytes, whiteout
from tests.support.opening import open_image
from tests.support.tools import require_erofs, require_kernel, require_root, require_tool

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

READS = 80
PLAIN = ClientOptions(plain_http=True)
LARGE = content(6_000_000, 5)
LAYERS = [
    [
        *(folder("d", uid=7), Item("d/gone", b"g" * 5000), Item("d/large", LARGE)),
        *(folder("o"), Item("o/hidden", b"hidden"), Item("same", b"same" * 3000)),
    ],
    [folder("d", uid=8), whiteout("d/gone"), folder("o"), opaque("o"), Item("o/new", b"new")],
    [folder("d", uid=9), Item("d/top", content(300_000, 6)), whiteout("same")],
]


@pytest.fixture
def fake_registry() -> Iterator[FakeRegistry]:
    with registry_in_this_process() as registry:
        yield registry


@pytest.fixture
def reference(fake_registry: FakeRegistry, tmp_path: Path) -> str:
    require_root()
    require_erofs()
    require_kernel(6, 12, "an EROFS mount of files")
    oci_layout(tmp_path / "layout", [tar_bytes(layer) for layer in LAYERS])
    return pushed(fake_registry, tmp_path)


def pushed(fake_registry: FakeRegistry, tmp_path: Path) -> str:
    """Put the image of the layout into a registry, with an index."""
    name = f"docker://{fake_registry.host}/app:1"
    commands = (
        ("copy", "--plain-http", f"oci:{tmp_path}/layout:latest", name),
        ("index", "--plain-http", "--layers", name),
    )
    for words in commands:
        subprocess.run([sys.executable, "-m", "lamina", *words], check=True, timeout=120)
    fake_registry.seen.clear()
    return name


def fetched_bytes(registry: FakeRegistry, layer: str) -> int:
    """What was asked for of a blob."""
    total = 0
    for each in registry.seen:
        if each.method == "GET" and layer in each.path:
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", each.headers.get("range", ""))
            # Manifests and metadata are asked for as a whole.
            total += int(span[2]) - int(span[1]) + 1 if span else 0
    return total


def test_stacked_layers_are_the_image_and_come_as_they_are_read(
    reference: str, fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    (tmp_path / "lower").mkdir()
    with served(tmp_path, reference) as cache:
        digits = cache.diff_ids[0].removeprefix("sha256:")
        assert cache.files[0] == tmp_path / f"cache/sha256/{digits[:2]}/{digits}.erofs"
        with stacked(cache.files, tmp_path / "lower") as merged:
            assert (merged / "o/new").read_bytes() == b"new"
            assert not (merged / "same").exists()
            large = max(fake_registry.blobs, key=lambda digest: len(fake_registry.blobs[digest]))
            lazily = fetched_bytes(fake_registry, large)
            assert lazily < len(fake_registry.blobs[large]) / 10
            with open_image(reference, store=tmp_path / "mine", options=PLAIN) as image:
                found = [each for each in compare(image, FolderImage(merged)) if each.path != b"/"]
                assert [str(one) for one in found] == []


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_server_is_waited_for(reference: str, tmp_path: Path) -> None:
    with served(tmp_path, reference) as cache, mounted(cache.files[0], tmp_path / "layer"):
        with LayerReaders(tmp_path / "layer/d/large", LARGE) as readers:
            for _ in range(3):
                readers.wait(lambda: readers.right > 50)
                cache.process.kill()
                cache.process.wait(60)
                readers.right = 0
                cache = start(tmp_path, reference)
            readers.wait(lambda: readers.right > 50)
        assert readers.failed == 0
        with mounted(cache.files[1], tmp_path / "other"):
            assert (tmp_path / "other/o/new").read_bytes() == b"new"
        cache.process.kill()
        cache.process.wait(60)


def test_without_its_keeper_a_killed_server_is_errors(reference: str, tmp_path: Path) -> None:
    with served(tmp_path, reference) as cache, mounted(cache.files[0], tmp_path / "layer"):
        with LayerReaders(tmp_path / "layer/d/large", LARGE) as readers:
            readers.wait(lambda: readers.right > 50)
            for pid in (*children(cache.process.pid), cache.process.pid):
                os.kill(pid, signal.SIGKILL)
            readers.wait(lambda: readers.failed > 10)
        with (
            served(tmp_path, reference) as next_one,
            mounted(next_one.files[0], tmp_path / "again"),
        ):
            assert (tmp_path / "again/d/large").read_bytes() == LARGE


def test_two_servers_do_not_share_a_folder(
    reference: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with served(tmp_path, reference):
        assert run_command(["serve", "content-cache", str(tmp_path / "cache"), reference]) == 2
        assert "something is mounted at" in capfd.readouterr().err


def test_a_registry_that_is_silent_is_waited_for(
    reference: str, fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    with served(tmp_path, reference) as cache, mounted(cache.files[0], tmp_path / "layer"):
        fake_registry.rule("GET", "/blobs/", reset(), times=1 << 30)
        read: list[bytes] = []
        reader = threading.Thread(
            target=lambda: read.append((tmp_path / "layer/d/large").read_bytes())
        )
        reader.start()
        reader.join(3)
        assert reader.is_alive()
        fake_registry.rules.clear()
        reader.join(60)
        assert read == [LARGE]


def waiting_requests(mountpoint: Path) -> int:
    """How many requests of a FUSE mount are not answered."""
    control = create_mount("fusectl", None, [])
    try:
        path = f"{os.minor(os.stat(mountpoint).st_dev)}/waiting"
        with open(os.open(path, os.O_RDONLY, dir_fd=control)) as file:
            return int(file.read())
    finally:
        os.close(control)


def test_a_registry_that_is_silent_keeps_no_other_image_back(
    reference: str, fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """Although more reads wait for it than there were threads for all."""
    layer = [folder("d"), *(Item(f"d/{n}", content(70_000, n + 50)) for n in range(READS))]
    oci_layout(tmp_path / "layout", [tar_bytes(layer)])
    with registry_in_this_process() as silent:
        other = pushed(silent, tmp_path)
        with (
            served(tmp_path, other, reference) as cache,
            mounted(cache.files[0], tmp_path / "silent"),
            mounted(cache.files[1], tmp_path / "layer"),
        ):
            silent.rule("GET", "/blobs/", reset(), times=1 << 30)
            paths = [tmp_path / f"silent/d/{n}" for n in range(READS)]
            with ThreadPoolExecutor(READS) as pool:
                found = [pool.submit(path.read_bytes) for path in paths]
                try:
                    while waiting_requests(tmp_path / "cache") < READS:
                        time.sleep(0.05)
                    assert (tmp_path / "layer/d/large").read_bytes() == LARGE
                    assert not any(each.done() for each in found)
                finally:
                    silent.rules.clear()
                for number, each in enumerate(found):
                    assert each.result() == content(70_000, number + 50)


def test_it_ends_when_nobody_reads_any_more(reference: str, tmp_path: Path) -> None:
    with served(tmp_path, reference) as cache:
        with mounted(cache.files[0], tmp_path / "layer"):
            cache.process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                cache.process.wait(2)
            assert not cache.files[0].exists()
            assert (tmp_path / "layer/d/large").read_bytes() == LARGE
        assert cache.process.wait(60) == 0


def test_the_sidecar_is_that_of_the_hash_tree_behind_the_layer(
    reference: str, fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    (veritysetup,) = require_tool("veritysetup")
    with served(tmp_path, reference, "--verity") as cache:
        for file in cache.files:
            told = json.loads(Path(f"{file}.dmverity").read_text())
            where = f"--hash-offset={told['hashoffset']}"
            line = [veritysetup, "verify", where, file, file, told["roothash"]]
            subprocess.run(line, check=True, timeout=60, capture_output=True)
    before = fetched_bytes(fake_registry, "sha256")
    with served(tmp_path, reference, "--verity") as cache:
        assert json.loads(Path(f"{cache.files[-1]}.dmverity").read_text()) == told
    assert fetched_bytes(fake_registry, "sha256") == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("content-cache", "DIR"), "wants DIR and the images"),
        (("content-cache", "--listen", "127.0.0.1:0", "DIR", "x/y"), "--listen is not of"),
        (("nbd", "x/y", "x/z"), "serves one image"),
        (("content-cache", "/proc", "x/y"), "something is mounted at /proc already"),
    ],
)
def test_what_means_nothing_is_refused(
    words: Sequence[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = [str(tmp_path / "cache") if word == "DIR" else word for word in words]
    assert run_command(["serve", *line]) == 2
    assert said in capfd.readouterr().err
