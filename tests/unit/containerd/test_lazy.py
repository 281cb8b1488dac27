"""Which layers are lazy: what labels claim is held against the registry, policies decide, and
nobody waits longer than it wants to.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from msgspec.structs import replace

from lamina.containerd import lazy_layers
from lamina.containerd.claim import IMAGE_LABEL, MANIFEST_LABEL
from lamina.containerd.lazy_image import Finding, LazyImage, chain_of
from lamina.containerd.lazy_layers import Trust
from lamina.containerd.snapshot import REF_LABEL
from lamina.containerd.trees import Trees
from lamina.errors import AuthError, FormatError, TrustError
from lamina.oci.start_manifest import StartRule
from lamina.opening.request import OpenRequest
from tests.unit.containerd.client import Client, served

DIFFS = [f"sha256:{number:064x}" for number in range(1, 4)]
CHAIN = chain_of(DIFFS)
OTHER_CHAIN = chain_of([*DIFFS[:2], f"sha256:{9:064x}"])
MANIFEST = f"sha256:{77:064x}"
OTHER = f"sha256:{78:064x}"


def labels(
    chain: str, manifest: str = MANIFEST, image: str = "reg.example/app:1"
) -> dict[str, str]:
    return {REF_LABEL: chain, IMAGE_LABEL: image, MANIFEST_LABEL: manifest}


class World:
    """What there is in the registry, and what was asked of it; nothing is mounted in truth."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.mounted: set[int] = set()
        self.broken = False
        self.locked = False
        self.silence: threading.Event | None = None
        self.lazy = {MANIFEST: CHAIN, OTHER: OTHER_CHAIN}
        self.ordinary: str | None = None
        monkeypatch.setattr(lazy_layers, "look_up", self.look_up)
        monkeypatch.setattr(Trees, "mount", lambda trees, number, _: self.mount(trees, number))
        monkeypatch.setattr(Trees, "is_mounted", lambda _, number: number in self.mounted)
        monkeypatch.setattr(Trees, "unmount", lambda _, number: self.mounted.discard(number))
        monkeypatch.setattr(Trees, "numbers", lambda _: sorted(self.mounted))

    def look_up(self, claim: Any, template: OpenRequest, _scopes: Any) -> Finding:
        self.asked.append(claim.manifest)
        if self.silence is not None:
            self.silence.wait(60)
        if self.locked:
            raise AuthError("the registry wants credentials", hint="lamina has none")
        if template.policy is not None and claim.reference.repository == "unsigned":
            raise TrustError("no signature of it is good", hint="sign it")
        chain = self.lazy.get(claim.manifest)
        if chain is None:
            return Finding(CHAIN)
        reference = f"docker://reg.example/app@{claim.manifest}"
        return Finding(
            chain,
            LazyImage(
                reference=reference, chain=chain, policy=template.policy, ordinary=self.ordinary
            ),
        )

    def mount(self, trees: Trees, number: int) -> None:
        if self.broken:
            raise FormatError("the index is damaged")
        Path(trees.path(number)).mkdir(exist_ok=True)
        self.mounted.add(number)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.fixture
def client(tmp_path: Path, world: World) -> Iterator[Client]:
    with served(tmp_path / "r") as client:
        yield client


@pytest.fixture
def guarded(tmp_path: Path, world: World) -> Iterator[Client]:
    """With a policy for the namespace ``pods`` alone."""
    trust = Trust(OpenRequest(reference="docker://any"), {"pods": "/policy.json"})
    with served(tmp_path / "r", trust) as client:
        yield client


@contextlib.contextmanager
def refused(code: str, words: str = "") -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert caught.value.code().name == code  # type: ignore[attr-defined]
    assert words in caught.value.details()  # type: ignore[attr-defined]


def take(client: Client, chain: str, parent: str, given: dict[str, str], space: str = "ns") -> str:
    """Prepare a layer as containerd does, and return the name that it then finds it by."""
    key = f"{space}/7/extract-1-abcd {chain}"
    with refused("ALREADY_EXISTS"):
        client.prepare(key, parent, given)
    found = client.list(f'labels."{REF_LABEL}"=={chain},parent=="{parent}"')
    assert found[0].kind == 3
    with refused("NOT_FOUND"):
        client.stat(key)
    return str(found[0].name)


def take_all(client: Client, chain: tuple[str, ...], manifest: str, space: str = "ns") -> list[str]:
    names = [""]
    for each in chain:
        names.append(take(client, each, names[-1], labels(each, manifest), space))
    return names[1:]


def test_all_layers_are_there_and_the_last_shows_the_tree(client: Client, world: World) -> None:
    names = take_all(client, CHAIN, MANIFEST)
    assert world.asked == [MANIFEST]
    [mount] = client.prepare("ns/8/container", names[-1])
    tree = next(each for each in mount.options if each.startswith("lowerdir="))
    assert tree.endswith("/t/1")
    assert mount.type == "overlay"
    [view] = client.view("ns/9/view", names[-1])
    assert (view.type, list(view.options)) == ("bind", ["ro", "rbind"])


