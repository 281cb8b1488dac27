"""Releases of signed images on a node that has used others of them, and mounts that are opened
again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lamina.cli.dispatch import run_command
from lamina.content.lazy_image import LazyImage
from lamina.errors import Error, TrustError
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.opening.request import OpenRequest
from lamina.opening.rollback_protection import check_release
from lamina.registry.open_repository import open_repository
from lamina.serve.service.spec import MountSpec, open_reference
from lamina.store.node import NodeStore
from lamina.trust.encryption.recipients import DecryptionKeys
from lamina.trust.signatures.image_signature import sign_image
from tests.support.opening import open_image
from tests.support.registry_server import RegistryServer, start_registry
from tests.support.sealed import FILE, LAYERS, Keys, make_source, seal
from tests.unit.trust.keys_in_code import make_key


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys.make(tmp_path)


@pytest.fixture
def policy(tmp_path: Path) -> str:
    return write_policy(tmp_path / "policy.json", 7)


def write_policy(file: Path, *signers: int) -> str:
    """Each of them has to sign; no release is demanded."""
    demands = []
    for signer in signers:
        public = file.with_name(f"signer-{signer}.pub")
        public.write_bytes(make_key("P-256", signer).public().pem())
        demands.append({"type": "sigstoreSigned", "keyPath": str(public)})
    document = {"default": [{"type": "reject"}], "transports": {"docker": {"": demands}}}
    file.write_text(json.dumps(document))
    return str(file)


def release(reference: str, source: str, number: int | None, signer: int = 7) -> str:
    """Seal, push and sign; the digest."""
    seal(source, reference)
    return sign(reference, number, signer)


def sign(reference: str, number: int | None, signer: int = 7) -> str:
    with open_repository(parse_reference(reference), write=True) as repository:
        optional = {} if number is None else {"release": number}
        return sign_image(repository, make_key("P-256", signer), optional=optional)[0].digest


def put_back(reference: str, digest: str) -> None:
    """What a registry does that rolls back: its tag means the older manifest again."""
    with open_repository(parse_reference(reference), write=True) as repository:
        _, data = repository.manifest(digest)
        tag = parse_reference(reference).tag
        assert tag is not None
        repository.push_manifest(tag, m.OCI_MANIFEST, data)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return make_source(tmp_path / "plain", LAYERS[:1])


@pytest.fixture
def opened(tmp_path: Path, keys: Keys, policy: str) -> Callable[[str], None]:
    """Opens, reads and closes an image, always in the same store."""

    def run(reference: str) -> None:
        found = open_image(
            reference, store=tmp_path / "store", decryption_keys=[keys.private], policy=policy
        )
        with closing(found) as image:
            assert image.pread(image.stat(FILE), 0, 40_000) == LAYERS[0][FILE[1:]]

    return run


def test_rollback_to_an_older_signed_image_after_a_newer_was_used(
    registry: RegistryServer, source: str, opened: Callable[[str], None]
) -> None:
    """No minimum is demanded: what was used before is the minimum."""
    reference = registry.reference("releases/rollback:stable")
    older = release(reference, source, 1)
    opened(reference)
    newer = release(reference, source, 2)
    opened(reference)
    put_back(reference, older)
    with pytest.raises(TrustError, match="signed for release 1, but release 2 was used on this"):
        opened(reference)
    # Who asks for exactly this one gets it, and it changes nothing.
    opened(f"{reference.rpartition(':')[0]}@{older}")
    with pytest.raises(TrustError):
        opened(reference)
    put_back(reference, newer)
    opened(reference)


def test_rollback_to_an_image_that_states_no_release(
    registry: RegistryServer, source: str, opened: Callable[[str], None]
) -> None:
    reference = registry.reference("releases/none:1")
    unnumbered = release(reference, source, None)
    opened(reference)
    release(reference, source, 1)
    opened(reference)
    put_back(reference, unnumbered)
    with pytest.raises(TrustError, match="signed for no release, but release 1 was used"):
        opened(reference)


def test_names_are_counted_apart(
    registry: RegistryServer, source: str, opened: Callable[[str], None]
) -> None:
    release(registry.reference("releases/tags:2"), source, 2)
    opened(registry.reference("releases/tags:2"))
    release(registry.reference("releases/tags:1"), source, 1)
    opened(registry.reference("releases/tags:1"))


def test_an_older_release_that_is_asked_for(
    registry: RegistryServer,
    source: str,
    opened: Callable[[str], None],
    policy: str,
    keys: Keys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("lamina.linux.memory.forbid_core_dumps", lambda: None)
    reference = registry.reference("releases/asked:1")
    older = release(reference, source, 1)
    release(reference, source, 2)
    opened(reference)
    put_back(reference, older)
    words = ["--store", str(tmp_path / "store"), "--policy", policy]
    words += ["--decryption-key", keys.private, reference]
    assert run_command(["ls", *words]) == TrustError.exit_code
    assert "--allow-older" in capsys.readouterr().err
    assert run_command(["ls", "--allow-older", *words]) == 0
    # From now on that is the release that was used last.
    opened(reference)
    release(reference, source, 2)
    opened(reference)
    put_back(reference, older)
    with pytest.raises(TrustError):
        opened(reference)
    store = str(tmp_path / "store")
    key = [keys.private]
    with open_image(
        reference, store=store, policy=policy, decryption_keys=key, allow_older=True
    ) as image:
        assert image.root.is_dir


def test_an_image_that_was_signed_twice(
    registry: RegistryServer, source: str, opened: Callable[[str], None]
) -> None:
    """The same image as a newer release: both signatures are good, in whatever order they are."""
    reference = registry.reference("releases/twice:1")
    digest = release(reference, source, 3)
    sign(reference, 2)
    opened(reference)
    release(reference, source, 2)
    with pytest.raises(TrustError, match="release 3 was used"):
        opened(reference)
    put_back(reference, digest)
    opened(reference)


# What is opened again after a process of the mount service died.


class Reopening:
    """A mount's specification as the service has it, before and after the first opening."""

    def __init__(self, reference: str, keys: Keys, policy: str, store: Path) -> None:
        image = OpenRequest(
            reference=reference, store=str(store), decryption_keys=(keys.private,), policy=policy
        )
        self.spec = MountSpec(image=image, mountpoint="/mnt")

    def pin(self) -> LazyImage:
        image = open_reference(self.spec)
        assert image.origin is not None
        self.spec = self.spec.pinned_to(str(image.origin.accepted))
        return image


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The releases that key providers are told."""
    releases: list[int | None] = []
    original = DecryptionKeys.for_image

    def for_image(self: DecryptionKeys, digest: str, release: int | None = None) -> DecryptionKeys:
        releases.append(release)
        return original(self, digest, release)

    monkeypatch.setattr(DecryptionKeys, "for_image", for_image)
    monkeypatch.setattr("lamina.serve.service.spec.forbid_core_dumps", lambda: None)
    return releases


@pytest.mark.parametrize("many", [False, True], ids=["image", "platforms"])
def test_an_opened_image_is_proven_again_without_a_registry(
    keys: Keys, policy: str, told: list[int | None], tmp_path: Path, many: bool
) -> None:
    from tests.unit.registry.images import make_index

    source = make_source(tmp_path / "plain", LAYERS[:1])
    if many:
        make_index(tmp_path / "multi")
        source = f"oci:{tmp_path}/multi:multi"
    with start_registry(tmp_path / "registry") as registry:
        reference = registry.reference("releases/again:1")
        release(reference, source, 4)
        mount = Reopening(reference, keys, policy, tmp_path / "store")
        with closing(mount.pin()) as image:
            before = [path for path, _ in image.walk()]
    with closing(open_reference(mount.spec)) as image:
        assert [path for path, _ in image.walk()] == before
        assert image.origin is not None and str(image.origin.accepted) == mount.spec.image.pinned
    assert told == [4, 4], "a broker that demands a release is told it again"
    # The policy is asked again, and may say something else by now.
    write_policy(Path(policy), 8)
    with pytest.raises(TrustError, match="not by a key that is trusted"):
        open_reference(mount.spec)
    Path(policy).write_text('{"default": [{"type": "reject"}]}')
    with pytest.raises(TrustError, match="rejects"):
        open_reference(mount.spec)


@pytest.fixture
def published(
    registry: RegistryServer, source: str, keys: Keys, policy: str, tmp_path: Path
) -> Callable[[str, int], Reopening]:
    """``published("name:tag", 3)`` pushes that release, and gives a mount of it on this node."""

    def publish(name: str, number: int) -> Reopening:
        reference = registry.reference(f"releases/{name}")
        release(reference, source, number)
        return Reopening(reference, keys, policy, tmp_path / "store")

    return publish


def test_an_opened_image_stays_when_a_newer_was_used(
    published: Callable[[str, int], Reopening], told: list[int | None]
) -> None:
    mount = published("stays:1", 1)
    mount.pin().close()
    published("stays:1", 2).pin().close()
    open_reference(mount.spec).close()
    assert told == [1, 2, 1]


def test_signatures_that_the_store_has_lost_are_fetched_again(
    published: Callable[[str, int], Reopening], told: list[int | None], tmp_path: Path
) -> None:
    mount = published("lost:1", 5)
    mount.pin().close()
    (record,) = (tmp_path / "store/records/signatures").iterdir()
    record.unlink()
    open_reference(mount.spec).close()
    assert record.exists() and told == [5, 5]
    record.write_bytes(b"damaged")
    open_reference(mount.spec).close()
    # A signature that is kept must be good for the manifest that is kept.
    published("lost:2", 5).pin().close()
    (foreign,) = {*(tmp_path / "store/records/signatures").iterdir()} - {record}
    record.write_bytes(foreign.read_bytes())
    with pytest.raises(Error, match="another digest"):
        open_reference(mount.spec)


@pytest.mark.parametrize("resident", [False, True], ids=["known", "resident"])
@pytest.mark.parametrize("many", [False, True], ids=["image", "platforms"])
def test_an_image_on_the_node_is_proven_without_a_registry(
    keys: Keys, policy: str, told: list[int | None], tmp_path: Path, many: bool, resident: bool
) -> None:
    """By the tag that it was pulled by; what has been collected since is nothing that is needed."""
    from lamina.content.residency import make_resident
    from lamina.opening.garbage_collection import collect_garbage
    from tests.unit.registry.images import make_index

    source = make_source(tmp_path / "plain", LAYERS[:1])
    if many:
        make_index(tmp_path / "multi")
        source = f"oci:{tmp_path}/multi:multi"
    store = NodeStore(tmp_path / "store")
    more: dict[str, Any] = {"decryption_keys": [keys.private], "policy": policy, "store": store}
    with start_registry(tmp_path / "registry") as registry:
        reference = registry.reference("releases/resident:1")
        release(reference, source, 4)
        with closing(open_image(reference, **more)) as image:
            if resident:
                make_resident(image, store, reference)
    if resident:
        for path in (tmp_path / "store").rglob("*"):
            os.utime(path, (0, 0))
        collect_garbage(store)
    open_image(reference, **more).close()
    assert told == [4, 4]
    write_policy(Path(policy), 8)
    with pytest.raises(TrustError, match="not by a key that is trusted"):
        open_image(reference, **more)
    write_policy(Path(policy), 7)
    # A newer release that was used elsewhere under this name counts all the same.
    check_release(store, parse_reference(reference), 5)
    with pytest.raises(TrustError, match="release 5 was used"):
        open_image(reference, **more)


def test_signatures_are_collected_with_their_image(
    registry: RegistryServer,
    source: str,
    opened: Callable[[str], None],
    tmp_path: Path,
) -> None:
    """What is known of releases stays."""
    from lamina.opening.garbage_collection import collect_garbage

    reference = registry.reference("releases/collected:1")
    older = release(reference, source, 1)
    release(reference, source, 2)
    opened(reference)
    records = tmp_path / "store/records"
    assert len(list((records / "signatures").iterdir())) == 1
    for path in (tmp_path / "store").rglob("*"):
        os.utime(path, (0, 0))
    collect_garbage(NodeStore(tmp_path / "store"))
    assert list((records / "signatures").iterdir()) == []
    put_back(reference, older)
    with pytest.raises(TrustError, match="release 2 was used"):
        opened(reference)
