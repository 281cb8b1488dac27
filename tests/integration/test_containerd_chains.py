"""No image is served under the chain identifier of another one's layers.

Each attacker names the layers of a victim in its own configuration, so that containerd would give
the victim's containers the attacker's files.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from lamina.build.node_index import index_here
from lamina.cli.dispatch import run_command
from lamina.containerd.claim import IMAGE_LABEL, MANIFEST_LABEL
from lamina.containerd.lazy_image import chain_of
from lamina.containerd.snapshot import REF_LABEL
from lamina.containerd.trees import Trees
from lamina.image.errors import NoIndexError
from lamina.oci.manifest import OCI_CONFIG, OCI_MANIFEST, describe
from lamina.oci.start_manifest import START_USE, StartRule
from lamina.opening.open_image import begin, open_image
from lamina.opening.request import OpenRequest
from lamina.store.node import NodeStore
from lamina.store.records import IMAGE, INDEX, IndexRecord
from tests.support.fake_registry import FakeRegistry, fake_registry
from tests.support.layers import Item, oci_layout, tar_bytes
from tests.support.sealed import Keys

grpc = pytest.importorskip("grpc")

from lamina.containerd.lazy_layers import Trust  # noqa: E402
from tests.unit.containerd.client import Client, served  # noqa: E402

VICTIM = [f"sha256:{number:064x}" for number in range(1, 5)]
KINDS = ("native", "sealed")


class Registry:
    """A registry with an image of each kind, and with what is pushed to it."""

    def __init__(self, registry: FakeRegistry) -> None:
        self._registry = registry
        self.host = registry.host

    def image(self, name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Return the digest, the manifest and the configuration of a tag."""
        data = self._registry.manifests[name][1]
        manifest = json.loads(data)
        config = json.loads(self._registry.blobs[manifest["config"]["digest"]])
        return describe(OCI_MANIFEST, data).digest, manifest, config

    def push(self, manifest: dict[str, Any], config: dict[str, Any]) -> str:
        """Push a manifest with another configuration, and return its digest."""
        data = json.dumps(config).encode()
        size, digest = len(data), self._registry.add_blob(data)
        manifest["config"] = {"mediaType": OCI_CONFIG, "size": size, "digest": digest}
        data = json.dumps(manifest).encode()
        digest = describe(OCI_MANIFEST, data).digest
        self._registry.manifests[digest] = (OCI_MANIFEST, data)
        return digest


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Registry]:
    layout = tmp_path_factory.mktemp("image") / "layout"
    oci_layout(layout, [tar_bytes([Item("a", b"lower" * 9999)]), tar_bytes([Item("b", b"upper")])])
    source = f"oci:{layout}:latest"
    with fake_registry() as server:
        server.referrers_page = 100
        place = f"docker://{server.host}/attacker/app"
        seal = ("--seal", "--encryption-key", f"jwe:{keys.public}")
        for words in (
            ("copy", source, f"{place}:indexed"),
            ("index", f"{place}:indexed"),
            ("convert", source, f"{place}:native"),
            ("convert", *seal, source, f"{place}:sealed"),
        ):
            assert run_command([*words, "--quiet"]) == 0
        yield Registry(server)


class Node:
    """A snapshotter whose trees are opened as for a mount, and not mounted."""

    def __init__(self, client: Client, registry: Registry) -> None:
        self.client = client
        self._registry = registry

    def offer(self, manifest: str, chain: tuple[str, ...]) -> str:
        """Offer all layers of an image as containerd does.

        Returns "lazy" if none needs to be unpacked, "unpacked" if the first one does, and else the
        error.
        """
        image = f"{self._registry.host}/attacker/app:latest"
        parent = ""
        for each in chain:
            labels = {REF_LABEL: each, IMAGE_LABEL: image, MANIFEST_LABEL: manifest}
            try:
                self.client.prepare(f"ns/1/extract-1-a {each}", parent, labels)
            except grpc.RpcError as error:
                if error.code().name != "ALREADY_EXISTS":
                    return f"{error.code().name}: {error.details()}"
                found = self.client.list(f'labels."{REF_LABEL}"=={each},parent=="{parent}"')
                parent = found[0].name
            else:
                return "unpacked"
        return "lazy"


@pytest.fixture
def nodes(
    tmp_path: Path, registry: Registry, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Node]]:
    """Makes a node that believes indexes of some scopes."""
    template = OpenRequest(
        reference="docker://any",
        decryption_keys=(str(keys.private),),
        store=str(tmp_path / "store"),
        start=StartRule(),
    )
    monkeypatch.setattr(Trees, "mount", lambda _, __, request: open_image(request()).close())
    with contextlib.ExitStack() as stack:
        roots = (tmp_path / f"root{number}" for number in itertools.count())

        def make(*indexes_from: str) -> Node:
            trust = Trust(template, {}, frozenset(indexes_from))
            return Node(stack.enter_context(served(next(roots), trust)), registry)

        yield make


