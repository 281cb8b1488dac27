"""``lamina copy``."""

from __future__ import annotations

import io
import signal
from pathlib import Path

import pytest
from tests.support.native_images import build_image, push_image
from tests.unit.registry.images import make_index

from lamina.cli import main
from lamina.errors import NotFoundError, UsageError
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.cosign_tags import push_list
from lamina.registry.open_repository import open_repository
from lamina.registry.referrers import fallback_tag, push_referrer


def test_the_platform_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push_image(build_image({b"file": b"content"}), tmp_path / "there")
    places = [f"oci:{tmp_path}/there:latest", f"oci:{tmp_path}/copied:latest"]
    assert main(["copy", "--platform", "linux/arm64", *places]) == NotFoundError.exit_code
    assert "it is a single image for linux/amd64" in capsys.readouterr().err
    assert not (tmp_path / "copied").exists()
    everything = ["copy", "--all", "--platform", "linux/amd64", *places]
    assert main(everything) == UsageError.exit_code
    assert main(["copy", "--platform", "linux/amd64", *places]) == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def attach(layout: Path, tag: str) -> None:
    """An index of Lamina's by ``subject``, and a signature under cosign's tag."""
    with open_repository(parse_reference(f"oci:{layout}:{tag}"), write=True) as place:
        image = place.resolve()
        blob = m.describe("application/vnd.example", b"text")
        place.push_blob(blob, io.BytesIO(b"text"))
        index = m.Manifest(
            schema_version=2,
            media_type=m.OCI_MANIFEST,
            artifact_type=m.NYDUS_MANIFEST_ARTIFACT,
            config=blob,
            subject=image,
        )
        push_referrer(place, m.parse_image_manifest(m.encode(index)))
        push_list(place, f"{fallback_tag(image.digest)}.sig", (blob,))


def test_what_is_left_behind_is_told_and_can_come_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push_image(build_image({b"file": b"content"}), tmp_path / "there")
    attach(tmp_path / "there", "latest")
    source = f"oci:{tmp_path}/there:latest"
    assert main(["copy", source, f"oci:{tmp_path}/one:latest"]) == 0
    said = capsys.readouterr().err
    assert "left behind: 1 index, 1 signature (--referrers takes them along)" in said
    for place in ("two", "three"):
        assert main(["copy", "--referrers", source, f"oci:{tmp_path}/{place}:latest"]) == 0
        said = capsys.readouterr().err
        assert "with 1 index, 1 signature" in said
        assert "left behind" not in said
        source = f"oci:{tmp_path}/two:latest"


def test_what_is_attached_to_the_index_of_a_platform(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_index(tmp_path / "there", "multi")
    attach(tmp_path / "there", "multi")
    source = f"oci:{tmp_path}/there:multi"
    chosen = ["copy", "--referrers", "--platform", "linux/amd64"]
    assert main([*chosen, source, f"oci:{tmp_path}/one:a"]) == 0
    said = capsys.readouterr().err
    assert "left behind: 1 index, 1 signature of the index sha256:" in said
    assert "(--all --referrers takes them along)" in said
    assert main(["copy", "--all", "--referrers", source, f"oci:{tmp_path}/all:a"]) == 0
    assert "with 1 index, 1 signature" in capsys.readouterr().err
