"""A layer that processes of their own inflate is indexed as by one process, or fails as by one."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from lamina.archive.tar import REGULAR, Entry
from lamina.archive.tar_writer import END_MARK, encode_entry, padding
from lamina.build import index_layer as module
from lamina.build.block_ring import PLACE_BYTES, PLACES, BlockRing, BrokenStreamError
from lamina.build.index_layer import IndexedLayer, index_layer
from lamina.build.layer_reader import LayerSource
from lamina.build.workers import Workers
from lamina.codec.digest import Digester
from lamina.errors import Error, FormatError, IntegrityError
from lamina.oci.manifest import Descriptor, describe
from lamina.oci.reference import parse_reference
from lamina.registry.open_repository import open_repository

TAR = "application/vnd.oci.image.layer.v1.tar"


@pytest.fixture(scope="module")
def tar() -> bytes:
    """More than the ring holds, a name that is longer than a block of it among other entries."""
    dice = random.Random(1)
    words = [dice.randbytes(7) for _ in range(300)]
    parts = []
    for number in range(40):
        data = b"".join(dice.choices(words, k=dice.randrange(1, 60_000)))
        attributes = {b"user.large": dice.randbytes(60_000)} if number == 20 else {}
        name = f"folder/file{number}".encode()
        # fmt: off
        parts += [encode_entry(Entry(name, REGULAR, 0o644, 0, 0, 1, 0, len(data), b"", 0, 0,
                                     attributes, 0)), data, padding(len(data))]
        # fmt: on
    whole = b"".join([*parts, END_MARK])
    assert len(whole) > PLACES * PLACE_BYTES
    return whole


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 6),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "none": bytes,
}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., IndexedLayer]:
    """Index bytes as a layer, beside or here."""
    monkeypatch.setattr(module, "MIN_OWN_PROCESS_BYTES", 0)
    repository = open_repository(parse_reference(f"oci:{tmp_path}/layout:latest"), write=True)

    def run(
        data: bytes, *, beside: bool, diff_id: str | None = None, said: Descriptor | None = None
    ) -> IndexedLayer:
        layer = describe(TAR, data)
        repository.push_blob(layer, io.BytesIO(data))
        read: list[int] = []
        source = LayerSource(lambda: repository, said or layer, 16 << 10, read.append)
        return index_layer(source, 32 << 10, Digester.BLAKE3, None, diff_id, beside=beside)

    return run


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_it_is_the_same(kind: str, tar: bytes, index: Callable[..., IndexedLayer]) -> None:
    data = COMPRESSIONS[kind](tar)
    diff_id = f"sha256:{hashlib.sha256(tar).hexdigest()}"
    layers = [index(data, beside=beside, diff_id=diff_id) for beside in (True, False)]
    assert layers[0] == layers[1]
    assert layers[0].scan.compression == kind
    if kind == "gzip":
        assert len(layers[0].points) > 20
        assert all(point.packed[0] for point in layers[0].points[1:])


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_failures_are_the_same(kind: str, tar: bytes, index: Callable[..., IndexedLayer]) -> None:
    good = COMPRESSIONS[kind](tar)
    cut = good[: len(good) // 2]
    for data, more in (
        (cut, {}),
        (COMPRESSIONS[kind](b"no tar" * 100_000), {}),
        (good, {"diff_id": f"sha256:{'0' * 64}"}),
    ):
        with pytest.raises((FormatError, IntegrityError)) as here:
            index(data, beside=False, **more)
        with pytest.raises(here.type) as beside:
            index(data, beside=True, **more)
        assert str(beside.value) == str(here.value)


def test_a_layer_that_is_not_there(index: Callable[..., IndexedLayer]) -> None:
    missing = describe(TAR, b"something else")
    for beside in (True, False):
        with pytest.raises(Error, match=missing.digest):
            index(b"", beside=beside, said=missing)


class _Ring:
    ring: BlockRing


def _adopt(ring: BlockRing) -> None:
    _Ring.ring = ring
    ring.become_writer()


def _write(sizes: list[int], *, end: bool) -> None:
    for number, size in enumerate(sizes):
        _Ring.ring.buffer()[:size] = bytes([number % 251]) * size
        _Ring.ring.put(size)
    if end:
        _Ring.ring.put(0)


def test_a_writer_waits_for_its_reader_and_streams_follow_each_other() -> None:
    ring = BlockRing()
    sizes = [1 + 1000 * number for number in range(5 * PLACES)]
    with Workers(1, _adopt, ring) as workers:
        ring.become_reader()
        for _ in range(2):
            written = workers.submit(_write, sizes, end=True)
            blocks = [bytes(block) for block in iter(ring.get, b"")]
            written.result()
            assert list(map(len, blocks)) == sizes
            assert [block[0] for block in blocks] == [at % 251 for at in range(len(sizes))]
    ring.close()


def test_a_writer_that_is_gone_is_noticed() -> None:
    ring = BlockRing()
    with Workers(1, _adopt, ring) as workers:
        ring.become_reader()
        workers.submit(_write, [5, 6], end=False).result()
        workers.no_more()
        assert [len(ring.get()), len(ring.get())] == [5, 6]
        with pytest.raises(BrokenStreamError):
            ring.get()
    ring.close()
