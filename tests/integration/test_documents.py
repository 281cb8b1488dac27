"""Every verb on documents of every shape, and on registries that answer what they like."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from lamina.build.index import index_image
from lamina.cli import main
from lamina.errors import Error, IntegrityError
from lamina.http.client_options import ClientOptions
from lamina.image.errors import NoIndexError, UnusableIndexError
from lamina.oci import manifest as m
from lamina.oci.manifest import Descriptor, ImageIndex, Platform
from lamina.oci.reference import parse_reference
from lamina.registry.layout import LayoutRepository
from lamina.registry.referrers import fallback_tag
from tests.support.fake_registry import Action, FakeRegistry, fake_registry, status
from tests.support.opening import open_image
from tests.unit.registry.images import make_image
from tests.unit.registry.test_resolve import AMD64, ARM64, image, index, soci


def nested(folder: Path) -> None:
    index(folder, index(folder, image(folder, 1, AMD64), image(folder, 2, ARM64)))


def bare(folder: Path) -> None:
    other = image(folder, 2, Platform(os="linux"), "linux/arm64")
    index(folder, image(folder, 1, AMD64), other)


def strange(folder: Path) -> None:
    """Entries that Lamina cannot use beside one that it can."""
    top = index(folder, image(folder, 1, AMD64))
    with LayoutRepository(parse_reference(f"oci:{folder}"), write=True) as repository:
        document = m.parse_document(repository.manifest(top)[1])
        document["manifests"] += [
            {"mediaType": "x/y", "digest": "sha384:" + "0" * 96, "size": 1},
            {"mediaType": m.OCI_MANIFEST, "platform": {}},
        ]
        repository.push_manifest("top", m.OCI_INDEX, m.encode(document))


def soci_by_type(folder: Path) -> None:
    index(folder, soci(folder, AMD64, typed=True), image(folder, 1, AMD64))


def soci_by_config(folder: Path) -> None:
    index(folder, soci(folder, AMD64, typed=False), image(folder, 1, AMD64))


def crane(folder: Path) -> None:
    entry = msgspec.structs.replace(image(folder, 1, AMD64), artifact_type=m.OCI_CONFIG)
    index(folder, entry)


SHAPES = (nested, bare, strange, soci_by_type, soci_by_config, crane)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_verb_finds_the_image(
    shape: Callable[[Path], None], tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    shape(tmp_path / "l")
    source, wanted = f"oci:{tmp_path}/l:top", ["--platform", "linux/amd64"]
    for reader in (["inspect", "--json"], ["ls"], ["cat"]):
        arguments = [*reader, *wanted, source, *(["b"] if reader == ["cat"] else [])]
        assert main(arguments) == 0
    capsysbinary.readouterr()
    assert main(["inspect", "--json", *wanted, source]) == 0
    digest = json.loads(capsysbinary.readouterr().out)["digest"]
    assert main(["copy", *wanted, source, f"oci:{tmp_path}/one:x"]) == 0
    assert capsysbinary.readouterr().out.decode().strip() == digest
    assert main(["convert", *wanted, source, f"oci:{tmp_path}/native:x"]) == 0
    assert main(["check", f"oci:{tmp_path}/native:x", source]) == 0
    assert main(["index", *wanted, source]) == 0
    with open_image(source, store=tmp_path / "store", platform="linux/amd64") as opened:
        assert opened.origin is not None
        assert opened.origin.manifest.subject is not None
        assert opened.origin.manifest.subject.digest == digest
    # Every image is made where no platform is named, and nothing but images.
    assert main(["convert", source, f"oci:{tmp_path}/all:x"]) == 0


def test_what_cannot_be_copied_whole_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange(tmp_path / "l")
    assert main(["copy", "--all", f"oci:{tmp_path}/l:top", f"oci:{tmp_path}/c:x"]) != 0
    told = capsys.readouterr().err
    assert "cannot be copied whole: the entry 1 of the" in told
    assert not (tmp_path / "c").exists()


# ---- the index of an ordinary image is an offer -------------------------------------------------


def indexed(folder: Path) -> tuple[str, Path, Descriptor]:
    """An ordinary image with an index; its reference, its blobs, and the manifest of the index."""
    make_image(folder, "v1")
    reference = f"oci:{folder}:v1"
    (report,) = index_image(parse_reference(reference))
    with LayoutRepository(parse_reference(reference), write=False) as repository:
        return reference, folder / "blobs" / "sha256", repository.resolve(report.digest)


def lost_metadata(blobs: Path, found: Descriptor) -> None:
    manifest = m.parse_image_manifest((blobs / found.hex).read_bytes())
    (blobs / manifest.layers[-1].hex).unlink()


def damaged_metadata(blobs: Path, found: Descriptor) -> None:
    manifest = m.parse_image_manifest((blobs / found.hex).read_bytes())
    path = blobs / manifest.layers[-1].hex
    path.write_bytes(bytes(len(path.read_bytes())))


def damaged_manifest(blobs: Path, found: Descriptor) -> None:
    (blobs / found.hex).write_bytes(b"{}")


@pytest.mark.parametrize("damage", [lost_metadata, damaged_metadata, damaged_manifest])
def test_an_index_that_is_no_good_leaves_the_image_usable(
    damage: Callable[[Path, Descriptor], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAMINA_STORE", str(tmp_path / "of the verbs"))
    reference, blobs, found = indexed(tmp_path / "l")
    damage(blobs, found)
    with pytest.raises(UnusableIndexError, match="cannot be used: ") as caught:
        open_image(reference, store=tmp_path / "store")
    assert isinstance(caught.value, NoIndexError)
    assert caught.value.exit_code == IntegrityError.exit_code
    assert main(["ls", reference]) == 0
    assert capsys.readouterr().err.count("warning: ") == 1
    assert main(["inspect", reference]) == 0
    with open_image(reference, store=tmp_path / "store", index="always") as image:
        assert image.open("b").read()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake_registry() as registry:
        yield registry


def image_under_the_tag(registry: FakeRegistry) -> None:
    """As GitLab answers, and as cosign copy leaves it behind."""
    kind, data = registry.manifests["v1"]
    registry.manifests[fallback_tag(m.describe(kind, data).digest)] = kind, data


ANSWERS: dict[str, Action] = {
    **{str(code): status(code) for code in (400, 401, 403, 405, 406, 500, 501)},
    "html": status(200, {"Content-Type": "text/html"}, b"<html>welcome</html>"),
    "empty": status(200),
    "object": status(200, body=b"{}"),
    "null": status(200, body=b'{"schemaVersion":2,"manifests":null}'),
}


@pytest.mark.parametrize("answer", [*ANSWERS, "the image"])
def test_look_ups_never_make_an_image_unusable(
    answer: str,
    registry: FakeRegistry,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAMINA_STORE", str(tmp_path / "store"))
    make_image(tmp_path / "l", "v1")
    place = f"docker://{registry.host}/a:v1"
    assert main(["copy", f"oci:{tmp_path}/l:v1", place]) == 0
    if answer == "the image":
        image_under_the_tag(registry)
    else:
        registry.rule("GET", "/referrers/", ANSWERS[answer], times=999)
    capsys.readouterr()
    assert main(["ls", place]) == 0
    assert capsys.readouterr().err.count("warning: ") == (answer != "null")
    assert main(["index", place]) == 0
    with open_image(place, store=tmp_path / "other", options=ClientOptions(attempts=1)) as opened:
        assert opened.origin is not None
        assert opened.origin.manifest.subject is not None


def test_a_native_image_asks_for_no_list(registry: FakeRegistry, tmp_path: Path) -> None:
    make_image(tmp_path / "l", "v1")
    place = f"docker://{registry.host}/a:v1"
    assert main(["convert", f"oci:{tmp_path}/l:v1", place]) == 0
    registry.rule("GET", "/referrers/|/manifests/sha256-", status(500), times=99)
    seen = len(registry.seen)
    open_image(place, store=tmp_path / "store").close()
    assert not [one for one in registry.seen[seen:] if "sha256-" in one.path]


@pytest.mark.parametrize("number", [1025, 15_000])
def test_images_of_too_many_layers_are_refused_before_any_work(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_image(tmp_path / "l", "v1")
    with LayoutRepository(parse_reference(f"oci:{tmp_path}/l:v1"), write=False) as repository:
        document = m.parse_document(repository.manifest(made)[1])
    document["layers"] = document["layers"][:1] * number
    data = m.encode(document)
    entry = m.describe(m.OCI_MANIFEST, data, {m.REF_NAME: "v1"})
    (tmp_path / "l" / "blobs" / "sha256" / entry.hex).write_bytes(data)
    listed = ImageIndex(schema_version=2, media_type=m.OCI_INDEX, manifests=(entry,))
    (tmp_path / "l" / "index.json").write_bytes(m.encode(listed))
    source = f"oci:{tmp_path}/l:v1"
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    for verb in (["ls", source], ["index", source], ["convert", source, f"oci:{tmp_path}/out:x"]):
        assert main(verb) == 3, verb
        told = capsys.readouterr().err
        assert "length <= 1024" in told
        assert told.count("\n") == 1
    assert not list((tmp_path / "out").glob("blobs/sha256/*"))


def test_errors_are_of_the_family() -> None:
    assert issubclass(UnusableIndexError, Error)
    assert UnusableIndexError.errno == IntegrityError.errno
