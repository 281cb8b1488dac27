"""Which start artifact of an image is taken, and what is none."""

from __future__ import annotations

import msgspec
import pytest

from lamina.oci.manifest import Descriptor, describe, encode, parse_image_manifest
from lamina.oci.start_manifest import (
    START_ARTIFACT,
    START_PAGES,
    StartEntry,
    StartRule,
    choose_start,
    start_entries,
    start_manifest,
)
from lamina.registry.referrers import referring_entry

IMAGE = describe("application/vnd.oci.image.manifest.v1+json", b"image")


def listed(name: str, *command: str, image: str = IMAGE.digest) -> Descriptor:
    """An entry of a list, as a registry makes it of the manifest."""
    layer = describe(START_PAGES, name.encode())
    manifest = start_manifest(IMAGE, StartEntry(name, command, image, layer))
    parsed = parse_image_manifest(encode(manifest), name)
    assert parsed.subject == IMAGE
    entry = describe(manifest.media_type, encode(manifest), parsed.annotations)
    return referring_entry(entry, parsed)


def names(*entries: Descriptor) -> list[str]:
    return [entry.name for entry in start_entries(entries, IMAGE.digest)]


def test_the_newest_comes_first_and_others_are_left_out() -> None:
    other = describe("application/vnd.oci.image.manifest.v1+json", b"signature")
    found = (listed("a"), other, listed("b"), listed("c", image="sha256:" + "0" * 64))
    assert names(*found) == ["b", "a"]
    entry = start_entries(found, IMAGE.digest)[1]
    assert entry.layer == describe(START_PAGES, b"a")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dev.lamina.start.layer", "sha256:1 1"),
        ("dev.lamina.start.layer", f"sha256:{'1' * 64} 999999999"),
        ("dev.lamina.start.layer", f"sha256:{'1' * 64} 0"),
        ("dev.lamina.start.layer", ""),
        ("dev.lamina.start.command", "{}"),
        ("dev.lamina.start.command", "[1]"),
        ("dev.lamina.start.image", ""),
    ],
)
def test_annotations_that_make_no_sense_are_no_artifact(key: str, value: str) -> None:
    right = listed("a")
    assert names(right) == ["a"]
    wrong = msgspec.structs.replace(right, annotations={**right.annotations, key: value})
    assert names(wrong) == []
    assert wrong.artifact_type == START_ARTIFACT


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (StartRule(), "server"),
        (StartRule(command=("node", "-v")), "version"),
        (StartRule(command=("node", "x.js")), "other"),
        (StartRule(command=("python",)), "server"),
        (StartRule(name="version", command=("node", "x.js")), "version"),
        (StartRule(name="none of these"), None),
    ],
)
def test_the_command_or_a_name_decides(rule: StartRule, wanted: str | None) -> None:
    entries = [listed("version", "node", "-v"), listed("other", "node", "-e"), listed("server")]
    found = choose_start(start_entries(entries, IMAGE.digest), rule)
    assert (found.name if found else None) == wanted
    assert choose_start([], rule) is None
