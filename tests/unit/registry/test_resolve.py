"""From an index to its images: indexes in indexes, entries that say little, artifacts of a
platform.
"""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest

from lamina.errors import FormatError, NotFoundError
from lamina.oci import manifest as m
from lamina.oci.manifest import Descriptor, ImageIndex, Platform
from lamina.oci.platform import parse_platform
from lamina.oci.reference import parse_reference
from lamina.registry import resolve
from lamina.registry.layout import LayoutRepository
from lamina.registry.resolve import (
    Found,
    RepositoryDocuments,
    check_layers,
    find_image,
    find_ordinary,
    list_entries,
    read_config,
)
from tests.unit.registry.images import make_image

SOCI = "application/vnd.amazon.soci.index.v2+json"
AMD64 = Platform(os="linux", architecture="amd64")
ARM64 = Platform(os="linux", architecture="arm64")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "layout"


def writing(folder: Path) -> LayoutRepository:
    return LayoutRepository(parse_reference(f"oci:{folder}"), write=True)


def image(folder: Path, seed: int, platform: Platform | None, own: str = "") -> Descriptor:
    """An image whose entry says *platform*, and whose configuration *own* or the same."""
    made = make_image(folder, None, seed=seed, platform=own or str(platform))
    return msgspec.structs.replace(made, platform=platform)


def soci(folder: Path, platform: Platform, *, typed: bool, config: str = SOCI) -> Descriptor:
    """A second manifest of a platform, as SOCI pushes it; its entry has its type, or not."""
    with writing(folder) as repository:
        described = m.describe(config, b"{}")
        repository.push_blob(described, io.BytesIO(b"{}"))
        table = m.describe("application/octet-stream", b"not a tar")
        repository.push_blob(table, io.BytesIO(b"not a tar"))
        manifest = m.Manifest(
            schema_version=2, media_type=m.OCI_MANIFEST, config=described, layers=(table,)
        )
        pushed = repository.push_manifest(None, m.OCI_MANIFEST, m.encode(manifest))
    kind = SOCI if typed else ""
    return msgspec.structs.replace(pushed, platform=platform, artifact_type=kind)


def index(folder: Path, *entries: Descriptor) -> Descriptor:
    document = ImageIndex(schema_version=2, media_type=m.OCI_INDEX, manifests=entries)
    with writing(folder) as repository:
        return repository.push_manifest("top", m.OCI_INDEX, m.encode(document))


def best(folder: Path, platform: str = "linux/amd64") -> Found:
    with LayoutRepository(parse_reference(f"oci:{folder}:top"), write=False) as repository:
        top, data = repository.manifest()
        document, documents = m.parse_manifest(data), RepositoryDocuments(repository)
        return find_image(top, document, documents, platform, prefer="oci")


def ordinary(folder: Path, *platforms: str) -> list[tuple[str, str]]:
    """The digests and platforms that a build is about."""
    with LayoutRepository(parse_reference(f"oci:{folder}:top"), write=False) as repository:
        document = m.parse_index(repository.manifest()[1])
        wanted = [parse_platform(text) for text in platforms]
        found = find_ordinary(document, RepositoryDocuments(repository), wanted, "it")
        return [(one.descriptor.digest, str(one.descriptor.platform)) for one in found]


def test_an_index_in_an_index(folder: Path) -> None:
    one, other = image(folder, 1, AMD64), image(folder, 2, ARM64)
    index(folder, index(folder, one, other))
    assert best(folder).descriptor.digest == one.digest
    assert best(folder, "linux/arm64").descriptor.digest == other.digest
    assert ordinary(folder, "linux/arm64") == [(other.digest, "linux/arm64")]
    assert len(ordinary(folder)) == 2
    with pytest.raises(NotFoundError) as caught:
        best(folder, "linux/s390x")
    assert caught.value.hint == "it has these platforms: linux/amd64, linux/arm64"


def test_the_next_index_is_looked_into(folder: Path) -> None:
    one, other = image(folder, 1, ARM64), image(folder, 2, AMD64)
    index(folder, index(folder, one), index(folder, other))
    assert best(folder).descriptor.digest == other.digest


@pytest.mark.parametrize("says", [None, Platform(), Platform(os="linux")])
def test_where_no_platform_is_said_the_configuration_tells(
    folder: Path, says: Platform | None
) -> None:
    other = image(folder, 1, says, "linux/arm64")
    one = image(folder, 2, says, "linux/amd64")
    index(folder, other, one)
    assert best(folder).descriptor.digest == one.digest
    assert ordinary(folder, "linux/arm64") == [(other.digest, "linux/arm64")]
    assert {platform for _, platform in ordinary(folder)} == {"linux/arm64", "linux/amd64"}


