"""Sealed images whose layers are shared inside a tenant, or stay public."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from lamina.blob.seal import TAG_BYTES, Padding
from lamina.blob.seal_class import TenantKey
from lamina.build.source_image import open_source_image
from lamina.cli.dispatch import run_command
from lamina.errors import FormatError, IntegrityError, UsageError
from lamina.image.compare import compare
from lamina.store.node import NodeStore
from lamina.trust.encryption.recipients import Recipients
from tests.support.key_broker import running_broker
from tests.support.opening import open_image
from tests.support.sealed import (
    FILE,
    LAYERS,
    NAMES,
    Keys,
    SealedImage,
    flip,
    make_source,
    pushed,
    read_everything,
    seal_for,
)
from tests.unit.registry.images import noise
from tests.unit.trust.keys_in_code import make_key

TENANT, OTHER = TenantKey(bytes(range(32))), TenantKey(bytes(range(1, 33)))
BASE = LAYERS[0]
CONTENT = BASE[FILE[1:]]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys.make(tmp_path)


Make = Callable[..., SealedImage]


@pytest.fixture
def make(tmp_path: Path, keys: Keys) -> Make:
    """``make(NAME, LAYERS, **options)``: a sealed image in a layout folder of its own."""

    def sealed(name: str, layers: tuple[dict[str, bytes], ...], **more: object) -> SealedImage:
        source = make_source(tmp_path / f"plain-{name}", layers)
        recipients = Recipients(public_keys=(make_key("P-256").public(),))
        seal_for(source, f"oci:{tmp_path}/{name}:sealed", recipients, **more)
        image = SealedImage(tmp_path / name, keys)
        with (
            closing(image.open(tmp_path / f"store-{name}")) as opened,
            closing(open_source_image(source)) as wanted,
        ):
            assert list(compare(wanted, opened)) == []
        return image

    return sealed


def pieces(image: SealedImage, number: int) -> set[bytes]:
    """What is stored of each piece of a data blob."""
    data = image.blob(image.manifest.layers[number]).read_bytes()
    return {data[start : start + size] for start, size in image.extents(number)}


def test_two_images_of_a_tenant_share_what_is_stored(make: Make) -> None:
    """Of an equal layer all bytes, of another layer the equal pieces; tables and keys never."""
    top = {"srv/a": noise(30_000, 8), "srv/b": noise(9000, 9)}
    one = make("one", LAYERS, tenant=TENANT)
    two = make("two", (BASE, {**top, "srv/own": noise(8192, 11)}), tenant=TENANT)
    three = make("three", ({"etc/first": b"x"}, {**top, "srv/new": noise(8192, 12)}), tenant=TENANT)
    assert one.manifest.layers[0].digest == two.manifest.layers[0].digest
    assert one.manifest.layers[1].digest != two.manifest.layers[1].digest
    shared = pieces(two, 1) & pieces(three, 1)
    assert sum(map(len, shared)) > 30_000
    assert shared != pieces(two, 1) and shared != pieces(three, 1)
    assert one.manifest.layers[-1].digest != two.manifest.layers[-1].digest


@pytest.mark.parametrize("other", [OTHER, None], ids=["another tenant", "private"])
def test_others_share_nothing_with_a_tenant(make: Make, other: TenantKey | None) -> None:
    one, two = make("one", LAYERS, tenant=TENANT), make("two", LAYERS, tenant=other)
    for number in range(2):
        assert not pieces(one, number) & pieces(two, number)


def test_inside_an_image_of_a_tenant_every_place_is_bound(make: Make, tmp_path: Path) -> None:
    """By the leaves, since equal pieces may not be bound to one by their tag."""
    image = make("one", LAYERS, tenant=TENANT)
    path, extents = image.blob(image.manifest.layers[0]), image.extents(0)
    data = path.read_bytes()
    (first, size), (second, _) = [place for place in extents if place[1] == 4096 + TAG_BYTES][:2]
    path.write_bytes(data[:first] + data[second : second + size] + data[first + size :])
    with closing(image.open(tmp_path / "store")) as opened, pytest.raises(IntegrityError):
        opened.pread(opened.stat(FILE), 0, len(CONTENT))


def test_padding_of_a_tenant(make: Make) -> None:
    """A piece that is padded has another key than without: one key must not see both."""
    starts: list[dict[int, tuple[int, bytes]]] = []
    for padding in Padding:
        image = make(padding.value, LAYERS, tenant=TENANT, padding=padding)
        data = image.blob(image.manifest.layers[0]).read_bytes()
        places = enumerate(image.extents(0))
        starts.append({index: (size, data[at : at + 16]) for index, (at, size) in places})
    plain, padded = starts
    assert plain.keys() == padded.keys()
    longer = [index for index in plain if padded[index][0] > plain[index][0]]
    assert longer
    for index, (size, start) in padded.items():
        assert Padding.PADME.padded(size - TAG_BYTES) == size - TAG_BYTES
        assert (start == plain[index][1]) == (index not in longer)


@pytest.mark.parametrize("number", [0, -2], ids=["from the first", "from the last"])
def test_public_layers_are_in_clear_only_where_asked(make: Make, number: int) -> None:
    image = make("one", LAYERS, public=(number,))
    again = make("two", LAYERS, public=(number,), tenant=TENANT)
    first, second = (image.blob(layer).read_bytes() for layer in image.manifest.layers[:2])
    assert CONTENT[1000:1032] in first
    other = LAYERS[1][f"srv/{NAMES[3].decode()}"]
    assert other[1000:1032] not in second
    assert image.manifest.layers[0].digest == again.manifest.layers[0].digest
    # The metadata layer has the names of this layer too.
    everything = b"".join(pushed(image.folder))
    assert not any(name in everything for name in NAMES)
    assert b"hunter2" not in everything


def test_no_layer_is_public_unless_asked(make: Make) -> None:
    for image in (make("one", LAYERS), make("two", LAYERS, tenant=TENANT)):
        everything = b"".join(pushed(image.folder))
        for files in LAYERS:
            for content in files.values():
                assert len(content) < 64 or content[32:64] not in everything


def test_layers_that_are_not_there(make: Make) -> None:
    for number in (2, -3):
        with pytest.raises(UsageError, match=f"there is no layer {number}"):
            make("one", LAYERS, public=(number,))


@pytest.mark.parametrize(
    "options", [{"public": (0,)}, {"tenant": TENANT}], ids=["public", "tenant"]
)
def test_tamper_with_a_chunk(make: Make, tmp_path: Path, options: dict[str, object]) -> None:
    image = make("one", LAYERS, **options)
    flip(image.blob(image.manifest.layers[0]), 20_000)
    with (
        closing(image.open(tmp_path / "store")) as opened,
        pytest.raises(IntegrityError, match="not the one that was signed"),
    ):
        read_everything(opened)


@pytest.mark.parametrize("claimed", [None, "private", "tenant", "other"])
def test_another_class_is_claimed(make: Make, tmp_path: Path, claimed: str | None) -> None:
    """In the manifest, by somebody who can change it."""
    image = make("one", LAYERS, public=(0,))

    def edit(document: dict[str, list[dict[str, dict[str, str]]]]) -> None:
        annotations = document["layers"][0]["annotations"]
        del annotations["dev.lamina.sealed.class"]
        if claimed is not None:
            annotations["dev.lamina.sealed.class"] = claimed

    image.rewrite(edit)
    with pytest.raises((IntegrityError, FormatError), match=r"description names|malformed"):
        image.open(tmp_path / "store")


def test_on_a_node_the_images_of_a_tenant_share_a_blob(make: Make, tmp_path: Path) -> None:
    """An equal blob is kept once, also of images in different places."""
    images = [make(name, LAYERS, tenant=TENANT) for name in ("one", "two")]
    store = NodeStore(tmp_path / "store")
    with closing(images[0].open(store.root)) as opened:
        opened.pread(opened.stat(FILE), 0, len(CONTENT))
    for layer in images[1].manifest.layers[:2]:
        images[1].blob(layer).write_bytes(b"")
    key = images[1].keys.private
    with closing(open_image(images[1].reference, store=store, decryption_keys=key)) as opened:
        assert opened.pread(opened.stat(FILE), 0, len(CONTENT)) == CONTENT


def test_by_the_command_line(
    tmp_path: Path, keys: Keys, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tenant key in a file, and the same one from a broker."""
    monkeypatch.setattr("lamina.linux.memory.forbid_core_dumps", lambda: None)
    source = make_source(tmp_path / "plain")
    key = tmp_path / "tenant.key"
    key.touch(mode=0o600)
    key.write_bytes(TENANT.reveal())
    words = ["convert", "-q", "--seal", "--encryption-key", f"jwe:{keys.public}"]
    words += ["--chunk-size", "4K", "--public-layer", "-1"]
    one, two = f"oci:{tmp_path}/one:sealed", f"oci:{tmp_path}/two:sealed"
    assert run_command([*words, "--tenant-key", str(key), source, one]) == 0
    with running_broker(tmp_path / "broker") as broker:
        broker.put("kbs:///team/tenant/1", TENANT.reveal())
        kbs = ["--kbs", broker.url, "--kbs-ca", str(broker.ca_file)]
        by_broker = ["--tenant-key", "kbs:///team/tenant/1"]
        assert run_command([*words, *kbs, *by_broker, source, two]) == 0
        assert run_command([*words, *by_broker, source, two]) == 2
    capsys.readouterr()
    digests = []
    for reference in (one, two):
        assert run_command(["inspect", "--json", reference]) == 0
        found = json.loads(capsys.readouterr().out)["sealed"]["blobs"]
        assert [blob["class"] for blob in found] == ["tenant", "public"]
        digests.append([blob["digest"] for blob in found])
    assert digests[0] == digests[1]
    assert run_command(["check", "-q", "--data", one]) == 0
    key.write_bytes(b"too short")
    assert run_command([*words, "--tenant-key", str(key), source, one]) == 2
    key.chmod(0o644)
    assert run_command([*words, "--tenant-key", str(key), source, one]) == 12
    assert run_command(["convert", "-q", "--public-layer", "0", source, one]) == 2
