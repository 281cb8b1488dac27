"""Layout folders as umoci, crane, cosign and oras write them: images, and what is attached."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import NotFoundError, UsageError
from lamina.oci import manifest as m
from lamina.oci.manifest import Descriptor
from lamina.oci.reference import parse_reference
from lamina.registry.layout import LayoutRepository
from lamina.registry.referrers import list_referrers, push_referrer
from tests.unit.registry.images import make_image, make_index

KIND = "kind"
IMAGE, SIGS = (f"dev.cosignproject.cosign/{name}" for name in ("image", "sigs"))
NOTE = "application/vnd.example.note"


def opened(folder: Path, *, write: bool = False) -> LayoutRepository:
    return LayoutRepository(parse_reference(f"oci:{folder}"), write=write)


def entry(of: Descriptor, **more: Any) -> dict[str, Any]:
    return {"mediaType": of.media_type, "digest": of.digest, "size": of.size, **more}


def list_in(folder: Path, *entries: Any) -> None:
    document = {"schemaVersion": 2, "manifests": entries}
    (folder / "index.json").write_bytes(json.dumps(document).encode())


def note(folder: Path, subject: Descriptor | None) -> Descriptor:
    """A manifest that refers to another, as an entry of its own."""
    with opened(folder, write=True) as repository:
        config = m.describe(m.OCI_EMPTY, b"{}")
        repository.push_blob(config, io.BytesIO(b"{}"))
        manifest = m.Manifest(
            schema_version=2,
            media_type=m.OCI_MANIFEST,
            artifact_type=NOTE,
            config=config,
            subject=subject,
        )
        return repository.push_manifest(None, m.OCI_MANIFEST, m.encode(manifest))


def test_a_folder_that_umoci_init_made_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "blobs" / "sha256").mkdir(parents=True)
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (tmp_path / "index.json").write_text('{"schemaVersion":2,"manifests":null}')
    with opened(tmp_path) as repository, pytest.raises(NotFoundError, match="no image in it"):
        repository.resolve()
    made = make_image(tmp_path)
    with opened(tmp_path) as repository:
        assert repository.resolve().digest == made.digest


def test_entries_that_nobody_asked_for_stay_when_another_is_written(tmp_path: Path) -> None:
    made = make_image(tmp_path, "one")
    strange: list[Any] = [
        {"digest": "sha384:" + "0" * 96, "mediaType": "x/y", "size": 1},
        {"mediaType": m.OCI_MANIFEST, "annotations": None},
        {**entry(made), "platform": {}, "annotations": {m.REF_NAME: "bare"}},
        None,
    ]
    list_in(tmp_path, *strange)
    make_image(tmp_path, "two", seed=7)
    written = json.loads((tmp_path / "index.json").read_bytes())["manifests"]
    assert written[: len(strange)] == strange
    with opened(tmp_path) as repository:
        assert repository.resolve("bare").digest == made.digest


def test_an_image_with_the_type_of_its_configuration(tmp_path: Path) -> None:
    made = make_image(tmp_path)
    list_in(tmp_path, entry(made, artifactType=m.OCI_CONFIG))
    with opened(tmp_path) as repository:
        assert repository.resolve().digest == made.digest


def test_what_cosign_saves(tmp_path: Path) -> None:
    made, sigs = make_image(tmp_path, "image"), make_image(tmp_path, "sigs", seed=9)
    list_in(
        tmp_path,
        entry(sigs, artifactType=m.OCI_CONFIG, annotations={KIND: SIGS}),
        entry(made, artifactType=m.OCI_CONFIG, annotations={KIND: IMAGE}),
    )
    with opened(tmp_path) as repository:
        assert repository.resolve().digest == made.digest
        tag = made.digest.replace(":", "-") + ".sig"
        assert repository.resolve(tag).digest == sigs.digest
        for other in (sigs.digest.replace(":", "-") + ".sig", tag.replace(".sig", ".att"), "x.sig"):
            with pytest.raises(NotFoundError):
                repository.resolve(other)


def test_a_name_that_image_and_signatures_share_is_the_image_s(tmp_path: Path) -> None:
    made, sigs = make_image(tmp_path, "image"), make_image(tmp_path, "sigs", seed=9)
    list_in(
        tmp_path,
        entry(sigs, annotations={KIND: SIGS, m.REF_NAME: "r/app:1"}),
        entry(made, annotations={KIND: IMAGE, m.REF_NAME: "r/app:1"}),
    )
    with opened(tmp_path) as repository:
        assert repository.resolve("r/app:1").digest == made.digest


def test_what_oras_copies_with_all_that_refers_to_it(tmp_path: Path) -> None:
    made = make_image(tmp_path, "v1")
    attached, deeper = note(tmp_path, made), note(tmp_path, make_image(tmp_path, "other", seed=8))
    list_in(tmp_path, entry(deeper), entry(attached), entry(made))
    with opened(tmp_path) as repository:
        assert repository.resolve().digest == made.digest
        (found,) = list_referrers(repository, made.digest)
    assert (found.digest, found.artifact_type) == (attached.digest, NOTE)


def test_parts_of_an_index_that_are_entries_too(tmp_path: Path) -> None:
    top = make_index(tmp_path)
    with opened(tmp_path) as repository:
        parts = m.parse_index(repository.manifest(top)[1]).manifests
    for name in ({}, {"annotations": {m.REF_NAME: "v1"}}):
        list_in(tmp_path, *map(entry, parts), entry(top, **name))
        with opened(tmp_path) as repository:
            assert repository.resolve().digest == top.digest


def test_two_images_without_names_are_several(tmp_path: Path) -> None:
    one, two = make_image(tmp_path), make_image(tmp_path, seed=5)
    list_in(tmp_path, entry(one), entry(two))
    with opened(tmp_path) as repository, pytest.raises(UsageError, match="several images"):
        repository.resolve()


@pytest.mark.parametrize("suffix", [".sig", ".att", ".sbom"])
def test_signatures_under_a_tag_are_no_second_image(tmp_path: Path, suffix: str) -> None:
    made = make_image(tmp_path)
    make_image(tmp_path, made.digest.replace(":", "-") + suffix, seed=5)
    with opened(tmp_path) as repository:
        assert repository.resolve().digest == made.digest


def test_the_image_itself_under_the_tag_of_its_list(tmp_path: Path) -> None:
    made = make_image(tmp_path)
    name = made.digest.replace(":", "-")
    list_in(tmp_path, entry(made, annotations={m.REF_NAME: name}))
    with opened(tmp_path, write=True) as repository:
        assert repository.resolve().digest == made.digest
        assert list_referrers(repository, made.digest) == ()
        config = m.describe(m.OCI_EMPTY, b"{}")
        repository.push_blob(config, io.BytesIO(b"{}"))
        manifest = m.Manifest(schema_version=2, config=config, subject=made)
        pushed = push_referrer(repository, manifest)
        (found,) = list_referrers(repository, made.digest)
        assert found.digest == pushed.digest


def test_a_lone_artifact_is_what_the_folder_is_about(tmp_path: Path) -> None:
    made = make_image(tmp_path, "x")
    lone = note(tmp_path, None)
    list_in(tmp_path, entry(lone, artifactType=NOTE))
    with opened(tmp_path) as repository:
        assert repository.resolve().digest == lone.digest != made.digest