def test_a_platform_that_is_said_goes_first(folder: Path) -> None:
    bare, good = image(folder, 1, None, "linux/amd64"), image(folder, 2, AMD64)
    index(folder, bare, good)
    assert best(folder).descriptor.digest == good.digest


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_an_artifact_of_a_platform_is_no_image_of_it(
    folder: Path, typed: bool, first: bool
) -> None:
    good, table = image(folder, 1, AMD64), soci(folder, AMD64, typed=typed)
    index(folder, *((table, good) if first else (good, table)))
    assert best(folder).descriptor.digest == good.digest
    assert ordinary(folder) == [(good.digest, "linux/amd64")]
    assert ordinary(folder, "linux/amd64") == [(good.digest, "linux/amd64")]


def test_what_is_no_image_is_taken_where_nothing_else_is(folder: Path) -> None:
    table = soci(folder, AMD64, typed=False)
    index(folder, table)
    assert best(folder).descriptor.digest == table.digest
    with pytest.raises(NotFoundError):
        ordinary(folder)


def test_the_type_of_the_configuration_as_that_of_the_image(folder: Path) -> None:
    entry = msgspec.structs.replace(image(folder, 1, AMD64), artifact_type=m.OCI_CONFIG)
    index(folder, entry)
    assert best(folder).descriptor.digest == entry.digest
    assert ordinary(folder) == [(entry.digest, "linux/amd64")]


def test_indexes_without_end(folder: Path) -> None:
    top = index(folder, image(folder, 1, AMD64))
    for _ in range(5):
        top = index(folder, top)
    for find in (best, ordinary):
        with pytest.raises(FormatError, match="without end"):
            find(folder)


def test_an_index_that_is_there_often_is_read_once(folder: Path) -> None:
    inner = index(folder, image(folder, 1, AMD64))
    top = ImageIndex(schema_version=2, media_type=m.OCI_INDEX, manifests=(inner,) * 5000)
    with writing(folder) as repository:
        assert len(list_entries(top, RepositoryDocuments(repository))) == 5000


def test_two_images_of_one_platform_do_not_stand_for_another(folder: Path) -> None:
    found = [image(folder, seed, AMD64) for seed in (1, 2)]
    index(folder, *found)
    assert [digest for digest, _ in ordinary(folder, "linux/amd64")] == [
        one.digest for one in found
    ]
    with pytest.raises(NotFoundError, match="some wanted platform"):
        ordinary(folder, "linux/amd64", "linux/arm64")


@pytest.mark.parametrize("leaves", [0, 50])
def test_indexes_that_list_each_other_often_are_refused(folder: Path, leaves: int) -> None:
    """Three small documents: 50 times 50 times 50 entries, and more with each level."""
    other = image(folder, 1, Platform(os="plan9", architecture="amd64"))
    top = index(folder, *(other,) * leaves)
    for _ in range(3):
        top = index(folder, *(top,) * 50)
    for find in (best, ordinary):
        with pytest.raises(FormatError, match="without end"):
            find(folder)


def test_what_is_read_below_a_reference_is_bounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "_MAX_READ_BYTES", 10_000, raising=False)
    inner = []
    for number in range(5):
        notes = {"padding": "x" * 3000, "number": str(number)}
        part = ImageIndex(schema_version=2, media_type=m.OCI_INDEX, manifests=(), annotations=notes)
        with writing(folder) as repository:
            inner.append(repository.push_manifest(None, m.OCI_INDEX, m.encode(part)))
    index(folder, *inner[:4])
    with pytest.raises(NotFoundError):
        best(folder)
    index(folder, *inner)
    for find in (best, ordinary):
        with pytest.raises(FormatError, match="without end"):
            find(folder)


@pytest.mark.parametrize("number", [0, 1, 3, 1000])
def test_a_configuration_with_another_number_of_layers(folder: Path, number: int) -> None:
    made = make_image(folder)
    with writing(folder) as repository:
        manifest = m.parse_image_manifest(repository.manifest(made)[1])
        config = read_config(repository, manifest)
    check_layers(manifest, config)
    config.rootfs.diff_ids = config.rootfs.diff_ids[:1] * number
    with pytest.raises(FormatError, match=f"2 layers, but its configuration has {number} diff_ids"):
        check_layers(manifest, config, "it")
