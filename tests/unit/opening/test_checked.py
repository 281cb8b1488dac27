"""Nobody sees anything of a tree that was not checked, and it is checked once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.support.cyclic import cyclic_image, push_cyclic
from tests.support.native_images import build_image, push_image
from tests.support.opened_blobs import OpenedBlobs
from tests.support.opening import open_image

import lamina
from lamina.build.unpack import unpack_to_folder
from lamina.cli import main
from lamina.content.lazy_image import LazyImage
from lamina.erofs import check
from lamina.erofs.layout import CHECK_VERSION
from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError
from lamina.fsspec import LaminaFileSystem
from lamina.store.node import NodeStore
from lamina.store.records import IMAGE

DAMAGED = FormatError.exit_code
DOORS = (
    ("ls", "-R", "IMAGE"),
    ("ls", "IMAGE", "/top"),
    ("cat", "IMAGE", "/top"),
    ("stat", "IMAGE", "/top"),
    ("coverage", "IMAGE"),
    ("pull", "IMAGE"),
    ("prefetch", "IMAGE", "/top"),
    ("unpack", "IMAGE", "./out"),
    ("unpack", "IMAGE", "oci:out:latest"),
    ("check", "IMAGE"),
    ("check", "IMAGE", "IMAGE"),
)


@pytest.fixture
def cyclic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LAMINA_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return push_cyclic(tmp_path)


@pytest.mark.parametrize("door", DOORS, ids=" ".join)
def test_every_verb_refuses_a_cyclic_tree(
    cyclic: str, door: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for _ in range(2):
        assert main([cyclic if word == "IMAGE" else word for word in door]) == DAMAGED
        assert "it has directory" in capsys.readouterr().err
    assert not any(NodeStore(tmp_path / "store").records.each(IMAGE))
    assert not list(tmp_path.glob("out/*"))


def test_programs_get_an_error_too(cyclic: str) -> None:
    opens: tuple[Callable[[], object], ...] = (
        lambda: lamina.open(cyclic),
        lambda: LaminaFileSystem(cyclic).ls("/"),
    )
    for attempt in opens:
        with pytest.raises(FormatError, match="it has directory"):
            attempt()


def test_what_an_older_version_let_pass_is_checked(cyclic: str, tmp_path: Path) -> None:
    """As after an upgrade: the files are here, and a record that says nothing of a check."""
    store = NodeStore(tmp_path / "store")
    push_image(build_image({b"f": b"1"}), tmp_path / "good")
    open_image(f"oci:{tmp_path / 'good'}:latest", store=store).close()
    ((digest, files),) = store.records.each(IMAGE)
    assert files.check == CHECK_VERSION
    bootstrap = store.put_metadata(cyclic_image().bootstrap)
    store.records.write(IMAGE, digest, replace(files, bootstrap=bootstrap, check=0))
    with pytest.raises(FormatError, match="it has directory"):
        open_image(f"oci:{tmp_path / 'good'}:latest", store=store)


def test_a_tree_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    real = check.check_bootstrap

    def count(buffer: memoryview) -> None:
        checked.append(len(buffer))
        real(buffer)

    monkeypatch.setattr(check, "check_bootstrap", count)
    push_image(build_image({b"f": b"1"}), tmp_path / "good")
    reference, store = f"oci:{tmp_path / 'good'}:latest", NodeStore(tmp_path / "store")
    for _ in range(3):
        open_image(reference, store=store).close()
    assert len(checked) == 1

    ((digest, files),) = store.records.each(IMAGE)
    store.records.write(IMAGE, digest, replace(files, check=CHECK_VERSION - 1))
    for _ in range(3):
        open_image(reference, store=store).close()
    assert len(checked) == 2


def test_unpacking_a_tree_that_nobody_checked_ends(tmp_path: Path) -> None:
    image = LazyImage(Bootstrap(cyclic_image().bootstrap), OpenedBlobs())
    with pytest.raises(FormatError, match="another name"):
        unpack_to_folder(image, tmp_path / "out")
