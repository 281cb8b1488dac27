"""Registries that do not answer as the specification says, but as registries in the field do."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from lamina.errors import Error, FetchError, IntegrityError, StoreError, UnsupportedError
from lamina.http.client_options import ClientOptions
from lamina.http.transient import TransientError
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.client import RegistryRepository
from lamina.registry.copy import copy
from lamina.registry.layout import LayoutRepository
from lamina.registry.open_repository import open_repository
from lamina.registry.repository import Repository
from tests.support import fake_registry as fake
from tests.support import registry_quirks as quirks
from tests.support.fake_registry import FakeRegistry
from tests.support.registry_quirks import ALWAYS
from tests.unit.registry.images import make_image, noise

SMALL = noise(5000)
LARGE = noise(1_500_000)
CHUNK = 400_000
REFUSALS = (400, 401, 403, 404, 405, 409, 416, 422, 429, 500, 501, 503)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake.fake_registry() as registry:
        yield registry


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.registry.session.time.sleep", lambda seconds: None)


def opened(registry: FakeRegistry, name: str = "a/b", **options: object) -> RegistryRepository:
    reference = parse_reference(f"docker://{registry.host}/{name}")
    chosen = {"timeout_s": 5.0, "deadline_s": 20.0, "push_chunk_bytes": CHUNK, **options}
    return RegistryRepository(reference, ClientOptions(**chosen))  # type: ignore[arg-type]


@pytest.fixture
def repository(registry: FakeRegistry) -> Iterator[RegistryRepository]:
    with opened(registry) as repository:
        yield repository


def push(repository: Repository, data: bytes, source: BinaryIO | None = None) -> None:
    moved: list[int] = []
    repository.push_blob(m.describe("", data), source or io.BytesIO(data), moved.append)
    assert sum(moved) == len(data)


def stored(registry: FakeRegistry, data: bytes) -> bool:
    return registry.blobs.get("sha256:" + hashlib.sha256(data).hexdigest()) == data


def sent(registry: FakeRegistry, method: str) -> list[int]:
    return [len(seen.body) for seen in registry.seen if seen.method == method]


# Statuses


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("method", "status"),
    [(method, status) for method in ("POST", "PATCH", "PUT") for status in (200, 201, 202, 204)],
)
def test_any_success_will_do(
    registry: FakeRegistry, repository: RegistryRepository, method: str, status: int, data: bytes
) -> None:
    registry.rule(method, "", quirks.answering(status), ALWAYS)
    push(repository, data)
    assert stored(registry, data)
    assert sent(registry, "PUT") == [0 if data is LARGE else len(data)]


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_success_will_do_for_a_manifest(
    registry: FakeRegistry, repository: RegistryRepository, status: int
) -> None:
    registry.rule("PUT", "/manifests/", quirks.answering(status))
    data = m.encode(m.ImageIndex(schema_version=2, media_type=m.OCI_INDEX, manifests=()))
    repository.push_manifest("v1", m.OCI_INDEX, data)
    assert registry.manifests["v1"] == (m.OCI_INDEX, data)


def test_the_place_of_an_upload_is_named_once(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    for method in ("PATCH", "GET"):
        action = quirks.answering(without=("Location", "Range"))
        registry.rule(method, "/uploads/", action, ALWAYS)
    push(repository, LARGE)
    assert stored(registry, LARGE)


def test_no_place_for_an_upload(registry: FakeRegistry, repository: RegistryRepository) -> None:
    registry.rule("POST", "", quirks.answering(without=("Location",)), ALWAYS)
    with pytest.raises(FetchError, match="names no place for the upload"):
        push(repository, LARGE)


@pytest.mark.parametrize("status", [307, 308])
def test_an_upload_that_begins_elsewhere(
    registry: FakeRegistry, repository: RegistryRepository, status: int
) -> None:
    place = {"Location": "/v2/moved/here/blobs/uploads/"}
    registry.rule("POST", "/a/b/", fake.status(status, place), ALWAYS)
    push(repository, LARGE)
    assert stored(registry, LARGE)
    assert all("moved/here" in seen.path for seen in registry.seen if seen.method == "PATCH")


@pytest.mark.parametrize("status", [400, 401, 403, 405, 501])
def test_whether_a_blob_is_there_need_not_be_told(
    registry: FakeRegistry, repository: RegistryRepository, status: int
) -> None:
    registry.rule("HEAD", "", fake.status(status), ALWAYS)
    push(repository, SMALL)
    assert stored(registry, SMALL)


def test_a_registry_that_takes_its_time_for_the_last_answer(registry: FakeRegistry) -> None:
    """Some copy a blob of gigabytes before they answer."""

    def slowly(exchange: fake.Exchange) -> bool:
        threading.Event().wait(4)
        return False

    registry.rule("PUT", "", slowly, ALWAYS)
    with opened(registry, timeout_s=3, attempts=1) as repository:
        push(repository, LARGE)
    assert stored(registry, LARGE)


# Chunks


def test_a_registry_that_keeps_only_the_first_chunk(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    registry.rule("PATCH", "", quirks.only_the_first_chunk, ALWAYS)
    push(repository, LARGE)
    assert stored(registry, LARGE)
    assert sent(registry, "PUT") == [len(LARGE)]
    assert not registry.uploads
    other = noise(1_200_000, 2)
    push(repository, other)
    assert stored(registry, other)
    assert sent(registry, "PATCH") == [CHUNK, CHUNK]


@pytest.mark.parametrize("status", [400, 405, 411, 415, 501])
def test_a_registry_without_chunks(
    registry: FakeRegistry, repository: RegistryRepository, status: int
) -> None:
    registry.rule("PATCH", "", fake.status(status), ALWAYS)
    push(repository, LARGE)
    assert stored(registry, LARGE)
    assert sent(registry, "PUT") == [len(LARGE)]


@pytest.mark.parametrize("status", [413, 416])
def test_a_cap_on_chunks(
    registry: FakeRegistry, repository: RegistryRepository, status: int
) -> None:
    for method in ("PATCH", "PUT"):
        registry.rule(method, "", quirks.capped(150_000, status), ALWAYS)
    push(repository, LARGE)
    assert stored(registry, LARGE)
    assert sent(registry, "PATCH") == [CHUNK, CHUNK // 2] + [CHUNK // 4] * 15
    other = noise(1_200_000, 2)
    push(repository, other)
    assert stored(registry, other)
    assert sent(registry, "PATCH")[17:] == [CHUNK // 4] * 12


@pytest.mark.parametrize("status", [413, 416])
def test_a_cap_that_nothing_gets_below(
    registry: FakeRegistry, repository: RegistryRepository, status: int
) -> None:
    for method in ("PATCH", "PUT"):
        registry.rule(method, "", quirks.capped(10, status), ALWAYS)
    with pytest.raises(FetchError, match=rf"{status} \(TOO_LARGE: more than 10 bytes\)"):
        push(repository, LARGE)
    assert not registry.blobs
    assert not registry.uploads


def test_the_reason_is_told_where_a_source_comes_once(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    registry.rule("PATCH", "", quirks.capped(10, 413), ALWAYS)
    with pytest.raises(FetchError, match=r"413 \(TOO_LARGE: more than 10 bytes\)"):
        push(repository, LARGE, Pipe(LARGE))


def test_another_offset_that_is_told(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    """A 416 that says where the upload is means no cap."""

    def behind(exchange: fake.Exchange) -> bool:
        (upload,) = exchange.registry.uploads.values()
        del upload[100_000:]
        upload += LARGE[100_000 : CHUNK + 50_000]
        return exchange.answer(416, b"", exchange.progress("a/b", "upload-0", len(upload)))

    registry.rule("PATCH", f"state={CHUNK}", behind)
    push(repository, LARGE)
    assert stored(registry, LARGE)
    assert max(sent(registry, "PATCH")[2:]) > CHUNK // 2


def test_chunks_have_a_least_size(registry: FakeRegistry, repository: RegistryRepository) -> None:
    registry.rule("POST", "", quirks.answering(OCI_Chunk_Min_Length="600000"), ALWAYS)
    registry.rule("PATCH", "", quirks.too_small(600_000), ALWAYS)
    push(repository, LARGE)
    assert stored(registry, LARGE)
    assert sent(registry, "PATCH") == [600_000, 900_000]


def test_a_least_size_decides_no_memory(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    registry.rule("POST", "", quirks.answering(OCI_Chunk_Min_Length="1" * 18), ALWAYS)
    push(repository, LARGE)
    assert stored(registry, LARGE)
    assert not sent(registry, "PATCH")


# One request for a large blob


@pytest.fixture
def whole(registry: FakeRegistry, repository: RegistryRepository) -> RegistryRepository:
    """A registry that was found to take no chunks."""
    registry.rule("PATCH", "", fake.status(405), ALWAYS)
    push(repository, noise(1_200_000, 7))
    registry.seen.clear()
    registry.blobs.clear()
    return repository


@pytest.mark.parametrize("action", [fake.status(503), fake.reset(), fake.status(429)])
def test_the_one_request_is_made_again(
    registry: FakeRegistry, whole: RegistryRepository, action: fake.Action
) -> None:
    registry.rule("PUT", "", action, times=2)
    push(whole, LARGE)
    assert stored(registry, LARGE)
    assert sent(registry, "PUT") == [len(LARGE)] * 3


def test_the_answer_to_the_one_request_is_lost(
    registry: FakeRegistry, whole: RegistryRepository
) -> None:
    def finish_and_break(exchange: fake.Exchange) -> bool:
        exchange.wfile = io.BytesIO()  # type: ignore[assignment]
        exchange.serve(exchange.registry)
        return exchange.reset()

    registry.rule("PUT", "", finish_and_break)
    push(whole, LARGE)
    assert sent(registry, "PUT") == [len(LARGE)]


def test_a_login_expires_before_the_one_request(
    registry: FakeRegistry, whole: RegistryRepository
) -> None:
    def expire(exchange: fake.Exchange) -> bool:
        registry.token = "another"
        return False

    registry.token = "first"
    registry.rule("PUT", "", expire)
    push(whole, LARGE)
    assert stored(registry, LARGE)


@pytest.mark.parametrize("wrong", [LARGE[:-1], LARGE + b"x", LARGE[:-1] + b"x", b""])
def test_the_one_request_is_not_made_of_wrong_bytes(
    registry: FakeRegistry, whole: RegistryRepository, wrong: bytes
) -> None:
    with pytest.raises(IntegrityError, match="is not it"):
        push(whole, LARGE, io.BytesIO(wrong))
    assert not registry.blobs


def test_a_source_that_breaks_is_not_the_registry(whole: RegistryRepository) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 1_000_000:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(StoreError, match="Input/output error"):
        push(whole, LARGE, Broken(LARGE))


# Authorization


@pytest.mark.parametrize(
    "lifetime", ["300", "300.0", "", "soon", None, True, [], {"s": 3}, "nan", "inf", -5, "9" * 500]
)
def test_the_lifetime_of_a_token_may_be_anything(registry: FakeRegistry, lifetime: object) -> None:
    registry.token, registry.token_lifetime_s = "secret", lifetime
    with opened(registry) as repository:
        push(repository, SMALL)
    assert stored(registry, SMALL)


def test_a_lifetime_in_text_counts(registry: FakeRegistry) -> None:
    registry.token, registry.token_lifetime_s = "secret", "300"
    with opened(registry) as repository:
        push(repository, SMALL)
        (header,) = repository.session.authorizer._headers.values()
        registry.token_lifetime_s = 300
    with opened(registry) as repository:
        push(repository, noise(300, 3))
        (other,) = repository.session.authorizer._headers.values()
    assert header[1] > other[1] - 100


@pytest.mark.parametrize("status", [201, 202])
def test_a_token_comes_with_any_success(registry: FakeRegistry, status: int) -> None:
    registry.token = "secret"
    registry.rule("GET", "^/token", quirks.answering(status), ALWAYS)
    with opened(registry) as repository:
        push(repository, SMALL)
    assert stored(registry, SMALL)


def scopes(registry: FakeRegistry) -> list[str]:
    return [seen.path for seen in registry.seen if seen.path.startswith("/token")]


def test_a_repository_that_the_push_makes(registry: FakeRegistry, tmp_path: Path) -> None:
    """All of a push asks for the right to push, or it would not be let in before that."""
    quirks.made_by_a_push(registry)
    make_image(tmp_path / "l")
    with (
        open_repository(parse_reference(f"oci:{tmp_path / 'l'}:latest")) as source,
        open_repository(parse_reference(f"docker://{registry.host}/a/b:v1"), write=True) as target,
    ):
        pushed = copy(source, target)
        assert target.resolve() == pushed
    assert registry.manifests["v1"]
    assert len(scopes(registry)) == 1
    assert all("pull%2Cpush" in path and path.count("scope=") == 1 for path in scopes(registry))


def test_who_reads_does_not_ask_for_more(registry: FakeRegistry) -> None:
    registry.token = "secret"
    digest = registry.add_blob(SMALL)
    with opened(registry) as repository:
        repository.read_range(digest, 0, 10)
    assert "push" not in scopes(registry)[0]


def test_scopes_of_a_challenge_are_bounded(registry: FakeRegistry) -> None:
    registry.token = "secret"
    many = " ".join(f"repository:a{number}:pull" for number in range(500))
    realm = f'Bearer realm="http://{registry.host}/token",scope="{many}"'
    registry.rule("GET", "/blobs/", fake.status(401, {"WWW-Authenticate": realm}))
    digest = registry.add_blob(SMALL)
    with opened(registry) as repository:
        repository.read_range(digest, 0, 10)
    assert 1 < scopes(registry)[0].count("scope=") < 50


# Mounts


@pytest.mark.parametrize("status", REFUSALS)
def test_a_mount_that_is_refused(
    registry: FakeRegistry, repository: RegistryRepository, status: int
) -> None:
    registry.add_blob(SMALL)
    registry.rule("POST", "mount=", fake.status(status), ALWAYS)
    with opened(registry, "other/one") as other:
        assert not repository.mount_blob(m.describe("", SMALL), other)


@pytest.mark.parametrize(
    "action",
    [
        quirks.answering(202, without=("Location",)),
        quirks.answering(201, Docker_Content_Digest="sha256:" + "0" * 64),
        fake.reset(),
        fake.raw(b"nonsense"),
    ],
)
def test_a_mount_that_goes_wrong(
    registry: FakeRegistry, repository: RegistryRepository, action: fake.Action
) -> None:
    registry.add_blob(SMALL)
    registry.rule("POST", "mount=", action, ALWAYS)
    with opened(registry, "other/one") as other:
        assert not repository.mount_blob(m.describe("", SMALL), other)


@pytest.mark.parametrize("status", [200, 202, 204])
def test_a_mount_that_begins_an_upload(
    registry: FakeRegistry, repository: RegistryRepository, status: int
) -> None:
    registry.rule("POST", "mount=", quirks.answering(status), ALWAYS)
    with opened(registry, "other/one") as other:
        assert not repository.mount_blob(m.describe("", SMALL), other)
    assert not registry.uploads


# Reading on


@pytest.mark.parametrize("total", ["", "bytes */10", "bytes */300000", "bytes */x"])
@pytest.mark.parametrize("closed", [True, False])
def test_reading_on_where_ranges_are_refused(
    registry: FakeRegistry, repository: RegistryRepository, total: str, closed: bool
) -> None:
    """All of it is asked for again, for what comes is verified."""
    blob = noise(300_000)
    registry.add_blob(blob)
    registry.rule("GET", "/blobs/", fake.cut_after(100_000))
    if closed:
        registry.rule("GET", "/blobs/", quirks.closed_ranges_only(total), ALWAYS)
    else:
        registry.rule("GET", "/blobs/", fake.status(416, {"Content-Range": total}))
    with repository.open_blob(m.describe("", blob)) as stream:
        assert stream.read() == blob
    assert registry.count("GET", "/blobs/") == (2 if closed else 3)


def test_a_refused_range_inside_of_what_there_is(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    """That it contradicts itself may pass; that there is less than was asked for does not."""
    digest = registry.add_blob(SMALL)
    for total, passes in ((5000, True), (1100, True), (1099, False), (0, False)):
        registry.rule("GET", "/blobs/", fake.status(416, {"Content-Range": f"bytes */{total}"}))
        with pytest.raises(FetchError, match="416") as caught:
            repository.read_range(digest, 1000, 100)
        assert isinstance(caught.value, TransientError) is passes


def test_an_error_that_claims_the_length_of_the_blob(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    """What has come of it is told, and nobody waits for the rest."""
    digest = registry.add_blob(SMALL)
    body = b'{"errors":[{"code":"RANGE_INVALID","message":"none of it"}]}'
    head = b"HTTP/1.1 416 No\r\nContent-Length: 60000\r\nContent-Range: bytes */5000\r\n\r\n"
    registry.rule("GET", "/blobs/", fake.raw(head + body))
    with pytest.raises(FetchError, match=r"416 \(RANGE_INVALID: none of it\)") as caught:
        repository.read_range(digest, 6000, 100)
    assert not isinstance(caught.value, TransientError)


def test_a_blob_that_breaks_off_at_its_end(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    """All of it has come, so that nothing is asked for."""
    blob = noise(300_000)
    registry.add_blob(blob)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(blob)
    registry.rule("GET", "/blobs/", fake.raw(head + blob))
    with repository.open_blob(m.describe("", blob)) as stream:
        assert stream.read() == blob
    assert registry.count("GET", "/blobs/") == 1


def test_a_blob_that_breaks_off_for_ever_without_ranges(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    blob = noise(300_000)
    registry.add_blob(blob)
    registry.ignore_ranges = True
    for end in range(100, 5000, 100):
        registry.rule("GET", "/blobs/", fake.cut_after(end))
    with (
        pytest.raises(FetchError, match="again and again"),
        repository.open_blob(m.describe("", blob)) as stream,
    ):
        stream.read()


# Other names of a digest


def by_sha512(data: bytes) -> m.Descriptor:
    digest = "sha512:" + hashlib.sha512(data).hexdigest()
    return m.Descriptor(media_type=m.OCI_LAYER, digest=digest, size=len(data))


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_a_blob_by_sha512_that_the_registry_calls_by_its_sha256(
    registry: FakeRegistry, repository: RegistryRepository, data: bytes
) -> None:
    registry.rule("PUT", "", quirks.stores_sha512_as_sha256(both=True), ALWAYS)
    repository.push_blob(by_sha512(data), io.BytesIO(data))
    assert registry.blobs[by_sha512(data).digest] == data
    with repository.open_blob(by_sha512(data)) as stream:
        assert stream.read() == data


@pytest.mark.parametrize("says", ["sha256", "sha512"])
def test_a_blob_by_sha512_that_is_there_by_its_sha256_only(
    registry: FakeRegistry, repository: RegistryRepository, says: str
) -> None:
    action = quirks.stores_sha512_as_sha256(both=False, says=says)
    registry.rule("PUT", "", action, ALWAYS)
    with pytest.raises(UnsupportedError, match=r"took sha512:.* does not have it by that name"):
        repository.push_blob(by_sha512(SMALL), io.BytesIO(SMALL))


@pytest.mark.parametrize(
    ("named", "error"),
    [
        (lambda data: "sha512:" + hashlib.sha512(data).hexdigest(), None),
        (lambda data: "sha512:" + "0" * 128, IntegrityError),
        (lambda data: "md5:" + "0" * 32, None),
        (lambda data: "", None),
    ],
)
def test_the_name_that_a_manifest_was_stored_under(
    registry: FakeRegistry,
    repository: RegistryRepository,
    named: Callable[[bytes], str],
    error: type[Error] | None,
) -> None:
    data = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
    action = quirks.answering(Docker_Content_Digest=named(data))
    registry.rule("PUT", "/manifests/", action)
    if error is None:
        repository.push_manifest("v1", m.OCI_INDEX, data)
    else:
        with pytest.raises(error, match="stored the manifest"):
            repository.push_manifest("v1", m.OCI_INDEX, data)


def index_by_sha512(path: Path) -> tuple[str, bytes]:
    """A layout with an index, ``multi``, that names its image by sha512; that name, the image."""
    image = make_image(path, None)
    with LayoutRepository(parse_reference(f"oci:{path}"), write=True) as repository:
        _, data = repository.manifest(image)
        digest = "sha512:" + hashlib.sha512(data).hexdigest()
        child = repository.push_manifest(None, m.OCI_MANIFEST, data, digest=digest)
        index = m.ImageIndex(schema_version=2, media_type=m.OCI_INDEX, manifests=(child,))
        repository.push_manifest("multi", m.OCI_INDEX, m.encode(index))
    return digest, data


def test_an_image_by_sha512_keeps_its_name_in_copies(
    registry: FakeRegistry, repository: RegistryRepository, tmp_path: Path
) -> None:
    """Or the index that lists it would list what is not there."""
    digest, data = index_by_sha512(tmp_path / "l")
    source = LayoutRepository(parse_reference(f"oci:{tmp_path / 'l'}:multi"), write=False)
    back = LayoutRepository(parse_reference(f"oci:{tmp_path / 'back'}:multi"), write=True)
    with source, back:
        copy(source, repository, tag="multi")
        assert registry.manifests[digest] == (m.OCI_MANIFEST, data)
        copy(source, back)
        assert back.manifest(digest)[1] == data


def test_a_manifest_is_not_pushed_by_a_digest_that_it_does_not_have(
    registry: FakeRegistry, repository: RegistryRepository, tmp_path: Path
) -> None:
    data = m.encode(m.ImageIndex(schema_version=2, media_type=m.OCI_INDEX, manifests=()))
    wrong = "sha512:" + "0" * 128
    with LayoutRepository(parse_reference(f"oci:{tmp_path / 'l'}"), write=True) as layout:
        for place in (repository, layout):
            with pytest.raises(IntegrityError):
                place.push_manifest(None, m.OCI_INDEX, data, digest=wrong)
    assert not registry.manifests


def test_all_pages_of_a_list_have_one_deadline(registry: FakeRegistry) -> None:
    """A registry that is slow with each page does not have their number times the time."""
    clock: list[float] = []

    def page(exchange: fake.Exchange) -> bool:
        number = len(clock)
        clock.append(0.0)
        threading.Event().wait(0.1)
        link = {"Link": f'</v2/a/b/referrers/x?page={number}>; rel="next"'}
        return exchange.answer(200, b'{"schemaVersion":2,"manifests":[]}', link)

    registry.rule("GET", "/referrers/", page, ALWAYS)
    with opened(registry, deadline_s=1.0) as repository, pytest.raises(FetchError, match="in time"):
        list(repository.referrers("sha256:" + "0" * 64))
    assert len(clock) < 60