def test_the_same_layer_again(client: Client, world: World) -> None:
    """Of another namespace: one snapshot for both."""
    names = take_all(client, CHAIN, MANIFEST)
    assert take_all(client, CHAIN, MANIFEST, "other") == names
    assert len(client.list()) == 3


def test_images_share_their_lower_layers(client: Client, world: World) -> None:
    names = take_all(client, CHAIN, MANIFEST)
    others = take_all(client, OTHER_CHAIN, OTHER)
    assert others[:2] == names[:2]
    assert others[2] != names[2]
    assert world.mounted == {1, 2}
    for name in (*names[::-1], others[2]):
        with contextlib.suppress(grpc.RpcError):
            client.remove(name)
    client.cleanup()
    assert world.mounted == {1}, "two layers of the first image are left"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {REF_LABEL: CHAIN[0]},
        labels(CHAIN[0], image="oci:/etc:x"),
        labels(CHAIN[0], image="no reference!"),
        labels(CHAIN[0], manifest="sha256:1"),
        {**labels(CHAIN[0]), REF_LABEL: "../../etc"},
    ],
)
def test_claims_that_cannot_be_used(client: Client, world: World, given: dict[str, str]) -> None:
    """The layer is unpacked, and nobody is asked for anything."""
    assert client.prepare("ns/1/extract-1-a x", "", given)[0].type == "bind"
    assert world.asked == []


def test_a_layer_that_is_none_of_the_claimed_image(client: Client, world: World) -> None:
    chain = chain_of([f"sha256:{5:064x}"])[0]
    assert client.prepare("ns/1/extract-1-a x", "", labels(chain))[0].type == "bind"
    assert not any(each.name.startswith("lamina/") for each in client.list())


def test_a_layer_in_the_wrong_place(client: Client, world: World) -> None:
    """Lazy layers are a prefix from the bottom: what stands elsewhere has other files below."""
    take_all(client, CHAIN, MANIFEST)
    assert client.prepare("ns/1/extract-1-a x", "", labels(CHAIN[1]))[0].type == "bind"
    assert world.asked == [MANIFEST]


def test_nothing_is_lazy_above_what_was_unpacked(client: Client, world: World) -> None:
    client.prepare("ns/1/a", "")
    client.commit("ns/2/base", "ns/1/a")
    mounts = client.prepare("ns/3/extract-1-a x", "ns/2/base", labels(CHAIN[1]))
    assert mounts[0].type == "overlay"
    assert world.asked == []


def test_an_index_that_is_not_good(client: Client, world: World) -> None:
    """The image is unpacked; a native one cannot be."""
    world.broken, world.ordinary = True, f"docker://reg.example/app@{MANIFEST}"
    assert client.prepare("ns/1/extract-1-a x", "", labels(CHAIN[0]))[0].type == "bind"
    world.ordinary = None
    with refused("DATA_LOSS", "lamina: the index is damaged"):
        client.prepare("ns/1/extract-2-a x", "", labels(CHAIN[0]))


def test_a_registry_that_lets_only_containerd_in(client: Client, world: World) -> None:
    """What it can pull it unpacks; of what it cannot the error says why."""
    world.locked = True
    key = "ns/1/extract-1-a x"
    mark = {"containerd.io/snapshot/nydus-blob": "true"}
    with refused("UNAUTHENTICATED", "wants credentials (lamina has none)"):
        client.prepare(key, "", {**labels(CHAIN[0]), **mark})
    assert client.prepare(key, "", labels(CHAIN[0]))[0].type == "bind"


@pytest.mark.parametrize("name", ["nydus-blob", "nydus-bootstrap"])
def test_nobody_says_which_image_only_lamina_can_read(
    client: Client, world: World, name: str
) -> None:
    """A layer that says so by itself is refused when it is asked for: before it is fetched."""
    mark = {f"containerd.io/snapshot/{name}": "true"}
    with refused("FAILED_PRECONDITION", "pull it by `lamina ctr-pull`"):
        client.prepare("ns/1/extract-1-a x", "", {REF_LABEL: CHAIN[0], **mark})
    assert client.prepare("ns/1/container", "", mark), "what a container writes"
    assert world.asked == []


def test_a_registry_that_lets_nobody_prove_an_image(guarded: Client, world: World) -> None:
    world.locked = True
    with refused("UNAUTHENTICATED"):
        guarded.prepare("pods/1/extract-1-a x", "", labels(CHAIN[0]))


def test_an_ordinary_image_under_a_policy_is_looked_at_once_a_pull(
    guarded: Client, world: World
) -> None:
    parent, manifest = "", f"sha256:{79:064x}"
    for _ in range(2):
        for chain in CHAIN:
            key = f"pods/1/extract-1-{len(world.asked)} {chain}"
            guarded.prepare(key, parent, labels(chain, manifest))
            parent = f"pods/2/{chain}"
            guarded.commit(parent, key)
        for chain in CHAIN[::-1]:
            guarded.remove(f"pods/2/{chain}")
        parent = ""
    assert world.asked == [manifest] * 2


