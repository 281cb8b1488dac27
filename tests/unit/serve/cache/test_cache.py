"""The cache for guests, over a registry that can be made to misbehave."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.fake_registry import FakeRegistry, fake_registry
from tests.support.guest_cache import running_cache
from tests.unit.registry.images import noise

from lamina.blob.leaf_table import ENTRY
from lamina.blob.seal import SUITE
from lamina.http.client_options import ClientOptions
from lamina.oci import manifest as m
from lamina.serve.cache import blob_cache, stored_blob
from lamina.serve.cache.blob_cache import MAX_PIECES
from lamina.serve.cache.cells import BLOCK_BYTES, MOST_BYTES, Blocks, OneCell, Placing
from lamina.serve.cache.protocol import RangeError, parse_range, parse_target
from lamina.serve.cache.upstream import Upstream
from lamina.store import node
from lamina.store.cache_blob import CacheBlob

BIG = noise(3_000_000, 5)
SMALL = noise(40_000, 6)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake_registry() as found:
        yield found


class Guest:
    """A client without any of ours in it, on one connection."""

    def __init__(self, address: str) -> None:
        self.connection = http.client.HTTPConnection(address, timeout=60)

    def close(self) -> None:
        self.connection.close()

    def ask(
        self, path: str, wanted: str = "", method: str = "GET"
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        self.connection.request(method, path, headers={"Range": wanted} if wanted else {})
        answer = self.connection.getresponse()
        return answer.status, answer.read(), answer.headers


@pytest.fixture
def guest(registry: FakeRegistry, tmp_path: Path) -> Iterator[Guest]:
    with (
        running_cache(tmp_path / "store", f"{registry.host}/team") as address,
        closing(Guest(address)) as found,
    ):
        yield found


def sent_bytes(registry: FakeRegistry, digest: str) -> int:
    """What the registry was asked for of a blob."""
    total = 0
    for seen in registry.seen:
        if seen.method == "GET" and seen.path.endswith(digest):
            first, _, last = seen.headers["range"].removeprefix("bytes=").partition("-")
            total += int(last) - int(first) + 1
    return total


def test_ranges_are_those_of_the_blob_and_are_fetched_once(
    registry: FakeRegistry, guest: Guest
) -> None:
    digest = registry.add_blob(BIG)
    path = f"/v2/team/app/blobs/{digest}?ns={registry.host}"
    for wanted, expected in (
        ("bytes=0-0", BIG[:1]),
        ("bytes=65535-65536", BIG[65535:65537]),
        ("bytes=1000000-2000000", BIG[1_000_000:2_000_001]),
        ("bytes=2999990-", BIG[2_999_990:]),
        ("bytes=-7", BIG[-7:]),
        ("bytes=2999990-9999999", BIG[2_999_990:]),
    ):
        status, data, headers = guest.ask(path, wanted)
        assert (status, data) == (206, expected), wanted
        assert headers["Content-Range"].endswith("/3000000")
    assert guest.ask(path)[1] == BIG
    assert guest.ask(path, "bytes=5-4,7-8")[:2] == (200, BIG)
    assert guest.ask(path, "bytes=3000000-")[0] == 416
    status, data, headers = guest.ask(path, method="HEAD")
    assert (status, data, headers["Content-Length"]) == (200, b"", "3000000")
    assert sent_bytes(registry, digest) == len(BIG)
    assert registry.count("HEAD", digest) == 1


def test_what_is_here_needs_no_registry_and_outlives_the_cache(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    digest = registry.add_blob(BIG)
    path = f"/v2/team/app/blobs/{digest}"
    for _ in range(2):
        with (
            running_cache(tmp_path / "store", registry.host) as address,
            closing(Guest(address)) as guest,
        ):
            assert guest.ask(path)[1] == BIG
    assert sent_bytes(registry, digest) == len(BIG)


@pytest.mark.parametrize(("data", "is_damaged"), [(SMALL, False), (SMALL, True), (BIG, False)])
def test_after_a_start_of_the_machine_only_what_is_proven_is_used(
    registry: FakeRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    is_damaged: bool,
) -> None:
    digest, store = registry.add_blob(data), tmp_path / "store"
    path = f"/v2/team/app/blobs/{digest}"
    # As after a power cut: nothing says that the file is whole.
    monkeypatch.setattr(CacheBlob, "flush", lambda _: None)
    with running_cache(store, registry.host) as address, closing(Guest(address)) as guest:
        assert guest.ask(path)[1] == data
    monkeypatch.setattr(node, "current_boot_id", lambda: b"another boot....")
    if is_damaged:
        (file,) = (store / "blobs").glob("*.data")
        file.write_bytes(bytes(file.stat().st_size))
    with running_cache(store, registry.host) as address, closing(Guest(address)) as guest:
        assert guest.ask(path)[1] == data
    fetched_again = is_damaged or data is BIG
    assert sent_bytes(registry, digest) == len(data) * (2 if fetched_again else 1)


def test_many_guests_at_once_cost_the_registry_one_blob(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    digest = registry.add_blob(BIG)
    found: list[bytes] = []
    with running_cache(tmp_path / "store", registry.host) as address:

        def read() -> None:
            with closing(Guest(address)) as guest:
                found.append(guest.ask(f"/v2/team/app/blobs/{digest}")[1])

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [BIG] * 8
    assert sent_bytes(registry, digest) == len(BIG)


def test_only_what_is_below_the_prefix_is_served(registry: FakeRegistry, guest: Guest) -> None:
    digest = registry.add_blob(SMALL)
    for path in (
        f"/v2/other/app/blobs/{digest}",
        f"/v2/teams/app/blobs/{digest}",
        f"/v2/team/../other/blobs/{digest}",
        f"/v2/team/app/blobs/{digest}?ns=registry.example",
        f"/v2/team/app/blobs/{digest}?ns=127.0.0.1:1",
        f"/v2/team/app/blobs/{digest[:-1]}",
        "/v2/team/app/blobs/uploads/",
        "/v2/_catalog",
        "/../etc/passwd",
    ):
        status, data, _ = guest.ask(path)
        assert status in (400, 404), path
        assert "errors" in json.loads(data)
    assert registry.seen == []
    assert guest.ask("/v2/")[0] == 200
    assert guest.ask(f"/v2/team/blobs/{digest}")[1] == SMALL
    for method in ("PUT", "POST", "DELETE"):
        assert guest.ask(f"/v2/team/app/blobs/{digest}", method=method)[0] == 501


def test_a_small_blob_that_is_wrong_is_not_passed_on(registry: FakeRegistry, guest: Guest) -> None:
    digest = registry.add_blob(SMALL)
    registry.blobs[digest] = SMALL[:-1] + b"?"
    path = f"/v2/team/app/blobs/{digest}"
    status, data, _ = guest.ask(path, "bytes=0-99")
    assert status == 422
    assert b"DIGEST_INVALID" in data
    registry.blobs[digest] = SMALL
    assert guest.ask(path, "bytes=0-99")[1] == SMALL[:100]


def test_a_large_blob_that_is_wrong_is_forgotten_when_it_is_complete(
    registry: FakeRegistry, guest: Guest
) -> None:
    digest = registry.add_blob(BIG)
    registry.blobs[digest] = BIG[:-1] + b"?"
    path = f"/v2/team/app/blobs/{digest}"
    assert guest.ask(path, "bytes=0-2000000")[0] == 206
    assert guest.ask(path, "bytes=2000000-")[0] == 422
    registry.blobs[digest] = BIG
    assert guest.ask(path)[1] == BIG


@pytest.mark.parametrize("right", [BIG, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("is_longer", [True, False])
def test_what_one_registry_says_of_a_blob_counts_for_its_own_guests_only(
    registry: FakeRegistry, tmp_path: Path, right: bytes, is_longer: bool
) -> None:
    digest = registry.add_blob(right)
    with fake_registry() as other:
        other.blobs[digest] = noise(len(right) + is_longer, 9)
        prefixes = registry.host, other.host
        with (
            running_cache(tmp_path / "store", *prefixes) as address,
            closing(Guest(address)) as guest,
        ):
            path = f"/v2/team/app/blobs/{digest}"
            assert guest.ask(f"{path}?ns={other.host}", "bytes=0-99")[0] in (206, 422)
            assert guest.ask(f"{path}?ns={registry.host}")[1] == right


def test_a_size_that_no_blob_has_takes_no_memory(registry: FakeRegistry, guest: Guest) -> None:
    said = {"Content-Length": str(1 << 41)}
    registry.rule("HEAD", "blobs", lambda exchange: exchange.answer(200, b"", said))
    digest = "sha256:" + "5" * 64
    assert guest.ask(f"/v2/team/app/blobs/{digest}", "bytes=0-99")[0] == 404


def test_what_comes_again_after_an_eviction_is_proven_again(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    digest, store = registry.add_blob(BIG), tmp_path / "store"
    path = f"/v2/team/app/blobs/{digest}"
    with running_cache(store, registry.host) as address, closing(Guest(address)) as guest:
        assert guest.ask(path)[1] == BIG
        space = node.NodeStore(store).space
        for data in (store / "blobs").glob("*.data"):
            space.forget(data)
        registry.blobs[digest] = BIG[:-1] + b"?"
        assert guest.ask(path)[0] == 422
        registry.blobs[digest] = BIG
        assert guest.ask(path)[1] == BIG


def test_while_one_reader_proves_a_blob_others_go_on(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate = threading.Event(), threading.Event()

    def slow_sha256() -> Any:
        begun.set()
        assert gate.wait(60)
        return hashlib.sha256()

    monkeypatch.setattr(stored_blob, "hashlib", SimpleNamespace(sha256=slow_sha256))
    path = f"/v2/team/app/blobs/{registry.add_blob(BIG)}"
    found: list[bytes] = []
    with (
        running_cache(tmp_path / "store", registry.host) as address,
        closing(Guest(address)) as first,
        closing(Guest(address)) as second,
    ):
        thread = threading.Thread(target=lambda: found.append(first.ask(path)[1]))
        thread.start()
        try:
            assert begun.wait(60)
            second.connection.timeout = 20
            assert second.ask(path, "bytes=0-99")[1] == BIG[:100]
        finally:
            gate.set()
            thread.join()
    assert found == [BIG]


def test_a_budget_is_kept_and_the_bytes_are_right(registry: FakeRegistry, tmp_path: Path) -> None:
    digest = registry.add_blob(BIG)
    store = tmp_path / "store"
    with (
        running_cache(store, registry.host, budget=1 << 20) as address,
        closing(Guest(address)) as guest,
    ):
        for _ in range(2):
            assert guest.ask(f"/v2/team/app/blobs/{digest}")[1] == BIG
    used = sum(path.stat().st_blocks * 512 for path in (store / "blobs").glob("*.data"))
    assert used <= 1 << 20
    assert sent_bytes(registry, digest) > len(BIG)


def test_guests_that_do_not_take_what_they_asked_for_share_a_little_memory(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, least = 1 << 20, 32 << 10
    monkeypatch.setattr(blob_cache, "WAITING_BYTES", total)
    monkeypatch.setattr(blob_cache, "LEAST_WAITING_BYTES", least)
    digest = registry.add_blob(BIG)
    with (
        Upstream((registry.host,), ClientOptions()) as upstream,
        blob_cache.BlobCache(upstream, node.NodeStore(tmp_path / "store")) as cache,
        upstream.repository(registry.host, "team/app") as asked,
        cache.blob(asked, digest) as blob,
    ):
        readers = [blob.read(0, len(BIG), asked.source) for _ in range(100)]
        held = [next(reader) for reader in readers]
        assert sum(map(len, held)) <= total + len(readers) * least
        assert min(map(len, held)) == least
        # Who reads at last gets everything, the first and the last who came.
        for window, reader in (held[0], readers[0]), (held[-1], readers[-1]):
            assert b"".join([window, *reader]) == BIG
        for reader in readers:
            reader.close()
        with closing(blob.read(0, len(BIG), asked.source)) as again:
            assert len(next(again)) == total


def test_errors_of_the_registry_are_errors_and_not_kept(
    registry: FakeRegistry, guest: Guest
) -> None:
    missing = "sha256:" + "0" * 64
    assert guest.ask(f"/v2/team/app/blobs/{missing}")[0] == 404
    assert guest.ask("/v2/team/app/manifests/latest")[0] == 404
    assert guest.ask(f"/v2/team/app/referrers/{missing}")[0] == 404
    registry.rule("HEAD", "blobs", lambda exchange: exchange.answer(403))
    digest = registry.add_blob(SMALL)
    assert guest.ask(f"/v2/team/app/blobs/{digest}")[0] == 403
    assert guest.ask(f"/v2/team/app/blobs/{digest}")[1] == SMALL


def test_a_private_registry_is_asked_with_the_credentials_of_the_cache_and_no_others(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.token, registry.login = "token-of-the-cache", "ada:correct horse"
    digest = registry.add_blob(SMALL)
    options = ClientOptions(username="ada", password="correct horse")
    with (
        running_cache(tmp_path / "store", registry.host, options=options) as address,
        closing(Guest(address)) as guest,
    ):
        guest.connection.request(
            "GET",
            f"/v2/team/app/blobs/{digest}",
            headers={"Authorization": "Bearer token-of-the-guest"},
        )
        answer = guest.connection.getresponse()
        assert (answer.status, answer.read()) == (200, SMALL)
        assert "correct horse" not in str(answer.headers)
        assert registry.token not in str(answer.headers)
    for seen in registry.seen:
        assert "token-of-the-guest" not in str(seen)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"token-of" not in kept


def test_manifests_are_asked_for_by_tag_each_time_and_by_digest_once(
    registry: FakeRegistry, guest: Guest
) -> None:
    manifest = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
    kind = "application/vnd.oci.image.index.v1+json"
    registry.manifests["latest"] = (kind, manifest)
    status, data, headers = guest.ask("/v2/team/app/manifests/latest")
    assert (status, data, headers["Content-Type"]) == (200, manifest, kind)
    digest = headers["Docker-Content-Digest"]
    registry.manifests["latest"] = (kind, manifest + b" ")
    assert guest.ask("/v2/team/app/manifests/latest")[1] == manifest + b" "
    # The registry does not even have it by its digest.
    assert guest.ask(f"/v2/team/app/manifests/{digest}")[1] == manifest
    # What a repository showed is not shown under another one.
    assert guest.ask(f"/v2/team/other/manifests/{digest}")[0] == 404


def test_leaf_tables_that_are_too_large_are_not_fetched_and_told_of_once(
    registry: FakeRegistry, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    pieces = MAX_PIECES + 1
    notes = {m.SEALED_PIECES: str(pieces), m.SEALED_ROOT: "0" * 64}
    table, suite = noise(100, 2), {m.SEALED_SUITE: SUITE}
    layers = tuple(
        m.Descriptor(media_type=kind, digest=digest, size=size, annotations=notes)
        for kind, digest, size, notes in (
            (m.SEALED_BLOB, f"sha256:{'1' * 64}", 1 << 40, notes),
            (m.SEALED_LEAVES, registry.add_blob(table), pieces * ENTRY.size, {}),
            ("application/x", f"sha256:{'2' * 64}", 1, suite),
        )
    )
    config = m.describe(m.OCI_CONFIG, b"{}")
    image = m.Manifest(schema_version=2, media_type=m.OCI_MANIFEST, config=config, layers=layers)
    registry.manifests["1"] = (m.OCI_MANIFEST, m.encode(image))
    for _ in range(3):
        assert guest.ask("/v2/team/app/manifests/1")[0] == 200
    assert registry.count("HEAD") == registry.count("GET", "/blobs/") == 0
    assert len([one for one in caplog.records if "cannot be proven" in one.message]) == 1


def test_ranges_and_targets_that_are_none() -> None:
    for text in (None, "", "bytes=-", "bytes=5-3", "chunks=0-3", "bytes=0-1,3-4", "bytes=a-b"):
        assert parse_range(text, 10) is None, text
    assert parse_range("bytes=0-", 10) == (0, 10)
    for text in ("bytes=10-", "bytes=-0", "bytes=99-100"):
        with pytest.raises(RangeError):
            parse_range(text, 10)
    for target in ("", "/", "/v2/a/blobs/", "/v2/A/blobs/x", "/v2/a/tags/list", "/v2/a/blobs/é"):
        assert parse_target(target) is None, target


def test_the_largest_blob_takes_little_memory() -> None:
    tracemalloc.start()
    try:
        placing = Placing(Blocks(MOST_BYTES, "registry.test"))
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert placing.place(placing._cells.count - 1) == MOST_BYTES - BLOCK_BYTES
    assert kept_bytes < 2 << 20


def test_zones_of_a_cache_file_share_no_page() -> None:
    sizes = (0, 1, 65536, 10_000_001)
    for cells in (*(Blocks(size, "registry.test") for size in sizes), OneCell("x", 5)):
        placing = Placing(cells)
        ends = [0] * len(placing.zones)
        for index in range(cells.count):
            offset, size = cells.extent(index)
            zone = max(n for n, (first, _) in enumerate(placing.zones) if first <= index)
            assert placing.place(index) >= max(ends)
            ends[zone] = placing.place(index) + size
            assert ends[zone] <= placing.file_bytes
            assert cells.find(offset) == cells.find(offset + size - 1) == index
        assert all(begin % 4096 == 0 for _, begin in placing.zones)
