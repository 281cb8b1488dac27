"""Start artifacts by somebody who may push to a repository and wants programs to read other bytes.

Whatever is attached, to an image that is pinned, tagged, demanded by a policy, indexed or sealed:
what is read is what is read without it, and what it costs is bounded.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from lamina.blob import start_artifact
from lamina.blob.start_artifact import (
    PREFIX_BYTES,
    FrameContent,
    PageRange,
    encode,
    open_frame,
    parse_prefix,
    parse_tables,
)
from lamina.blob.start_seal import SealedStart, seal_label, seal_start
from lamina.build.convert import convert
from lamina.build.index import index_image
from lamina.build.options import ConvertOptions
from lamina.build.start_attach import attach_start
from lamina.build.start_profile import Profile, ProfileLine
from lamina.content.lazy_image import LazyImage
from lamina.oci.manifest import EMPTY, OCI_MANIFEST, Descriptor, describe
from lamina.oci.reference import parse_reference
from lamina.oci.start_manifest import (
    MAX_START_BYTES,
    START_PAGES,
    StartEntry,
    StartRule,
    start_manifest,
)
from lamina.opening.find_start import FoundStart
from lamina.opening.open_image import open_image
from lamina.opening.request import request_of
from lamina.opening.start_stream import StartStream
from lamina.registry.open_repository import open_repository
from lamina.registry.referrers import push_referrer
from tests.support.sealed import Keys, make_source, seal

SIZE = 900_000
COMMAND = ("/bin/program",)
PROFILE = Profile(
    (
        ProfileLine(b"/bin/program", ((0, 3), (17, 18), (32, 90), (219, 220))),
        ProfileLine(b"/lib/one", ((0, 2), (48, 49))),
        ProfileLine(b"/etc/passwd"),
    ),
    COMMAND,
)
KINDS = ("tagged", "pinned", "guarded", "indexed", "sealed", "early")


def noise(size: int, seed: int) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(size)


def files(seed: int) -> dict[str, bytes]:
    return {
        "bin/program": noise(SIZE, seed),
        "lib/one": noise(200_001, seed + 1),
        "etc/passwd": noise(700, seed + 2),
        "other": noise(300_000, seed + 3),
    }


class Target(NamedTuple):
    """An image, how it is opened, and who attacks it."""

    reference: str
    options: dict[str, Any]
    content: dict[str, bytes]
    early: bool = False
    """Whether its metadata layer is not waited for."""

    def open(self, store: Path, name: str | None = None) -> LazyImage:
        """Open it with the artifact of that name, or with none."""
        request = request_of(self.reference, store=store, **self.options)
        rule = StartRule(name=name) if name else None
        return open_image(replace(request, start=rule), early=self.early)


def make_target(kind: str, folder: Path, seed: int = 1) -> Target:
    """Make an image of this kind with an artifact of its own making."""
    content = files(seed)
    source = make_source(folder / "source", (content,))
    reference = f"oci:{folder / 'image'}:app"
    options: dict[str, Any] = {}
    if kind == "sealed":
        keys = Keys.make(folder)
        seal(source, reference)
        options["decryption_keys"] = [keys.private]
    elif kind == "indexed":
        from lamina.registry.copy import copy

        with (
            open_repository(parse_reference(source)) as origin,
            open_repository(parse_reference(reference), write=True) as repository,
        ):
            copy(origin, repository)
        index_image(parse_reference(reference))
    else:
        convert(parse_reference(source), parse_reference(reference), ConvertOptions(jobs=1))
    if kind == "pinned":
        with open_repository(parse_reference(reference)) as repository:
            reference = f"oci:{folder / 'image'}@{repository.resolve().digest}"
    if kind == "guarded":
        policy = folder / "policy.json"
        policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        options["policy"] = policy
    return Target(reference, options, content, kind == "early")


@pytest.fixture(scope="module", params=KINDS)
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Target:
    return make_target(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMINA_START_WAIT_S", "100")


class Artifact(NamedTuple):
    """What is in an artifact, to be changed."""

    digest: bytes
    blob_ids: tuple[str, ...]
    paths: tuple[bytes, ...]
    frames: list[FrameContent]

    def encoded(self) -> bytes:
        return encode(*self)


def good_artifact(target: Target, store: Path) -> tuple[Artifact, LazyImage]:
    """Attach the right artifact, and return what is in it, and the image, still open."""
    where = parse_reference(target.reference)
    image = target.open(store)
    with open_repository(where, write=True) as repository:
        attached = attach_start(repository, image, PROFILE, "program")
        manifest = repository.manifest(attached.digest)[1]
        layer = json.loads(manifest)["layers"][0]
        with repository.open_blob(describe_layer(layer)) as stream:
            data = b"".join(iter(lambda: stream.read(1 << 20), b""))
    if image.start_secret is not None:
        binding = bytes.fromhex(str(image.origin.reference.digest)[7:])  # type: ignore[union-attr]
        opened = SealedStart(io.BytesIO(data), len(data), image.start_secret, binding)
        data = b"".join(iter(opened.read, b""))
    return decoded(data), image


def describe_layer(layer: dict[str, Any]) -> Descriptor:
    return Descriptor(media_type=layer["mediaType"], digest=layer["digest"], size=layer["size"])


def decoded(data: bytes) -> Artifact:
    prefix = parse_prefix(data[:PREFIX_BYTES])
    start = PREFIX_BYTES + prefix.stored_bytes
    tables = parse_tables(prefix, data[PREFIX_BYTES:start])
    frames = []
    for frame in tables.frames:
        siblings, pages = open_frame(frame, data[start : start + frame.stored_bytes])
        start += frame.stored_bytes
        frames.append(FrameContent(bytes(siblings), bytes(pages), frame.pages, frame.files))
    return Artifact(prefix.manifest_digest, tables.blob_ids, tables.paths, frames)


def changed_pages(artifact: Artifact) -> bytes:
    frames = [each._replace(data=bytes(len(each.data))) for each in artifact.frames]
    return artifact._replace(frames=frames).encoded()


def one_bit(artifact: Artifact) -> bytes:
    first = bytearray(artifact.frames[0].data)
    first[4097] ^= 1
    frames = [artifact.frames[0]._replace(data=bytes(first)), *artifact.frames[1:]]
    return artifact._replace(frames=frames).encoded()


def forged_siblings(artifact: Artifact) -> bytes:
    frames = [each._replace(siblings=noise(len(each.siblings), 9)) for each in artifact.frames]
    return artifact._replace(frames=frames).encoded()


def moved(artifact: Artifact) -> bytes:
    """Right pages in places of others."""
    first = artifact.frames[0]
    ranges = [part._replace(first=part.first + 100) for part in first.pages]
    frames = [first._replace(pages=tuple(ranges)), *artifact.frames[1:]]
    return artifact._replace(frames=frames).encoded()


def overlapping(artifact: Artifact) -> bytes:
    """The same pages twice, the second time others."""
    first = artifact.frames[0]
    frames = [first, first._replace(data=bytes(len(first.data))), *artifact.frames[1:]]
    return artifact._replace(frames=frames).encoded()


def huge_claim(artifact: Artifact) -> bytes:
    """More pages than any reader keeps."""
    first = artifact.frames[0]
    ranges = (PageRange(0, 0, start_artifact.MAX_PAGES + 1),)
    return artifact._replace(frames=[first._replace(pages=ranges)]).encoded()


def bombs(artifact: Artifact) -> bytes:
    """256 MiB of zeros in a few kilobytes, for pages that are not zeros."""
    pages = start_artifact.MAX_FRAME_BYTES // 4096 - 1
    frames = [
        FrameContent(b"", bytes(pages * 4096), (PageRange(0, number * pages, pages),), ())
        for number in range(15)
    ]
    return artifact._replace(frames=frames).encoded()


def of_no_file(artifact: Artifact) -> bytes:
    """Pages far behind the end of the blob."""
    first = artifact.frames[0]
    far = (1 << 32) - sum(part.pages for part in first.pages) - 1
    ranges = (PageRange(0, far, sum(part.pages for part in first.pages)),)
    return artifact._replace(frames=[first._replace(pages=ranges)]).encoded()


def other_blob(artifact: Artifact) -> bytes:
    ids = tuple(hashlib.sha256(name.encode()).hexdigest() for name in artifact.blob_ids)
    return artifact._replace(blob_ids=ids).encoded()


def cut(artifact: Artifact) -> bytes:
    data = artifact.encoded()
    return data[: len(data) // 2]


def longer(artifact: Artifact) -> bytes:
    return artifact.encoded() + noise(100_000, 3)


def garbage(_artifact: Artifact) -> bytes:
    return noise(500_000, 77)


def random_bits(seed: int, artifact: Artifact) -> bytes:
    chance = random.Random(seed)
    data = bytearray(artifact.encoded())
    for _ in range(chance.randrange(1, 8)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


ATTACKS: dict[str, Callable[[Artifact], bytes]] = {
    attack.__name__: attack
    for attack in (
        *(changed_pages, one_bit, forged_siblings, moved, overlapping, huge_claim, bombs),
        *(of_no_file, other_blob, cut, longer, garbage),
    )
} | {f"random_bits_{seed}": partial(random_bits, seed) for seed in range(6)}


def attach(
    target: Target, image: LazyImage, name: str, data: bytes, layer: Descriptor | None = None
) -> None:
    """Attach any bytes under a name that is looked for, as whoever may push can."""
    origin = image.origin
    assert origin is not None
    assert origin.manifest is not None
    assert origin.reference is not None
    opened = str(origin.reference.digest)
    if layer is None:
        layer = describe(START_PAGES, data)
    entry = StartEntry(name, COMMAND, opened, layer)
    if image.start_secret is not None:
        label = seal_label(entry.open_label, image.start_secret, bytes.fromhex(opened[7:]))
        entry = entry._replace(label=label)
    subject = origin.manifest.subject or Descriptor(
        media_type=OCI_MANIFEST, digest=opened, size=len(origin.manifest.raw)
    )
    manifest = start_manifest(subject, entry)
    with open_repository(parse_reference(target.reference), write=True) as repository:
        if layer.size == len(data):
            repository.push_blob(layer, io.BytesIO(data))
        repository.push_blob(manifest.config, io.BytesIO(EMPTY))
        push_referrer(repository, manifest)


def read_profile(image: LazyImage, content: dict[str, bytes]) -> None:
    """Read what the artifact is for, page by page."""
    for line in PROFILE.lines:
        data = content[line.path[1:].decode()]
        stat = image.stat(line.path)
        for first, stop in line.spans or ((0, 1),):
            for start in range(first * 4096, stop * 4096, 4096):
                assert image.pread(stat, start, 4096) == data[start : start + 4096]


def read_all(image: LazyImage, content: dict[str, bytes]) -> None:
    """Read that first, and then every file in parts."""
    read_profile(image, content)
    for name, data in content.items():
        stat = image.stat(f"/{name}")
        for start in range(0, len(data), 60_000):
            assert image.pread(stat, start, 60_000) == data[start : start + 60_000]


@pytest.fixture
def opened_artifact(target: Target, tmp_path: Path) -> Iterator[tuple[Artifact, LazyImage]]:
    artifact, image = good_artifact(target, tmp_path / "maker")
    with image:
        yield artifact, image


def sealed_for(image: LazyImage, data: bytes) -> bytes:
    """Of a sealed image: by somebody who has its keys, so that more than the tag has to hold."""
    if image.start_secret is None:
        return data
    origin = image.origin
    assert origin is not None
    assert origin.reference is not None
    return seal_start(data, image.start_secret, bytes.fromhex(str(origin.reference.digest)[7:]))


def test_the_right_artifact_is_used(
    target: Target, opened_artifact: tuple[Artifact, LazyImage], tmp_path: Path
) -> None:
    with target.open(tmp_path / "store", "program") as image:
        read_profile(image, target.content)
        assert image.statistics.fetched_bytes == 0
        read_all(image, target.content)
        assert image.statistics.fetched_bytes > 0


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_byte_is_wrong_and_the_cost_is_bounded(
    target: Target, opened_artifact: tuple[Artifact, LazyImage], tmp_path: Path, attack: str
) -> None:
    artifact, made = opened_artifact
    attach(target, made, attack, sealed_for(made, ATTACKS[attack](artifact)))
    with target.open(tmp_path / "store", attack) as image:
        read_all(image, target.content)
        cost = image.statistics.fetched_bytes
    # What a reader finds in the store afterwards is right as well.
    with target.open(tmp_path / "store") as image:
        read_all(image, target.content)
    with target.open(tmp_path / "plain") as image:
        read_all(image, target.content)
        # Nothing is fetched twice because of it.
        assert cost <= image.statistics.fetched_bytes * 1.05


def test_the_artifact_of_another_image_is_none(
    target: Target,
    opened_artifact: tuple[Artifact, LazyImage],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """An older version of the same image, whose artifact says that it is of this one."""
    _, made = opened_artifact
    kind = next(kind for kind in KINDS if kind in request.node.name)
    (tmp_path / "older").mkdir()
    older = make_target(kind, tmp_path / "older", seed=5)
    other, older_image = good_artifact(older, tmp_path / "older-store")
    older_image.close()
    origin = made.origin
    assert origin is not None
    assert origin.reference is not None
    digest = bytes.fromhex(str(origin.reference.digest)[7:])
    for ids in (other.blob_ids, tuple(entry.blob_id for entry in made.bootstrap.blobs)):
        forged = other._replace(digest=digest, blob_ids=ids).encoded()
        attach(target, made, "older", sealed_for(made, forged))
        with target.open(tmp_path / f"store-{ids[0]}", "older") as image:
            read_all(image, target.content)
            cost = image.statistics.fetched_bytes
        with target.open(tmp_path / f"plain-{ids[0]}") as image:
            read_all(image, target.content)
            assert cost == image.statistics.fetched_bytes


def test_one_that_claims_to_be_too_large_is_not_asked_for(
    target: Target, opened_artifact: tuple[Artifact, LazyImage], tmp_path: Path
) -> None:
    _, made = opened_artifact
    big = Descriptor(media_type=START_PAGES, digest="sha256:" + "7" * 64, size=MAX_START_BYTES + 1)
    attach(target, made, "program", b"", big)
    with target.open(tmp_path / "store", "program") as image:
        # The right one, which was attached before under that name, is still found.
        read_profile(image, target.content)
        assert image.statistics.fetched_bytes == 0


def test_bombs_are_not_all_decompressed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first frame that is wrong is the last that is looked at."""
    target = make_target("tagged", tmp_path)
    artifact, made = good_artifact(target, tmp_path / "maker")
    with made:
        opened: list[int] = []
        real = start_artifact.open_frame

        def counted(frame: start_artifact.Frame, stored: bytes) -> tuple[memoryview, memoryview]:
            opened.append(frame.page_count)
            return real(frame, stored)

        monkeypatch.setattr("lamina.content.start_proof.open_frame", counted)
        data = bombs(artifact)
        assert len(data) < 100_000
        stream = StartStream(
            lambda _: FoundStart(io.BytesIO(data), "sha256:" + artifact.digest.hex())
        )
        with target.open(tmp_path / "fresh") as image:
            stream.bind(image.blobs)
            stream._thread.join(60)
            stream.close()
        assert len(opened) == 1