def test_a_part_of_a_native_image_is_no_parent(client: Client, world: World) -> None:
    names = take_all(client, CHAIN, MANIFEST)
    with refused("FAILED_PRECONDITION", "can be read only as a whole"):
        client.prepare("ns/8/container", names[0])


def test_a_policy_refuses(guarded: Client, world: World) -> None:
    given = labels(CHAIN[0], image="reg.example/unsigned:1")
    with refused("PERMISSION_DENIED", "no signature of it is good (sign it)"):
        guarded.prepare("pods/1/extract-1-a x", "", given)
    assert take(guarded, CHAIN[0], "", given, "default")


def test_a_policy_and_no_claim(guarded: Client, world: World) -> None:
    """A namespace whose images must be signed takes no layer of who knows what; a container does
    not ask for one.
    """
    with refused("PERMISSION_DENIED", "lamina ctr-pull"):
        guarded.prepare("pods/1/extract-1-a x", "")
    assert guarded.prepare("pods/1/container", "")
    assert guarded.prepare("default/1/extract-1-a x", "")


def test_a_policy_and_a_false_claim(guarded: Client, world: World) -> None:
    """An image says that its layers are of one that is signed."""
    chain = chain_of([f"sha256:{5:064x}"])[0]
    with refused("PERMISSION_DENIED", "is no layer of"):
        guarded.prepare("pods/1/extract-1-a x", "", labels(chain))
    client_layer = guarded.prepare("default/1/extract-1-a x", "", labels(chain))
    assert client_layer[0].type == "bind"


def test_what_no_policy_saw_is_not_taken_under_one(guarded: Client, world: World) -> None:
    names = take_all(guarded, CHAIN, MANIFEST, "default")
    trusted = take_all(guarded, CHAIN, MANIFEST, "pods")
    assert not set(names) & set(trusted)
    assert take_all(guarded, CHAIN, MANIFEST, "default") == names
    unsigned = labels(CHAIN[0], image="reg.example/unsigned:1")
    with refused("PERMISSION_DENIED"):
        guarded.prepare("pods/1/extract-1-b x", "", unsigned)


def test_a_caller_that_has_waited_enough(client: Client, world: World) -> None:
    """Its call ends with its deadline, others are answered meanwhile, and what is on its way is
    there for the next one.
    """
    world.silence = threading.Event()
    key = f"ns/1/extract-1-a {CHAIN[0]}"
    while not world.asked:
        # One that has not begun by its deadline is not served at all.
        with refused("DEADLINE_EXCEEDED"):
            client.prepare(key, "", labels(CHAIN[0]), timeout=0.2)
    assert client.prepare("ns/1/other", "")
    with refused("DEADLINE_EXCEEDED"):
        client.prepare(key, "", labels(CHAIN[0]), timeout=0.2)
    assert world.asked == [MANIFEST], "both waited for one opening"
    world.silence.set()
    assert take(client, CHAIN[0], "", labels(CHAIN[0]))
    assert not any(each.name == key for each in client.list())


def test_trees_that_nothing_is_of_are_taken_away(client: Client, world: World) -> None:
    names = take_all(client, CHAIN, MANIFEST)
    client.prepare("ns/8/container", names[-1])
    with refused("FAILED_PRECONDITION"):
        client.remove(names[-1])
    client.cleanup()
    assert world.mounted == {1}
    client.remove("ns/8/container")
    for name in names[::-1]:
        client.remove(name)
    client.cleanup()
    assert world.mounted == set()


def test_what_is_kept_of_an_image_has_no_secrets(tmp_path: Path, world: World) -> None:
    trust = Trust(OpenRequest(reference="docker://any", decryption_keys=("secret",)), {})
    with served(tmp_path / "r", trust) as client:
        take_all(client, CHAIN, MANIFEST)
    for path in (tmp_path / "r").glob("snapshots.db*"):
        assert b"secret" not in path.read_bytes()


def test_which_start_artifact_is_asked_for() -> None:
    """That of the image's own command, or the one that the image names; none if none is wanted."""
    image = LazyImage(reference="docker://reg.example/app@" + MANIFEST, chain=CHAIN)
    named = replace(image, start="server")
    assert LazyImage.decode(named.encode()) == named
    template = OpenRequest(reference="docker://any", start=StartRule())
    assert image.request(template).start == StartRule()
    assert named.request(template).start == StartRule(name="server")
    assert named.request(replace(template, start=None)).start is None


def test_chains() -> None:
    """The example of containerd's and OCI's definition: the first is the layer itself."""
    assert chain_of([]) == ()
    assert CHAIN[0] == DIFFS[0]
    assert len(set(CHAIN)) == 3
