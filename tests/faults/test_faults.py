"""A short run of the fault suite, and that it can fail."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from lamina.content.lazy_image import LazyImage
from lamina.errors import Error
from lamina.http.client_options import ClientOptions
from lamina.oci.start_manifest import StartRule
from lamina.opening import open_image as pipeline
from lamina.opening.request import request_of
from tests.faults import old_files
from tests.faults.containers import RUN
from tests.faults.network import EVERYWHERE, OF_BLOBS, Network, faulty_network, kinds_for
from tests.faults.run import DEVICES, passed, run_suite, table, unsupported
from tests.faults.run import parse as options
from tests.faults.sample import make_samples
from tests.faults.tally import READS, WRONG, Tally
from tests.faults.ways import WAYS, ImpossibleError
from tests.support.opening import open_image
from tests.support.tools import missing

READER = Path(__file__).with_name("reader.py")


def run(*words: str) -> dict[str, Any]:
    reason = unsupported()
    if reason is not None:
        missing(f"the fault suite: {reason}")
    result = run_suite(options(words))
    print(table(result))
    return result


@pytest.mark.kernel
def test_no_wrong_byte_and_no_hang() -> None:
    seed = os.environ.get("LAMINA_FAULT_SEED", "7")
    # As many as a quiet machine makes of 15 seconds; a busy one may have the time for fewer.
    # A read that is lost waits for ever, and one beside much other work may take its time.
    # All devices, and of containers the device that they have.
    devices = [each for each in DEVICES if not each.endswith(RUN) or each.startswith("fuse-blob")]
    words = [word for each in devices for word in ("--device", each)]
    result = run("--seconds", "60", "--faults", "200", "--seed", seed, "--hang", "60", *words)
    assert not result["wrong"] + result["hangs"] + result["crashes"], table(result)
    assert result["faults"] > 0
    for device in devices:
        assert result["by_device"][device]["reads"] > 0
        assert result["by_device"][device]["silences"] > 0


@pytest.mark.kernel
def test_a_wrong_byte_is_found() -> None:
    result = run("--seconds", "3", "--device", "fuse", "--flip-source", "--rate", "0.01")
    assert result["wrong"] > 0
    assert not passed(result)
    assert any("wrong" in detail for detail in result["details"])


@pytest.mark.kernel
def test_a_hang_is_found() -> None:
    words = ("--seconds", "4", "--device", "fuse", "--hang", "1")
    result = run(*words, "--only", "stall in body", "--rate", "1")
    assert result["hangs"] > 0
    assert not passed(result)


def read(tmp_path: Path, mount: Path, tree: Path) -> tuple[Tally, str]:
    tally = tmp_path / "tally"
    command = [sys.executable, "-S", READER, mount, tree, tally, "1", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return Tally(tally), done.stdout


@pytest.mark.parametrize("change", ["none", "byte", "shorter", "gone"])
def test_a_reader_compares(tmp_path: Path, change: str) -> None:
    tree, mount = tmp_path / "tree", tmp_path / "mnt"
    for folder in (tree, mount):
        folder.mkdir()
        (folder / "file").write_bytes(random.Random(1).randbytes(9000))
    if change == "byte":
        content = bytearray((mount / "file").read_bytes())
        content[8999] ^= 128
        (mount / "file").write_bytes(content)
    elif change == "shorter":
        os.truncate(mount / "file", 8999)
    elif change == "gone":
        (mount / "file").unlink()
    tally, told = read(tmp_path, mount, tree)
    reads, wrong = tally.number(READS), tally.number(WRONG)
    tally.close()
    # With nothing mounted a name that is not there says nothing.
    assert (wrong > 0) == (change in ("byte", "shorter"))
    assert bool(told) == (wrong > 0)
    assert (reads > 0) == (change != "gone")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_read(tmp_path: Path, way: str) -> None:
    content = random.Random(way).randbytes(3_000_001)
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        for offset, length in ((0, 1), (4097, 70_000), (1_000_000, 128 << 10), (2_999_990, 4096)):
            try:
                found = WAYS[way](file.fileno(), offset, length, len(content))
            except ImpossibleError as error:
                pytest.skip(f"{way}: {error}")
            assert 0 < len(found) <= length
            assert found == content[offset : offset + len(found)]
        assert WAYS[way](file.fileno(), len(content), 10, len(content)) == b""


@pytest.mark.parametrize("kind", sorted(OF_BLOBS))
def test_every_fault_of_the_network_happens(tmp_path: Path, kind: str) -> None:
    """An error or the right bytes while it does, and the right bytes afterwards."""
    with faulty_network(3, 0.0) as network:
        sample = make_samples(network, tmp_path, 3, small_files=60, big_files=0)[0]
        reference = f"docker://{network.host}/faults@{sample.digest}"
        quick = ClientOptions(timeout_s=1.0)
        with open_image(reference, store=tmp_path / "store", options=quick) as image:
            network.only, network.rate = kind, 0.5
            names = [name for name in sorted(sample.tree.rglob("file-*")) if name.is_file()]
            read_until(lambda: network.injected[kind] > 0, image, sample.tree, names)
            network.rate = 0.0
            assert all(read_one(image, sample.tree, name) for name in names)
        assert network.injected[kind] > 0


def read_until(enough: Callable[[], bool], image: LazyImage, tree: Path, names: list[Path]) -> None:
    for name in names:
        if enough():
            return
        with contextlib.suppress(Error):
            assert read_one(image, tree, name)


def read_one(image: LazyImage, tree: Path, name: Path) -> bool:
    """Whether a file of the image is right."""
    content = name.read_bytes()
    stat = image.stat(os.fsencode(name.relative_to(tree)))
    return image.pread(stat, 0, len(content) + 1) == content


def test_the_kinds_follow_the_request() -> None:
    assert kinds_for("/v2/a/blobs/sha256:x") == OF_BLOBS
    assert set(EVERYWHERE) < set(kinds_for("/v2/a/manifests/x"))
    assert "malformed token" in kinds_for("/token?scope=x")


def test_one_seed_makes_one_sequence() -> None:
    def sequence(seed: int) -> list[str | None]:
        network = Network(seed=seed)
        found = [network.draw(OF_BLOBS) for _ in range(200)]
        return [None if each is None else each[0] for each in found]

    assert sequence(5) == sequence(5)
    assert sequence(5) != sequence(6)
    assert None in sequence(5)


@pytest.mark.parametrize("kind", sorted(old_files.FAULTS))
def test_every_fault_of_a_store_is_survived(tmp_path: Path, kind: str) -> None:
    with faulty_network(4, 0.0) as network:
        samples = make_samples(network, tmp_path, 4, small_files=60, big_files=0)
        store = tmp_path / "store"
        for sample in samples:
            assert read_all(network, store, sample) == []
        chance = random.Random(kind)
        assert old_files.FAULTS[kind](store, chance)
        for sample in samples:
            assert read_all(network, store, sample) == []


def read_all(network: Network, store: Path, sample: Any) -> list[str]:
    """Names of the files that differ."""
    reference = f"docker://{network.host}/faults@{sample.digest}"
    with open_image(reference, store=store) as image:
        return [
            os.fsdecode(path)
            for path, stat in image.walk()
            if stat.is_file
            and image.pread(stat, 0, stat.size)
            != (sample.tree / os.fsdecode(path).lstrip("/")).read_bytes()
        ]


def test_the_samples_are_read_before_their_metadata_have_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow this machine is.
    monkeypatch.setenv("LAMINA_START_WAIT_S", "1000")
    with faulty_network(4, 0.0) as network:
        for sample in make_samples(network, tmp_path, 4, small_files=60, big_files=1, early=True):
            reference = f"docker://{network.host}/faults@{sample.digest}"
            request = request_of(reference, store=tmp_path / sample.digest)
            with pipeline.open_image(replace(request, start=StartRule()), early=True) as image:
                assert image.is_early
                names = [name for name in sorted(sample.tree.rglob("file-*")) if name.is_file()]
                assert all(read_one(image, sample.tree, name) for name in names)
                assert not image.is_early


def test_the_artifacts_of_the_samples_are_used_and_a_forged_page_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with faulty_network(4, 0.0) as network:
        right, forged = make_samples(network, tmp_path, 4, small_files=60, big_files=1)

        store = tmp_path / "store"
        for sample in (right, right, forged):
            reference = f"docker://{network.host}/faults@{sample.digest}"
            request = replace(request_of(reference, store=store), start=StartRule())
            with pipeline.open_image(request) as image:
                names = [name for name in sorted(sample.tree.rglob("file-*")) if name.is_file()]
                assert all(read_one(image, sample.tree, name) for name in names)
                # What was read to its end is kept; the files may all have been read before.
                while image.start_pages is not None and not image.start_pages.is_over:
                    time.sleep(0.01)
            assert ("wrong pages" in caplog.text) == (sample is forged)
            # Damaged it is not believed.
            assert old_files.damage_start(store, sample) or sample is forged
