"""OCI layout folders: reading, atomic writing, several writers, damage."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lamina.errors import (
    FetchError,
    FormatError,
    IntegrityError,
    NotFoundError,
    StoreError,
    UnsupportedError,
    UsageError,
)
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.open_repository import open_repository
from lamina.registry.repository import Repository
from tests.unit.registry.images import make_image, make_index, noise


def opened(path: Path, tag: str = "", *, write: bool = False) -> Repository:
    return open_repository(parse_reference(f"oci:{path}{tag}"), write=write)


def entries(path: Path) -> list[tuple[str | None, str]]:
    document = json.loads((path / "index.json").read_bytes())
    return [
        ((entry.get("annotations") or {}).get(m.REF_NAME), entry["digest"])
        for entry in document["manifests"]
    ]


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return tmp_path / "layout"


def test_write_and_read(layout: Path) -> None:
    descriptor = make_image(layout, "v1")
    with opened(layout, ":v1") as repository:
        found, data = repository.manifest()
        assert found.digest == descriptor.digest
        manifest = m.parse_image_manifest(data)
        layer = manifest.layers[0]
        with repository.open_blob(layer) as stream:
            content = stream.read()
        assert len(content) == layer.size
        assert repository.read_range(layer.digest, 10, 100) == content[10:110]
        assert repository.read_range(layer.digest, layer.size, 0) == b""
        assert repository.has_blob(layer.digest, layer.size)
        assert not repository.has_blob(layer.digest, layer.size + 1)
    assert json.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert not [name for name in os.listdir(layout) if name.startswith(".")]


def test_resolve(layout: Path) -> None:
    first, second = make_image(layout, "v1", seed=1), make_image(layout, "v2", seed=2)
    with opened(layout) as repository:
        assert repository.resolve("v1").digest == first.digest
        assert repository.resolve(second.digest).digest == second.digest
        with pytest.raises(UsageError, match="several images") as several:
            repository.resolve()
        assert several.value.hint is not None
        assert "v1, v2" in several.value.hint
        with pytest.raises(NotFoundError, match="no image 'v3'"):
            repository.resolve("v3")
        with pytest.raises(NotFoundError, match="no blob"):
            repository.resolve("sha256:" + "0" * 64)
    with opened(layout, f"@{first.digest}") as repository:
        assert repository.resolve().digest == first.digest


def test_the_only_image_needs_no_tag(layout: Path) -> None:
    descriptor = make_image(layout, "v1")
    with opened(layout) as repository:
        assert repository.resolve().digest == descriptor.digest


def test_a_replaced_tag_keeps_the_others(layout: Path) -> None:
    first = make_image(layout, "v1", seed=1)
    make_image(layout, "v2", seed=2)
    third = make_image(layout, "v2", seed=3)
    assert entries(layout) == [("v1", first.digest), ("v2", third.digest)]


def test_foreign_fields_of_the_index_stay(layout: Path) -> None:
    make_image(layout, "v1")
    document = json.loads((layout / "index.json").read_bytes())
    document["annotations"] = {"x": "y"}
    document["manifests"][0]["foreign"] = [1]
    (layout / "index.json").write_text(json.dumps(document))
    make_image(layout, "v2", seed=2)
    document = json.loads((layout / "index.json").read_bytes())
    assert document["annotations"] == {"x": "y"}
    assert document["manifests"][0]["foreign"] == [1]


def test_parts_of_an_index_are_not_images_of_their_own(layout: Path) -> None:
    descriptor = make_index(layout, "multi")
    assert entries(layout) == [("multi", descriptor.digest)]
    with opened(layout, ":multi") as repository:
        index = m.parse_index(repository.manifest()[1])
        for entry in index.manifests:
            assert repository.manifest(entry)[0] == entry
            assert repository.resolve(entry.digest).media_type == m.OCI_MANIFEST


def test_wrong_bytes_leave_nothing(layout: Path) -> None:
    data = noise(3 << 20)
    descriptor = m.describe(m.OCI_LAYER, data)
    with opened(layout, write=True) as repository:
        for wrong in (data[:-1] + b"x", data + b"x", data[:-1], b""):
            with pytest.raises(IntegrityError):
                repository.push_blob(descriptor, io.BytesIO(wrong))
            assert not repository.has_blob(descriptor.digest, descriptor.size)
        moved: list[int] = []
        repository.push_blob(descriptor, io.BytesIO(data), moved.append)
        assert (sum(moved), len(moved)) == (len(data), 3)
        repository.push_blob(descriptor, io.BytesIO(b"not read"), moved.append)
        assert sum(moved) == 2 * len(data)
    assert os.listdir(layout / "blobs" / "sha256") == [descriptor.hex]
    assert set(os.listdir(layout)) == {"blobs", "index.json", "oci-layout"}


def test_a_damaged_blob_of_another_size_is_replaced(layout: Path) -> None:
    data = noise(1000)
    descriptor = m.describe(m.OCI_LAYER, data)
    with opened(layout, write=True) as repository:
        repository.push_blob(descriptor, io.BytesIO(data))
        path = layout / "blobs" / "sha256" / descriptor.hex
        path.write_bytes(data[:10])
        repository.push_blob(descriptor, io.BytesIO(data))
        assert path.read_bytes() == data


@pytest.mark.parametrize("damage", ["flip", "cut", "grow"])
def test_a_damaged_blob_is_an_integrity_error(layout: Path, damage: str) -> None:
    make_image(layout)
    with opened(layout) as repository:
        descriptor, raw = repository.manifest()
        layer = m.parse_image_manifest(raw).layers[0]
        for blob in (descriptor, layer):
            path = layout / "blobs" / "sha256" / blob.hex
            data = bytearray(path.read_bytes())
            if damage == "flip":
                data[-1] ^= 1
            path.write_bytes({"flip": data, "cut": data[:-1], "grow": data + b"x"}[damage])
        with pytest.raises(IntegrityError):
            repository.manifest()
        with repository.open_blob(layer) as stream, pytest.raises(IntegrityError):
            while stream.read(100):
                pass


def test_a_folder_in_place_of_a_blob_is_a_fetch_error(layout: Path) -> None:
    make_image(layout, "v1")
    with opened(layout, ":v1") as repository:
        layer = m.parse_image_manifest(repository.manifest()[1]).layers[0]
        path = layout / "blobs" / layer.digest.replace(":", "/")
        path.unlink()
        path.mkdir()
        # Some file systems give an empty folder no size at all.
        (path / "file").touch()
        with repository.open_blob(layer) as stream, pytest.raises(FetchError, match=str(path)):
            stream.read()
        with pytest.raises(FetchError, match=str(path)):
            repository.read_range(layer.digest, 0, 1)


def test_pipes_keep_nobody_waiting(layout: Path) -> None:
    descriptor = make_image(layout, "v1")
    with opened(layout, ":v1") as repository:
        layer = m.parse_image_manifest(repository.manifest()[1]).layers[0]
        blob = layout / "blobs/sha256" / layer.hex
        blob.unlink()
        os.mkfifo(blob)
        with pytest.raises((FetchError, IntegrityError)), repository.open_blob(layer) as stream:
            stream.read()
        with pytest.raises(FetchError):
            repository.read_range(layer.digest, 0, 1)
        manifest = layout / "blobs/sha256" / descriptor.hex
        manifest.unlink()
        os.mkfifo(manifest)
        with pytest.raises((FetchError, IntegrityError)):
            repository.manifest()
    (layout / "index.json").unlink()
    os.mkfifo(layout / "index.json")
    writer = os.open(layout / "index.json", os.O_RDWR | os.O_NONBLOCK)
    try:
        with opened(layout, ":v1") as repository, pytest.raises(FormatError):
            repository.manifest()
    finally:
        os.close(writer)


def test_ranges_outside_a_blob(layout: Path) -> None:
    make_image(layout)
    with opened(layout) as repository:
        layer = m.parse_image_manifest(repository.manifest()[1]).layers[0]
        for offset, size in ((0, layer.size + 1), (layer.size, 1), (-1, 1), (0, -1)):
            with pytest.raises(FetchError):
                repository.read_range(layer.digest, offset, size)
        with pytest.raises(NotFoundError):
            repository.read_range("sha256:" + "0" * 64, 0, 1)


def test_reading_only(layout: Path) -> None:
    make_image(layout)
    with opened(layout) as repository:
        descriptor, data = repository.manifest()
        with pytest.raises(UnsupportedError, match="reading only"):
            repository.push_manifest("x", descriptor.media_type, data)
        with pytest.raises(UnsupportedError, match="reading only"):
            repository.push_blob(descriptor, io.BytesIO(data))


def test_manifests_are_checked_before_they_are_stored(layout: Path) -> None:
    with opened(layout, write=True) as repository:
        with pytest.raises(FormatError):
            repository.push_manifest("x", m.OCI_MANIFEST, b"{}")
        make_image(layout)
        data = repository.manifest("latest")[1]
        with pytest.raises(FormatError, match="pushed as"):
            repository.push_manifest("x", m.OCI_INDEX, data)
    assert [name for name, _ in entries(layout)] == ["latest"]


def test_what_is_no_layout(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no OCI layout"):
        opened(tmp_path / "absent")
    (tmp_path / "other").write_text("x")
    with pytest.raises(NotFoundError, match="oci-layout"):
        opened(tmp_path)
    with pytest.raises(FormatError, match="neither empty nor"):
        opened(tmp_path, write=True)
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')
    with pytest.raises(FormatError, match="unknown version"):
        opened(tmp_path)
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (tmp_path / "index.json").write_text("[")
    with opened(tmp_path) as repository, pytest.raises(FormatError, match="malformed"):
        repository.resolve()
    with pytest.raises(StoreError):
        opened(tmp_path / "other" / "below", write=True)


def test_writers_side_by_side(layout: Path) -> None:
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for turn in range(5):
                make_image(layout, f"tag-{number}", seed=10 * number + turn)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(name or "" for name, _ in entries(layout)) == [f"tag-{n}" for n in range(4)]


def test_files_of_dead_writers_are_removed(layout: Path) -> None:
    make_image(layout)
    stale, fresh = layout / ".lamina-00", layout / ".lamina-11"
    for path in (stale, fresh):
        path.write_bytes(b"x")
    os.utime(stale, (1, 1))
    with opened(layout, write=True):
        assert not stale.exists()
        assert fresh.exists()


def test_a_manifest_of_a_gigabyte_is_not_read(layout: Path) -> None:
    make_image(layout)
    document = json.loads((layout / "index.json").read_bytes())
    entry = document["manifests"][0]
    os.truncate(layout / "blobs" / "sha256" / entry["digest"][7:], 1 << 30)
    with opened(layout) as repository:
        with pytest.raises(FormatError, match="more than"):
            repository.manifest()
        entry["size"] = 1 << 30
        (layout / "index.json").write_text(json.dumps(document))
        with pytest.raises(FormatError, match="more than"):
            repository.manifest()


def test_a_folder_needs_no_network() -> None:
    """Work on folders alone does not pay for importing what talks to registries."""
    script = "import sys, lamina.registry.layout; print('socket' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
