"""Layers that processes read ahead: the bytes of their archives in their order, or an error."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.layers import add_blob, oci_layout

from lamina.build.image_build import Job
from lamina.build.options import ConvertOptions
from lamina.build.read_processes import MIN_LAYER_BYTES, ReadTar, reader_processes
from lamina.errors import Error, IntegrityError
from lamina.oci.manifest import OCI_LAYER_GZIP, Descriptor
from lamina.oci.reference import parse_reference
from lamina.registry.open_repository import open_repository


@pytest.fixture(scope="module")
def archives() -> list[bytes]:
    """One that is worth the processes, one that is none, one that comes after the first."""
    dice = random.Random(1)
    return [dice.randbytes(size) for size in (2 * MIN_LAYER_BYTES, 10_000, 3_000_000)]


def whole(tar: ReadTar) -> bytes:
    return b"".join(bytes(block) for block in iter(lambda: tar.read(1), b""))


def with_readers(
    folder: Path,
    archives: list[bytes],
    use: Callable[[list[int], list[ReadTar]], None],
    told: list[int],
    *,
    diff_ids: list[str] | None = None,
) -> None:
    """Call *use* with the readers' process ids and the streams of some layers."""
    layout = folder / "image"
    reference = parse_reference(oci_layout(layout, []))
    blobs = [add_blob(layout, OCI_LAYER_GZIP, gzip.compress(data, 1)) for data in archives]
    layers = [
        Descriptor(media_type=each["mediaType"], digest=each["digest"], size=each["size"])
        for each in blobs
    ]
    ids = diff_ids or ["sha256:" + hashlib.sha256(data).hexdigest() for data in archives]
    with open_repository(reference) as source:
        job = Job(source, source, layers, ConvertOptions(jobs=2), ids)
        try:
            with reader_processes(job) as readers:
                assert readers is not None
                pids = [reader.workers._workers[0].pid for reader in readers._readers]
                use(pids, list(readers.tars(len(layers), told.append)))
        finally:
            job.budget.close()
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, 0)
    if not diff_ids:
        assert sum(told) <= sum(layer.size for layer in layers)


def test_all_that_is_read_is_told(tmp_path: Path, archives: list[bytes]) -> None:
    told: list[int] = []

    def use(_pids: list[int], tars: list[ReadTar]) -> None:
        assert [whole(tar) for tar in tars] == archives

    with_readers(tmp_path, archives, use, told)
    assert sum(told) == sum(len(gzip.compress(data, 1)) for data in archives)


def test_a_reader_that_is_killed_is_an_error(tmp_path: Path, archives: list[bytes]) -> None:
    def use(pids: list[int], tars: list[ReadTar]) -> None:
        first = bytes(tars[0].read(1))
        assert archives[0].startswith(first)
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(Error, match="worker process of the conversion died"):
            whole(tars[0])
        assert whole(tars[1]) == archives[1]
        with pytest.raises(Error, match="worker process of the conversion died"):
            whole(tars[2])

    with_readers(tmp_path, archives, use, [])


def test_a_layer_of_another_diff_id_has_no_end(tmp_path: Path, archives: list[bytes]) -> None:
    def use(_pids: list[int], tars: list[ReadTar]) -> None:
        with pytest.raises(IntegrityError, match="diff_id"):
            whole(tars[0])

    with_readers(tmp_path, archives, use, [], diff_ids=["sha256:" + "0" * 64] * 3)


def test_readers_that_are_left_do_not_wait(tmp_path: Path, archives: list[bytes]) -> None:
    def use(_pids: list[int], tars: list[ReadTar]) -> None:
        tars[0].read(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_readers(tmp_path, archives, use, [])
