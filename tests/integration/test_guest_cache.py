"""Guests that have a sealed image through the host's cache, which has no keys."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lamina.content.lazy_image import LazyImage
from lamina.errors import Error, TrustError
from lamina.http.client_options import ClientOptions
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry import mirrored
from lamina.registry.open_repository import open_repository
from lamina.trust.encryption.recipients import Recipients
from tests.support.guest_cache import name_mirror, running_cache
from tests.support.opening import open_image
from tests.support.registry_server import RegistryServer, start_registry
from tests.support.sealed import (
    LAYERS,
    NAMES,
    WORDS,
    Keys,
    extents,
    flip,
    make_source,
    pushed,
    read_everything,
    seal_for,
)
from tests.support.tools import require_tool
from tests.unit.registry.images import noise
from tests.unit.trust.keys_in_code import make_key

BULK = noise(3_000_000, 9)
_GET = re.compile(r'"(?:GET|HEAD) (/v2/\S+) HTTP/1\.1" \d+ (\d+)')


class Host:
    """A registry with a sealed image ``team/app:1``, and guests that reach it by a cache only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running = ExitStack()
        self.registry: RegistryServer = self.running.enter_context(
            start_registry(folder / "registry", access_log=True)
        )
        source = make_source(folder / "source", (*LAYERS, {"srv/bulk.bin": BULK}))
        self.keys = Keys.make(folder)
        recipients = Recipients(public_keys=(make_key("P-256", 0).public(),))
        self.reference = self.registry.reference("team/app:1")
        seal_for(source, self.reference, recipients)
        with open_repository(parse_reference(self.reference)) as repository:
            self.manifest = m.parse_image_manifest(repository.manifest()[1])
        self.store = folder / "cache"

    def guest(self, name: str, cache: str) -> LazyImage:
        """An image that is opened with nothing but what the cache answers."""
        mirrored._health.clear()
        hosts = name_mirror(self.folder / f"hosts-{name}", self.registry.host, cache, alone=True)
        return open_image(
            self.reference,
            store=self.folder / f"store-{name}",
            decryption_keys=[self.keys.private],
            options=ClientOptions(hosts_dirs=(hosts,)),
        )

    def sent_bytes(self) -> int:
        return sum(int(size) for _, size in _GET.findall(self.registry.logged()))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    require_tool("docker-registry")
    found = Host(tmp_path)
    with found.running:
        yield found
    mirrored._health.clear()


def test_the_second_guest_costs_the_registry_next_to_nothing(host: Host) -> None:
    before = host.sent_bytes()
    with running_cache(host.store, host.registry.host) as cache:
        with host.guest("one", cache) as image:
            read_everything(image)
        first = host.sent_bytes() - before
        with host.guest("two", cache) as image:
            read_everything(image)
            stat = image.stat("/srv/bulk.bin")
            assert image.pread(stat, 0, stat.size) == BULK
        second = host.sent_bytes() - before - first
    assert first > len(BULK)
    assert second <= first * 0.02, (first, second)


def test_the_cache_keeps_no_plaintext_and_no_key(host: Host) -> None:
    with (
        running_cache(host.store, host.registry.host) as cache,
        host.guest("one", cache) as image,
    ):
        read_everything(image)
    kept = b"".join(pushed(host.store))
    assert len(kept) > len(BULK)
    for secret in (*NAMES, WORDS, BULK[:64], b"hunter2", b"vault"):
        assert secret not in kept


def test_a_piece_that_is_wrong_is_refused_by_the_cache_and_not_kept(host: Host) -> None:
    layer = host.manifest.layers[0]
    path = host.registry.blob_path(layer.digest)
    offset, _ = extents(host.manifest, 0, lambda each: host.registry.blob_path(each.digest))[1]
    flip(path, offset + 5)
    with running_cache(host.store, host.registry.host) as cache:
        with host.guest("one", cache) as image, pytest.raises(Error) as caught:
            read_everything(image)
        assert "piece 1 of the sealed blob" in str(caught.value)
        flip(path, offset + 5)
        with host.guest("two", cache) as image:
            read_everything(image)


def test_a_cache_whose_store_was_changed_is_found_out_by_the_guest(host: Host) -> None:
    with running_cache(host.store, host.registry.host) as cache:
        with host.guest("one", cache) as image:
            read_everything(image)
        for path in (host.store / "blobs").glob("*.data"):
            if path.stat().st_size > 100_000:
                data = bytearray(path.read_bytes())
                data[100::3000] = bytes(255 - each for each in data[100::3000])
                path.write_bytes(data)
        with host.guest("two", cache) as image, pytest.raises(Error):
            stat = image.stat("/srv/bulk.bin")
            image.pread(stat, 0, stat.size)


def test_a_reader_waits_while_the_cache_is_replaced(host: Host) -> None:
    with ExitStack() as running:
        first = running.enter_context(running_cache(host.store, host.registry.host))
        port = int(first.rpartition(":")[2])
        with host.guest("one", first) as image:
            stat = image.stat("/srv/bulk.bin")
            assert image.pread(stat, 0, 1000) == BULK[:1000]
            running.close()
            # Nobody else gets the port meanwhile; who listens may have it too.
            kept = running.enter_context(socket.socket())
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind(("127.0.0.1", port))
            read: list[bytes] = []
            reader = threading.Thread(target=lambda: read.append(image.pread(stat, 0, stat.size)))
            reader.start()
            # It has been refused by now, or will not be: both are to end well.
            reader.join(0.5)
            with running_cache(host.store, host.registry.host, port=port):
                reader.join(60)
            assert read == [BULK]


def test_three_guests_of_three_tenants_share_nothing_readable(host: Host) -> None:
    """One cache, one source, three keys: each sees its own image only."""
    blobs: list[set[str]] = []
    with running_cache(host.store, host.registry.host) as cache:
        for number in range(3):
            name = f"tenant-{number}/app:1"
            recipients = Recipients(public_keys=(make_key("P-256", number).public(),))
            source = f"oci:{host.folder}/source:source"
            seal_for(source, host.registry.reference(name), recipients)
            for each in range(3):
                reader = Keys.make(host.folder, each)
                hosts = name_mirror(host.folder / "hosts", host.registry.host, cache, alone=True)
                mirrored._health.clear()
                found: dict[str, Any] = {
                    "store": host.folder / f"store-{number}-{each}",
                    "decryption_keys": [reader.private],
                    "options": ClientOptions(hosts_dirs=(hosts,)),
                }
                if each == number:
                    with open_image(host.registry.reference(name), **found) as image:
                        read_everything(image)
                        assert image.manifest is not None
                        blobs.append({layer.digest for layer in image.manifest.layers})
                else:
                    with pytest.raises(TrustError):
                        open_image(host.registry.reference(name), **found)
    assert not blobs[0] & blobs[1] | blobs[1] & blobs[2] | blobs[0] & blobs[2]


def test_the_verb_serves_until_it_is_told_to_end(host: Host) -> None:
    command = [sys.executable, "-m", "lamina", "serve", "cache", f"{host.registry.host}/team"]
    options = ["--listen", "127.0.0.1:0", "--store", host.store, "--json", "-q"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        with host.guest("one", url.removeprefix("http://")) as image:
            read_everything(image)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
