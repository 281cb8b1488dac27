"""Images of every kind, on every device, behind a pull-through cache that has not got them yet."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from lamina.build.convert import convert
from lamina.build.options import ConvertOptions
from lamina.content.lazy_image import LazyImage
from lamina.content.residency import pull
from lamina.oci.reference import parse_reference
from tests.integration.test_index import index
from tests.integration.test_mount_devices import DEVICES, require_device
from tests.support.cold_cache import ColdCache, cold_cache
from tests.support.layers import Item, folder, oci_layout, tar_bytes
from tests.support.opening import open_image
from tests.support.sealed import Keys, seal
from tests.support.shell import Shell

KINDS = ("native", "gzip", "zstd", "sealed")
MIB = 1 << 20
NUMBERS = range(20)


@cache
def content(number: int) -> bytes:
    return random.Random(number).randbytes(MIB + number)


@cache
def layer() -> bytes:
    """More than what a layer without access points may have, and nothing that compresses."""
    items = [Item(f"d/{number:02}", content(number)) for number in NUMBERS]
    return tar_bytes([folder("d"), *items])


class Case:
    """An image of a kind, in a layout."""

    def __init__(self, place: Path, kind: str) -> None:
        self.layout = place / "layout"
        self.keys: list[str] = []
        self.tag = "native" if kind == "native" else "sealed" if kind == "sealed" else "index"
        oci_layout(self.layout, [layer()], "zstd" if kind == "zstd" else "gzip")
        source = f"oci:{self.layout}:latest"
        if kind == "native":
            convert(
                parse_reference(source),
                parse_reference(f"oci:{self.layout}:native"),
                ConvertOptions(jobs=1),
            )
        elif kind == "sealed":
            self.keys = [Keys.make(place).private]
            seal(source, f"oci:{self.layout}:sealed")
        else:
            index(source)

    def open(self, server: ColdCache, store: Path) -> LazyImage:
        reference = f"docker://{server.registry.host}/app:{self.tag}"
        return open_image(reference, store=store, decryption_keys=self.keys)


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def server(case: Case) -> Iterator[ColdCache]:
    with cold_cache(case.layout) as server:
        yield server


def test_reads_and_pulls_of_every_kind(case: Case, server: ColdCache, tmp_path: Path) -> None:
    with case.open(server, tmp_path / "store") as image:
        for number in (19, 3, 11):
            assert image.open(f"/d/{number:02}").read() == content(number)
        pull(image)
        for number in NUMBERS:
            assert image.open(f"/d/{number:02}").read() == content(number)
        large = [blob for blob in image.blobs if blob.table.entry.compressed_size > MIB]
        assert large
        # One was found by what was given up, one is the pass; other connections may have asked.
        for blob in large:
            answers = server.whole_answers.count(f"sha256:{blob.blob_id}")
            assert 2 <= answers <= 1 + image.blobs[0].source.policy.attempts + 4
            assert f"sha256:{blob.blob_id}" in server.kept
    warm = len(server.whole_answers)
    with case.open(server, tmp_path / "other") as image:
        assert image.open("/d/07").read() == content(7)
    assert len(server.whole_answers) == warm


@pytest.mark.kernel
@pytest.mark.parametrize("device", DEVICES)
def test_programs_read_a_mount(case: Case, server: ColdCache, shell: Shell, device: str) -> None:
    require_device(device)
    if case.tag != "native" and device != "fuse-blob":
        pytest.skip("the other kinds are read on one device")
    keys = [word for key in case.keys for word in ("--decryption-key", key)]
    reference = f"docker://{server.registry.host}/app:{case.tag}"
    shell("mount", "--device", device, *keys, reference, "mnt")
    for number in (19, 0, 7):
        data = (shell.folder / "mnt" / "d" / f"{number:02}").read_bytes()
        assert hashlib.sha256(data).digest() == hashlib.sha256(content(number)).digest()
    shell("umount", "mnt")


def test_the_verbs_that_fetch(server: ColdCache, case: Case, shell: Shell) -> None:
    keys = [word for key in case.keys for word in ("--decryption-key", key)]
    reference = f"docker://{server.registry.host}/app:{case.tag}"
    done = shell("prefetch", *keys, "--json", reference, "/d/18")
    assert json.loads(done.stdout)["files"] == 1
    assert "read once to the end" in done.stderr
    shell("pull", *keys, reference)
    lines = shell("coverage", *keys, "--json", reference).stdout.splitlines()
    for blob in map(json.loads, lines):
        assert blob["ready_chunks"] == blob["chunks"]
