"""An image out of a folder of blobs, without the registry that it is called by."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.support.native_images import build_image, push_image, some_bytes
from tests.support.opening import open_image

from lamina.errors import FetchError
from lamina.http.client_options import ClientOptions
from lamina.oci.reference import parse_reference
from lamina.registry.open_repository import open_repository

FILES = {b"etc/one": some_bytes(90_000, 1), b"etc/two": b"two", b"three": some_bytes(500, 3)}
NOWHERE = "docker://127.0.0.1:1/app"
"""A registry that nobody answers for."""


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    push_image(build_image(FILES, pack_size=4096), tmp_path / "layout")
    return tmp_path / "layout"


def digest_of(layout: Path) -> str:
    with open_repository(parse_reference(f"oci:{layout}:latest")) as repository:
        return repository.resolve().digest


def flat(layout: Path) -> Path:
    """As skopeo's ``dir:`` has them."""
    folder = layout.parent / "flat"
    shutil.copytree(layout / "blobs/sha256", folder)
    return folder


@pytest.mark.parametrize("shape", [lambda x: x, lambda x: x / "blobs", flat])
def test_a_folder_is_all_that_is_needed(layout: Path, tmp_path: Path, shape) -> None:
    where, store = f"{NOWHERE}@{digest_of(layout)}", tmp_path / "store"
    folder = shape(layout)
    if folder != layout:
        shutil.move(layout / "index.json", tmp_path / "index.json")
    with open_image(where, store=store, blob_dirs=[folder]) as image:
        for path, content in FILES.items():
            with image.open(path) as file:
                assert file.read() == content


def test_a_folder_that_lies_is_passed_over(
    layout: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lying = tmp_path / "lying"
    shutil.copytree(layout, lying)
    for path in (lying / "blobs/sha256").iterdir():
        path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    where = f"oci:{layout}@{digest_of(layout)}"
    with open_image(where, store=tmp_path / "store", blob_dirs=[lying]) as image:
        for path, content in FILES.items():
            with image.open(path) as file:
                assert file.read() == content
    told = "\n".join(record.message for record in caplog.records)
    assert "has another digest; it is passed over" in told
    assert "sent damaged data" in told


def test_what_the_folder_lacks_comes_from_the_place(layout: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(layout, part)
    for path in (part / "blobs/sha256").iterdir():
        if path.stat().st_size > 10_000:
            path.unlink()
    digest = digest_of(layout)
    store = tmp_path / "store"
    with open_image(f"oci:{layout}@{digest}", store=store, blob_dirs=[part]) as image:
        assert image.open("etc/one").read() == FILES[b"etc/one"]


def test_a_tag_is_the_registrys_to_explain(layout: Path, tmp_path: Path) -> None:
    options = ClientOptions(timeout_s=5.0, attempts=1)
    with pytest.raises(FetchError):
        open_image(f"{NOWHERE}:1", store=tmp_path / "s", blob_dirs=[layout], options=options)
