"""What a tag means while the registry says nothing, and when it says no."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.fake_registry import FakeRegistry, fake_registry, stall, status
from tests.support.native_images import build_image, push_image, some_bytes
from tests.support.opening import open_image

from lamina.cli import main
from lamina.errors import AuthError, FetchError, NotFoundError
from lamina.opening import version

FILES = {b"one": some_bytes(9000, 1)}
MANY = 1000


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FakeRegistry]:
    push_image(build_image(FILES), tmp_path / "layout")
    with fake_registry() as found:
        words = ["-q", "copy", f"oci:{tmp_path}/layout:latest", f"docker://{found.host}/x:1"]
        assert main(words) == 0
        yield found


def opened(registry: FakeRegistry, tmp_path: Path, **keywords: object) -> str:
    """Open the image and return its digest."""
    reference = f"docker://{registry.host}/x:1"
    with open_image(reference, store=tmp_path / "store", **keywords) as image:
        assert image.origin is not None
        assert image.origin.reference is not None
        assert image.origin.reference.tag == "1"
        return str(image.origin.reference.digest)


def manifests_asked(registry: FakeRegistry) -> int:
    return sum("/manifests/" in each.path for each in registry.seen)


def test_a_registry_that_says_nothing_is_not_waited_for(
    registry: FakeRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = opened(registry, tmp_path)
    monkeypatch.setattr(version, "ASK_S", 0.1)
    registry.rule("GET", "/v2/", stall(30), MANY)
    with caplog.at_level(logging.WARNING, "lamina"):
        assert opened(registry, tmp_path) == before
    (record,) = caplog.records
    assert "is opened as it was last known here" in record.message
    assert "did not answer in time" in record.message


@pytest.mark.parametrize("pull", ["missing", "never"])
def test_who_does_not_want_to_ask_does_not_ask(
    registry: FakeRegistry, tmp_path: Path, pull: str
) -> None:
    before = opened(registry, tmp_path)
    asked = manifests_asked(registry)
    assert opened(registry, tmp_path, pull=pull) == before
    assert manifests_asked(registry) == asked


def test_an_overloaded_registry_is_one_that_does_not_answer(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = opened(registry, tmp_path)
    monkeypatch.setattr(version, "ASK_S", 0.1)
    registry.rule("GET", "/manifests/", status(503), MANY)
    assert opened(registry, tmp_path) == before
    with pytest.raises(FetchError, match="503"):
        opened(registry, tmp_path, pull="always")


@pytest.mark.parametrize(
    ("code", "kind"), [(401, AuthError), (403, AuthError), (404, NotFoundError)]
)
def test_no_is_an_answer(
    registry: FakeRegistry, tmp_path: Path, code: int, kind: type[Exception]
) -> None:
    opened(registry, tmp_path)
    registry.rule("GET", "/manifests/", status(code), MANY)
    with pytest.raises(kind):
        opened(registry, tmp_path)


def test_what_is_not_here_is_asked_for_with_all_patience(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "ASK_S", 0.0)
    opened(registry, tmp_path, pull="missing")
    with pytest.raises(NotFoundError, match="is not on this node"):
        opened(registry, tmp_path / "other", pull="never")


def test_what_was_known_of_metadata_that_is_gone_does_not_count(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    opened(registry, tmp_path)
    for path in (tmp_path / "store/metadata/sha256").iterdir():
        path.unlink()
    with pytest.raises(NotFoundError, match="is not on this node"):
        opened(registry, tmp_path, pull="never")
    opened(registry, tmp_path, pull="missing")
