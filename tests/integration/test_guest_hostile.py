"""What a guest makes of a host whose cache lies, without a virtual machine: the same agent, in this
process.  Each test has the name of its row in SECURITY.md.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from lamina.errors import Error, TrustError
from lamina.guest.agent import GuestSettings, guest_request
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.opening.open_image import open_image
from lamina.registry import mirrored
from lamina.registry.open_repository import open_repository
from tests.support.guest_cache import running_cache
from tests.support.guest_world import (
    SECRET,
    SECRET_NAME,
    STRANGER,
    GuestWorld,
    guest_world,
    memory_folder,
)
from tests.support.lying_cache import Answer, Change, lying_cache
from tests.support.tools import require_tool

pytestmark = pytest.mark.tools


class Host:
    """A host whose cache can lie, and guests that ask nobody but caches."""

    def __init__(self, world: GuestWorld, cache: str, memory: Path, stack: ExitStack) -> None:
        self.world = world
        self.honest = cache
        self._memory = memory
        self._stack = stack
        self.init_data = world.init_data()
        world.allow(self.init_data)

    def lying(self, change: Change) -> str:
        """Another cache, that lies."""
        return self._stack.enter_context(lying_cache(self.honest, change))

    def guest(self, name: str, cache: str, *, deadline_s: float = 300) -> bytes:
        """What a new guest reads of the secret file."""
        mirrored._health.clear()
        settings = GuestSettings(
            work=self._memory / name,
            init_data=str(self.init_data),
            evidence="sample",
            cache=f"http://{cache}",
            cache_only=True,
        )
        request = guest_request(self.world.reference, settings)
        client = dataclasses.replace(request.client, deadline_s=deadline_s)
        with open_image(replace(request, client=client)) as opened:
            found = opened.find(f"vault/{SECRET_NAME}")
            return opened.pread(found, 0, found.size)

    def manifest(self, name: str = "app") -> tuple[bytes, m.Manifest]:
        where = parse_reference(f"docker://{self.world.named(name)}")
        with open_repository(where) as repository:
            data = repository.manifest()[1]
        return data, m.parse_image_manifest(data)

    def data_blob(self) -> tuple[str, bytes]:
        """Digest and bytes of the first blob with data."""
        digest = self.manifest()[1].layers[0].digest
        return digest, self.world.registry.blob_path(digest).read_bytes()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    require_tool("docker-registry", "busybox")
    with ExitStack() as stack:
        enter = stack.enter_context
        memory = Path(enter(tempfile.TemporaryDirectory(dir=memory_folder())))
        world = enter(guest_world(tmp_path))
        cache = enter(running_cache(tmp_path / "cache", world.registry.host))
        world.push()
        yield Host(world, cache, memory, stack)
    mirrored._health.clear()


def of_blob(digest: str, change: Callable[[bytes], bytes]) -> Change:
    """Change answers about one blob only."""

    def changed(answer: Answer) -> bytes:
        return change(answer.body) if digest in answer.path else answer.body

    return changed


def test_a_host_that_flips_swaps_cuts_or_replays_pieces(host: Host) -> None:
    """The reader gets an error, and never other bytes; an honest cache serves it afterwards."""
    digest, data = host.data_blob()

    def other_place(body: bytes) -> bytes:
        at = data.find(body)
        assert at >= 0
        return (data[at + len(body) :] + data[:at])[: len(body)].ljust(len(body), b"x")

    lies: dict[str, Callable[[bytes], bytes]] = {
        "flip": lambda body: bytes([body[0] ^ 1]) + body[1:],
        "swap": other_place,
        "truncate": lambda body: body[: len(body) // 2],
        "extend": lambda body: body + body[:100],
        "zeros": lambda body: bytes(len(body)),
    }
    for name, lie in lies.items():
        lying = host.lying(of_blob(digest, lie))
        # What is cut is asked for again and again, so not for long.
        with pytest.raises(Error) as refused:
            host.guest(name, lying, deadline_s=3)
        assert SECRET not in str(refused.value).encode(), name
        assert host.guest(name, host.honest) == SECRET * 50, name


def test_a_host_that_replays_pieces_of_an_older_build(host: Host) -> None:
    """The same image, sealed before: its pieces are not those of now, though they were right."""
    _, older = host.data_blob()
    host.world.push(release=3)
    digest, newer = host.data_blob()
    assert len(older) == len(newer) and older != newer

    def replayed(body: bytes) -> bytes:
        at = newer.find(body)
        assert at >= 0
        return older[at : at + len(body)]

    with pytest.raises(Error):
        host.guest("replay", host.lying(of_blob(digest, replayed)))
    assert host.guest("replay", host.honest) == SECRET * 50


def test_a_host_that_answers_with_the_manifest_of_another_image(host: Host) -> None:
    """An older release, another signer's, another one of the same owner: each whole and sound in
    itself, with its signature, in the repository of the right one.
    """
    manifests = {}
    host.world.push(release=1)
    manifests["release"] = host.manifest()[0]
    host.world.push(release=3, signer=STRANGER)
    manifests["sign"] = host.manifest()[0]
    host.world.push(name="other", release=3)
    manifests["team/app"] = host.manifest("other")[0]
    copied = ["copy", "--referrers", host.world.named("other"), f"{host.world.reference}-other"]
    subprocess.run([sys.executable, "-m", "lamina", "-q", *copied], check=True)
    host.world.push(release=2)
    for words, manifest in manifests.items():

        def swapped(answer: Answer, manifest: bytes = manifest) -> bytes:
            is_tag = answer.path.partition("?")[0].endswith("/manifests/1")
            return manifest if is_tag else answer.body

        with pytest.raises(TrustError, match=words):
            host.guest(f"other {words[:4]}", host.lying(swapped))
    assert host.guest("right", host.honest) == SECRET * 50


def test_a_cache_that_lies_for_one_guest_only(host: Host) -> None:
    """The other guest reads on, and the one that was lied to as soon as it is not."""
    digest, _ = host.data_blob()
    lying = host.lying(of_blob(digest, lambda body: bytes(len(body))))
    with pytest.raises(Error):
        host.guest("one", lying)
    assert host.guest("two", host.honest) == SECRET * 50
    with pytest.raises(Error):
        host.guest("one", lying)
    assert host.guest("one", host.honest) == SECRET * 50


def test_a_guest_whose_init_data_the_host_changed_gets_nothing(host: Host) -> None:
    host.init_data = host.world.init_data("changed.toml", more="# the host's\n")
    with pytest.raises(TrustError, match="measurement"):
        host.guest("changed", host.honest)