def diff_ids(config: dict[str, Any]) -> list[str]:
    found: list[str] = config["rootfs"]["diff_ids"]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_who_tells_the_truth_is_lazy(
    nodes: Callable[..., Node], registry: Registry, kind: str
) -> None:
    digest, _, config = registry.image(kind)
    assert nodes().offer(digest, chain_of(diff_ids(config))) == "lazy"


def test_an_image_names_its_start_artifact(
    nodes: Callable[..., Node], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, manifest, config = registry.image("native")
    manifest["annotations"] = {START_USE: "server"}
    asked: list[StartRule | None] = []
    monkeypatch.setattr(Trees, "mount", lambda _, __, request: asked.append(request().start))
    assert nodes().offer(registry.push(manifest, config), chain_of(diff_ids(config))) == "lazy"
    assert set(asked) == {StartRule(name="server")}


def test_what_an_earlier_version_has_read_is_read_again(
    nodes: Callable[..., Node], registry: Registry, tmp_path: Path
) -> None:
    """It did not take the digest that configurations name the metadata layer by."""
    digest, _, config = registry.image("native")
    chain = chain_of(diff_ids(config))
    assert nodes().offer(digest, chain) == "lazy"
    records = NodeStore(tmp_path / "store").records
    record = records.read(IMAGE, digest)
    assert record is not None and record.diff_id == diff_ids(config)[-1]
    records.write(IMAGE, digest, replace(record, diff_id=""))
    assert nodes().offer(digest, chain) == "lazy"
    assert records.read(IMAGE, digest) == record


def of_victim(own: list[str]) -> list[str]:
    return VICTIM[: len(own)]


def last_of_victim(own: list[str]) -> list[str]:
    return [*own[:-1], VICTIM[0]]


def first_of_victim(own: list[str]) -> list[str]:
    return [VICTIM[0], *own[1:]]


def one_more(own: list[str]) -> list[str]:
    return [*own, VICTIM[0]]


def one_less(own: list[str]) -> list[str]:
    return own[:-1]


def in_another_order(own: list[str]) -> list[str]:
    return [own[1], own[0], *own[2:]]


@pytest.mark.parametrize(
    "lie", [of_victim, last_of_victim, first_of_victim, one_more, one_less, in_another_order]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("was_opened", [False, True], ids=["unknown", "opened-before"])
def test_an_image_that_names_layers_of_another(
    nodes: Callable[..., Node],
    registry: Registry,
    kind: str,
    lie: Callable[[list[str]], list[str]],
    was_opened: bool,
    tmp_path: Path,
    keys: Keys,
) -> None:
    """Its metadata may be in the store already, read by somebody who does not ask for that."""
    _, manifest, config = registry.image(kind)
    claimed = lie(diff_ids(config))
    assert claimed != diff_ids(config)
    config["rootfs"]["diff_ids"] = claimed
    digest = registry.push(manifest, config)
    if was_opened:
        reference = f"docker://{registry.host}/attacker/app@{digest}"
        request = OpenRequest(
            reference=reference,
            store=str(tmp_path / "store"),
            decryption_keys=(str(keys.private),),
        )
        with contextlib.suppress(Exception):
            open_image(request).close()
    node = nodes()
    said = node.offer(digest, chain_of(claimed))
    assert said.startswith("DATA_LOSS: lamina: "), said
    assert node.client.list() == []


def test_an_index_is_used_only_where_it_is_believed(
    nodes: Callable[..., Node], registry: Registry
) -> None:
    """What an index shows is not proven by the configuration of its image, and neither is what the
    configuration says of the layers.
    """
    digest, _, config = registry.image("indexed")
    chain = chain_of(diff_ids(config))
    for scopes in ((), ("registry.example",), (f"{registry.host}/other",)):
        node = nodes(*scopes)
        assert node.offer(digest, chain) == "unpacked"
        assert not any(each.name.startswith("lamina/") for each in node.client.list())
    for scopes in ((registry.host,), (f"{registry.host}/attacker",), ("",)):
        assert nodes(*scopes).offer(digest, chain) == "lazy"


@pytest.mark.parametrize("by_table", [False, True])
def test_an_index_of_this_node_has_read_the_layers(
    nodes: Callable[..., Node], registry: Registry, tmp_path: Path, by_table: bool
) -> None:
    """Unless it was made by their tables of contents alone."""
    digest, _, config = registry.image("indexed")
    reference = f"docker://{registry.host}/attacker/app@{digest}"
    request = OpenRequest(reference=reference, index="never", store=str(tmp_path / "store"))
    with begin(request) as opening, pytest.raises(NoIndexError):
        opening.open(opening.version())
    with begin(request) as opening:
        index_here(opening.place, request, opening.version())
    records = NodeStore(tmp_path / "store").records
    built = records.read(INDEX, digest)
    assert built is not None and not built.by_table
    records.write(INDEX, digest, IndexRecord(built.digest, by_table))
    assert records.read(INDEX, digest) == IndexRecord(built.digest, by_table)
    assert nodes().offer(digest, chain_of(diff_ids(config))) == ("unpacked" if by_table else "lazy")
