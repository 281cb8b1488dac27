"""The registry client against a registry that misbehaves as networks and servers do."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import threading
import time
from collections.abc import Iterator

import pytest

from lamina.errors import (
    AuthError,
    Error,
    FetchError,
    FormatError,
    IntegrityError,
    NotFoundError,
    UnsupportedError,
)
from lamina.http.client_options import ClientOptions
from lamina.http.transient import TransientError
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.client import RegistryRepository
from lamina.source import retry
from lamina.source.blob_source import RangesIgnoredError
from tests.support import fake_registry as fake
from tests.support.fake_registry import FakeRegistry
from tests.unit.registry.images import noise

BLOB = noise(300_000)
SECRET = "tok3n-secret"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake.fake_registry() as registry:
        yield registry


@pytest.fixture
def cdn() -> Iterator[FakeRegistry]:
    with fake.fake_registry() as registry:
        yield registry


@pytest.fixture
def digest(registry: FakeRegistry) -> str:
    return registry.add_blob(BLOB)


@pytest.fixture
def repository(registry: FakeRegistry) -> Iterator[RegistryRepository]:
    with opened(registry) as repository:
        yield repository


def opened(registry: FakeRegistry, name: str = "a/b", **options: object) -> RegistryRepository:
    reference = parse_reference(f"docker://{registry.host}/{name}")
    chosen = {"timeout_s": 2.0, "deadline_s": 10.0, **options}
    return RegistryRepository(reference, ClientOptions(**chosen))  # type: ignore[arg-type]


def manifest_of(data: bytes) -> bytes:
    layer = m.describe(m.OCI_LAYER, data)
    config = m.describe(m.OCI_CONFIG, b"{}")
    return m.encode(
        m.Manifest(schema_version=2, media_type=m.OCI_MANIFEST, config=config, layers=(layer,))
    )


def put_manifest(registry: FakeRegistry, data: bytes, tag: str = "latest") -> m.Descriptor:
    descriptor = m.describe(m.OCI_MANIFEST, data)
    for key in (tag, descriptor.digest):
        registry.manifests[key] = (m.OCI_MANIFEST, data)
    return descriptor


def blob_gets(registry: FakeRegistry) -> int:
    return registry.count("GET", "/blobs/sha256")


# Ranges


def test_range(registry: FakeRegistry, repository: RegistryRepository, digest: str) -> None:
    for offset, size in ((0, 1), (1000, 5000), (0, len(BLOB)), (len(BLOB) - 1, 1), (5, 0)):
        assert repository.read_range(digest, offset, size) == BLOB[offset : offset + size]
    sent = [seen.headers for seen in registry.seen if "/blobs/" in seen.path]
    assert len(sent) == 4
    assert sent[1]["range"] == "bytes=1000-5999"
    assert sent[1]["accept-encoding"] == "identity"


def test_ranges_from_many_threads(
    registry: FakeRegistry, repository: RegistryRepository, digest: str
) -> None:
    failures: list[BaseException] = []

    def read(first: int) -> None:
        try:
            for offset in range(first, 20_000 + first, 1000):
                assert repository.read_range(digest, offset, 999) == BLOB[offset : offset + 999]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert blob_gets(registry) == 160


@pytest.mark.parametrize(("offset", "size"), [(-1, 5), (0, -5), (-5, 0)])
def test_senseless_ranges(repository: RegistryRepository, offset: int, size: int) -> None:
    with pytest.raises(FetchError):
        repository.read_range("sha256:" + "0" * 64, offset, size)


def test_range_beyond_the_end(repository: RegistryRepository, digest: str) -> None:
    with pytest.raises(FetchError, match=r"416|asked for the bytes"):
        repository.read_range(digest, len(BLOB), 10)
    with pytest.raises(FetchError, match="has 300000 bytes of a blob"):
        repository.read_range(digest, len(BLOB) - 5, 10)


def test_unknown_blob(repository: RegistryRepository) -> None:
    with pytest.raises(NotFoundError, match=r"404 \(BLOB_UNKNOWN: blob unknown to registry\)"):
        repository.read_range("sha256:" + "0" * 64, 0, 1)


def test_a_registry_that_ignores_ranges(
    registry: FakeRegistry, repository: RegistryRepository, digest: str
) -> None:
    registry.ignore_ranges = True
    assert repository.read_range(digest, 1000, 500) == BLOB[1000:1500]
    assert repository.read_range(digest, len(BLOB) - 5, 5) == BLOB[-5:]
    with pytest.raises(FetchError):
        repository.read_range(digest, len(BLOB) - 5, 10)
    larger = registry.add_blob(BLOB + bytes((2 << 20) - len(BLOB)))
    with pytest.raises(RangesIgnoredError, match="ignores ranges"):
        repository.read_range(larger, 5, 10)
    assert repository.read_range(larger, 0, (1 << 20) + 5)[: len(BLOB)] == BLOB


@pytest.mark.parametrize(
    ("content_range", "length"),
    [
        ("bytes 1000-1098/300000", 99),
        ("bytes 1001-1100/300000", 100),
        ("bytes 0-99/300000", 100),
        ("bytes 1000-1099/300000", 101),
        ("bytes 1000-1099/300000", 99),
        ("bytes */300000", 100),
        ("items 1000-1099/300000", 100),
        ("", 100),
        ("bytes 1000-" + "9" * 400 + "/1", 100),
    ],
)
def test_a_wrong_range(
    registry: FakeRegistry,
    repository: RegistryRepository,
    digest: str,
    content_range: str,
    length: int,
) -> None:
    headers = {"Content-Range": content_range}
    registry.rule("GET", "/blobs/", fake.status(206, headers, bytes(length)))
    with pytest.raises(FetchError, match=r"asked for|the registry sent"):
        repository.read_range(digest, 1000, 100)
    assert repository.read_range(digest, 1000, 100) == BLOB[1000:1100]


@pytest.mark.parametrize(
    "answer", [(206, {"Content-Range": "bytes 1000-1049/1050"}, bytes(50)), (416, {}, b"")]
)
def test_a_blob_that_is_shorter_than_the_manifest_says(
    registry: FakeRegistry,
    repository: RegistryRepository,
    digest: str,
    answer: tuple[int, dict[str, str], bytes],
) -> None:
    """It will not grow, so nothing is to be waited for."""
    registry.rule("GET", "/blobs/", fake.status(*answer))
    with pytest.raises(FetchError, match=r"1050 bytes of a blob|less of it") as caught:
        repository.read_range(digest, 1000, 100)
    assert not isinstance(caught.value, TransientError)
    assert "is cut" in str(caught.value.hint)


def test_a_cut_range(registry: FakeRegistry, repository: RegistryRepository, digest: str) -> None:
    registry.rule("GET", "/blobs/", fake.cut_after(50))
    with pytest.raises(FetchError, match="failed"):
        repository.read_range(digest, 1000, 100)
    assert repository.read_range(digest, 1000, 100) == BLOB[1000:1100]


def test_a_dead_kept_connection_is_replaced(
    registry: FakeRegistry, repository: RegistryRepository, digest: str
) -> None:
    assert repository.read_range(digest, 0, 10) == BLOB[:10]
    registry.rule("GET", "/blobs/", fake.reset())
    assert repository.read_range(digest, 10, 10) == BLOB[10:20]
    registry.rule("GET", "/blobs/", fake.reset(), times=2)
    with pytest.raises(FetchError):
        repository.read_range(digest, 10, 10)


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_ranges_are_not_retried_here(
    registry: FakeRegistry, repository: RegistryRepository, digest: str, code: int
) -> None:
    registry.rule("GET", "/blobs/", fake.status(code))
    with pytest.raises(FetchError, match=f"answers {code}"):
        repository.read_range(digest, 0, 10)
    assert blob_gets(registry) == 1


@contextlib.contextmanager
def silent(registry: FakeRegistry) -> Iterator[threading.Event]:
    """Blobs are answered when the event is set, which this does at its end."""
    answered = threading.Event()

    def wait(exchange: fake.Exchange) -> bool:
        answered.wait(250)
        return exchange.reset()

    registry.rule("GET", "/blobs/", wait, times=99)
    try:
        yield answered
    finally:
        answered.set()


def test_silence_ends_in_time(registry: FakeRegistry, digest: str) -> None:
    with silent(registry) as answered, opened(registry, timeout_s=0.1) as repository:
        with pytest.raises(FetchError, match="did not answer in time"):
            repository.read_range(digest, 0, 10)
        assert not answered.is_set()


def test_long_waits_are_told_of(
    registry: FakeRegistry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_manifest(registry, manifest_of(b"x"))
    for action, long_s, timeout_s in (
        (fake.status(503), 60.0, 60.0),
        (fake.stall(30), 1.0, 3.0),
    ):
        monkeypatch.setattr(retry, "_LONG_S", long_s)
        registry.rule("GET", "/manifests/", action, times=1)
        with caplog.at_level("INFO", "lamina"), opened(registry, timeout_s=timeout_s) as repository:
            repository.resolve()
    assert [each.levelname for each in caplog.records] == ["INFO", "WARNING"]
    assert all("asking again" in each.message for each in caplog.records)


def test_a_range_has_the_time_that_its_reader_has(registry: FakeRegistry, digest: str) -> None:
    with silent(registry) as answered, opened(registry, timeout_s=600) as repository:
        with pytest.raises(FetchError, match="did not answer in time"):
            repository.read_into(digest, 0, memoryview(bytearray(10)), timeout_s=0.1)
        assert not answered.is_set()


def test_a_compressed_answer(
    registry: FakeRegistry, repository: RegistryRepository, digest: str
) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    for path, read in (
        ("/blobs/", lambda: repository.read_range(digest, 0, 10)),
        ("/manifests/", repository.resolve),
    ):
        registry.rule("GET", path, fake.status(200, {"Content-Encoding": "gzip"}, bomb))
        with pytest.raises(FetchError, match="coding 'gzip'"):
            read()


# Redirects


def test_redirects_are_remembered_and_get_no_token(
    registry: FakeRegistry, cdn: FakeRegistry, digest: str
) -> None:
    registry.token = SECRET
    registry.redirect_blobs_to = cdn.host
    cdn.add_blob(BLOB)
    with opened(registry) as repository:
        for offset in range(0, 1000, 100):
            assert repository.read_range(digest, offset, 100) == BLOB[offset : offset + 100]
        assert blob_gets(registry) == 2
        assert blob_gets(cdn) == 10
        assert all("authorization" not in seen.headers for seen in cdn.seen)
        assert all(seen.headers["range"] for seen in cdn.seen)
        with repository.open_blob(m.describe("", BLOB)) as stream:
            assert stream.read() == BLOB


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_an_expired_address_is_asked_for_again(
    registry: FakeRegistry, cdn: FakeRegistry, digest: str, code: int
) -> None:
    registry.redirect_blobs_to = cdn.host
    cdn.add_blob(BLOB)
    with opened(registry) as repository:
        repository.read_range(digest, 0, 10)
        challenge = {"WWW-Authenticate": 'Basic realm="steal"'}
        cdn.rule("GET", "/blobs/", fake.status(code, challenge))
        assert repository.read_range(digest, 10, 10) == BLOB[10:20]
        assert blob_gets(registry) == 2


def test_addresses_are_forgotten(
    registry: FakeRegistry, cdn: FakeRegistry, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamina.registry.client._REDIRECT_LIFETIME_S", 0.0)
    registry.redirect_blobs_to = cdn.host
    cdn.add_blob(BLOB)
    with opened(registry) as repository:
        repository.read_range(digest, 0, 10)
        repository.read_range(digest, 0, 10)
    assert blob_gets(registry) == 2


def test_a_signed_address_is_not_in_messages(
    registry: FakeRegistry, cdn: FakeRegistry, repository: RegistryRepository, digest: str
) -> None:
    registry.redirect_blobs_to = cdn.host
    with pytest.raises(NotFoundError) as caught:
        repository.read_range(digest, 0, 10)
    assert "signature" not in str(caught.value)


def test_an_address_that_is_not_good_is_worth_another_attempt(
    registry: FakeRegistry, cdn: FakeRegistry, repository: RegistryRepository, digest: str
) -> None:
    """It is the registry that has signed it, so the user's login has nothing to do with it."""
    cdn.add_blob(BLOB)
    registry.redirect_blobs_to = cdn.host
    cdn.rule("GET", "/blobs/", fake.status(403))
    with pytest.raises(TransientError, match=r"redirects to .* which answers 403"):
        repository.read_range(digest, 3, 10)
    assert repository.read_range(digest, 3, 10) == BLOB[3:13]


def test_redirects_without_end(
    registry: FakeRegistry, repository: RegistryRepository, digest: str
) -> None:
    loop = fake.status(302, {"Location": "/v2/a/b/blobs/" + digest})
    registry.rule("GET", "/blobs/", loop, times=1000)
    with pytest.raises(FetchError, match="redirects without end"):
        repository.read_range(digest, 0, 10)
    assert blob_gets(registry) < 10


@pytest.mark.parametrize("place", ["", "ftp://x/", "file:///etc/passwd", "http://u:p@127.0.0.1/"])
def test_redirects_to_nowhere(
    registry: FakeRegistry, repository: RegistryRepository, digest: str, place: str
) -> None:
    registry.rule("GET", "/blobs/", fake.status(307, {"Location": place}), times=9)
    with pytest.raises(FetchError):
        repository.read_range(digest, 0, 10)


# Tokens


def test_a_token_is_asked_for_once(registry: FakeRegistry, digest: str) -> None:
    registry.token = SECRET
    with opened(registry) as repository:
        for _ in range(5):
            repository.read_range(digest, 0, 10)
    assert registry.tokens_given == 1
    (asked,) = [seen for seen in registry.seen if seen.path.startswith("/token")]
    assert "service=fake" in asked.path
    assert "scope=repository%3Aa%2Fb%3Apull&scope=x%3Ay%3Az" in asked.path
    assert registry.count("GET", "/blobs/") == 6


def test_threads_share_one_token(registry: FakeRegistry, digest: str) -> None:
    registry.token = SECRET
    with opened(registry) as repository:
        threads = [
            threading.Thread(target=repository.read_range, args=(digest, 0, 10)) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert registry.tokens_given == 1


def test_an_expired_token_is_renewed(registry: FakeRegistry, digest: str) -> None:
    registry.token = SECRET
    with opened(registry) as repository:
        repository.read_range(digest, 0, 10)
        registry.token = "another"
        repository.read_range(digest, 0, 10)
        assert registry.tokens_given == 2
        registry.token_lifetime_s = 0.5
        registry.token = "third"
        repository.read_range(digest, 0, 10)
        time.sleep(1)
        repository.read_range(digest, 0, 10)
        assert registry.tokens_given == 4


def test_a_login(registry: FakeRegistry, digest: str) -> None:
    registry.token, registry.login = SECRET, "ada:pass word"
    with opened(registry, username="ada", password="pass word") as repository:
        assert repository.read_range(digest, 0, 10) == BLOB[:10]
    with (
        opened(registry, username="ada", password="wrong") as repository,
        pytest.raises(AuthError, match="refuses the login") as caught,
    ):
        repository.read_range(digest, 0, 10)
    assert "wrong" not in str(caught.value)
    with opened(registry) as repository, pytest.raises(AuthError, match="wants a login"):
        repository.read_range(digest, 0, 10)


def test_an_identity_token(
    registry: FakeRegistry, digest: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    registry.token, registry.login = SECRET, "refresh-me"
    path = tmp_path_factory.mktemp("auth") / "auth.json"
    path.write_text(json.dumps({"auths": {registry.host: {"identitytoken": "refresh-me"}}}))
    with opened(registry, authfile=str(path)) as repository:
        assert repository.read_range(digest, 0, 10) == BLOB[:10]
    (asked,) = [seen for seen in registry.seen if seen.path.startswith("/token")]
    assert asked.method == "POST"
    assert b"grant_type=refresh_token" in asked.body


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (fake.status(200, {}, b"{}"), FetchError),
        (fake.status(200, {}, b"[1]"), FetchError),
        (fake.status(200, {}, b'{"token":"a\\r\\nX: y"}'), FetchError),
        (fake.status(200, {}, b'{"token":"\xc3\xa4"}'), FetchError),
        (fake.status(200, {}, b" " * (2 << 20)), FetchError),
        (fake.status(200, {}, b'{"token":"' + b"wrong" + b'"}'), AuthError),
        (fake.status(403), AuthError),
        (fake.status(404), FetchError),
        (fake.status(302, {"Location": "/token"}), FetchError),
        (fake.raw(b"nonsense"), FetchError),
    ],
)
def test_a_token_service_that_misbehaves(
    registry: FakeRegistry, digest: str, answer: fake.Action, error: type[Error]
) -> None:
    registry.token = SECRET
    registry.rule("GET", "/token", answer, times=9)
    with opened(registry) as repository, pytest.raises(error):
        repository.read_range(digest, 0, 10)


@pytest.mark.parametrize(
    "challenge",
    ["", "Digest realm=x", "Bearer service=x", 'Bearer realm="file:///etc"', 'Basic realm="x"'],
)
def test_challenges_that_cannot_be_met(
    registry: FakeRegistry, repository: RegistryRepository, digest: str, challenge: str
) -> None:
    answer = fake.status(401, {"WWW-Authenticate": challenge})
    registry.rule("GET", "/blobs/", answer, times=9)
    with pytest.raises(FetchError):
        repository.read_range(digest, 0, 10)


def test_the_token_service_is_tried_again(registry: FakeRegistry) -> None:
    registry.token = SECRET
    put_manifest(registry, manifest_of(b"x"))
    registry.rule("GET", "/token", fake.status(503))
    with opened(registry) as repository:
        repository.manifest()


def test_secrets_are_nowhere(
    registry: FakeRegistry, digest: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    registry.token, registry.login = SECRET, "ada:pass-word"
    with opened(registry, username="ada", password="pass-word") as repository:
        repository.read_range(digest, 0, 10)
        shown = repr(repository.__dict__) + repr(vars(repository.session)) + caplog.text
        registry.rule("GET", "/blobs/", fake.status(403, {}, b'{"errors":[{"code":"DENIED"}]}'))
        with pytest.raises(AuthError, match="DENIED") as caught:
            repository.read_range(digest, 0, 10)
    shown += repr(caught.value) + str(caught.value.hint)
    assert SECRET not in shown
    assert "pass-word" not in shown


# Manifests


def test_manifest_by_tag_and_digest(registry: FakeRegistry, repository: RegistryRepository) -> None:
    data = manifest_of(b"x")
    descriptor = put_manifest(registry, data)
    assert repository.manifest() == (descriptor, data)
    assert repository.manifest("latest") == (descriptor, data)
    assert repository.manifest(descriptor.digest) == (descriptor, data)
    assert repository.manifest(descriptor) == (descriptor, data)
    assert repository.resolve() == descriptor
    accept = registry.seen[-1].headers["accept"]
    assert m.OCI_INDEX in accept
    assert m.DOCKER_MANIFEST in accept
    with pytest.raises(NotFoundError, match="MANIFEST_UNKNOWN"):
        repository.manifest("absent")


def test_a_changed_manifest(registry: FakeRegistry, repository: RegistryRepository) -> None:
    descriptor = put_manifest(registry, manifest_of(b"x"))
    other = manifest_of(b"y")
    registry.manifests[descriptor.digest] = (m.OCI_MANIFEST, other)
    for which in (descriptor, descriptor.digest):
        with pytest.raises(IntegrityError):
            repository.manifest(which)
    headers = {"Docker-Content-Digest": descriptor.digest}
    registry.rule("GET", "/manifests/latest", fake.status(200, headers, other))
    with pytest.raises(IntegrityError):
        repository.manifest()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"<html>", FormatError),
        (b'{"schemaVersion":1,"fsLayers":[]}', UnsupportedError),
        (b" " * (m.MAX_MANIFEST_BYTES + 1), FetchError),
    ],
)
def test_what_is_no_manifest(
    registry: FakeRegistry, repository: RegistryRepository, data: bytes, error: type[Error]
) -> None:
    put_manifest(registry, data)
    with pytest.raises(error):
        repository.manifest()


def test_an_endless_manifest(registry: FakeRegistry, repository: RegistryRepository) -> None:
    def endless(exchange: fake.Exchange) -> bool:
        try:
            exchange.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                exchange.wfile.write(bytes(65536))
        except OSError:
            return exchange.reset()

    registry.rule("GET", "/manifests/", endless)
    with pytest.raises(FetchError, match="longer than"):
        repository.manifest()


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(
    registry: FakeRegistry, repository: RegistryRepository, code: int
) -> None:
    descriptor = put_manifest(registry, manifest_of(b"x"))
    registry.rule("GET", "/manifests/", fake.status(code), times=1)
    registry.rule("GET", "/manifests/", fake.reset(), times=1)
    registry.rule("GET", "/manifests/", fake.cut_after(10), times=1)
    assert repository.resolve() == descriptor
    assert registry.count("GET", "/manifests/") == 4


def test_retries_end(registry: FakeRegistry) -> None:
    registry.rule("GET", "/manifests/", fake.status(503), times=99)
    with opened(registry, attempts=3) as repository, pytest.raises(FetchError, match="503"):
        repository.resolve()
    assert registry.count("GET", "/manifests/") == 3
    with opened(registry, attempts=99, deadline_s=0.0) as repository, pytest.raises(FetchError):
        repository.session.retry(repository.resolve, time.monotonic())


def test_retry_after_is_respected(registry: FakeRegistry, repository: RegistryRepository) -> None:
    put_manifest(registry, manifest_of(b"x"))
    registry.rule("GET", "/manifests/", fake.status(429, {"Retry-After": "1"}))
    started = time.monotonic()
    repository.resolve()
    assert time.monotonic() - started >= 1


def test_what_does_not_pass_is_not(registry: FakeRegistry, repository: RegistryRepository) -> None:
    for code, error in ((403, AuthError), (404, NotFoundError), (418, FetchError)):
        registry.rule("GET", "/manifests/", fake.status(code))
        before = registry.count("GET", "/manifests/")
        with pytest.raises(error):
            repository.resolve()
        assert registry.count("GET", "/manifests/") == before + 1


def test_nobody_is_there() -> None:
    nowhere = FakeRegistry(host="127.0.0.1:1")
    with opened(nowhere, attempts=2) as repository, pytest.raises(FetchError, match="refused"):
        repository.resolve()


# Blobs


def test_a_blob(registry: FakeRegistry, repository: RegistryRepository, digest: str) -> None:
    descriptor = m.describe(m.OCI_LAYER, BLOB)
    with repository.open_blob(descriptor) as stream:
        assert stream.read(10) == BLOB[:10]
        assert stream.read() == BLOB[10:]
    assert repository.has_blob(digest, len(BLOB))
    assert not repository.has_blob(digest, len(BLOB) + 1)
    assert not repository.has_blob("sha256:" + "0" * 64, 1)


def test_a_blob_goes_on_after_cuts(
    registry: FakeRegistry, repository: RegistryRepository, digest: str
) -> None:
    registry.rule("GET", "/blobs/", fake.cut_after(100_000))
    registry.rule("GET", "/blobs/", fake.cut_after(50_000))
    registry.rule("GET", "/blobs/", fake.status(502))
    with repository.open_blob(m.describe("", BLOB)) as stream:
        assert stream.read() == BLOB
    assert [seen.headers.get("range") for seen in registry.seen if "/blobs/" in seen.path] == [
        None,
        "bytes=100000-299999",
        "bytes=150000-299999",
        "bytes=150000-299999",
    ]


def test_a_blob_goes_on_without_ranges(
    registry: FakeRegistry, repository: RegistryRepository, digest: str
) -> None:
    registry.ignore_ranges = True
    registry.rule("GET", "/blobs/", fake.cut_after(100_000))
    with repository.open_blob(m.describe("", BLOB)) as stream:
        assert stream.read() == BLOB


@pytest.mark.parametrize("wrong", [BLOB[:-1], BLOB + b"x", BLOB[:-1] + b"x", b""])
def test_a_wrong_blob(
    registry: FakeRegistry, repository: RegistryRepository, digest: str, wrong: bytes
) -> None:
    registry.blobs[digest] = wrong
    with pytest.raises(IntegrityError), repository.open_blob(m.describe("", BLOB)) as stream:
        while stream.read(50_000):
            pass


def test_leaving_a_blob_early(
    registry: FakeRegistry, repository: RegistryRepository, digest: str
) -> None:
    for _ in range(3):
        with repository.open_blob(m.describe("", BLOB)) as stream:
            stream.read(10)
    assert repository.read_range(digest, 0, 10) == BLOB[:10]


def test_close_is_idempotent(registry: FakeRegistry, digest: str) -> None:
    repository = opened(registry)
    assert repository.read_range(digest, 0, 10) == BLOB[:10]
    repository.close()
    repository.close()


# Pushes of manifests


def test_push_manifest(registry: FakeRegistry, repository: RegistryRepository) -> None:
    data = manifest_of(b"x")
    descriptor = repository.push_manifest("v1", m.OCI_MANIFEST, data)
    assert registry.manifests["v1"] == (m.OCI_MANIFEST, data)
    repository.push_manifest(None, m.OCI_MANIFEST, data)
    assert registry.seen[-1].path.endswith(descriptor.digest)


def test_a_registry_that_stores_something_else(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    headers = {"Docker-Content-Digest": "sha256:" + "0" * 64}
    registry.rule("PUT", "/manifests/", fake.status(201, headers))
    with pytest.raises(IntegrityError, match="stored the manifest"):
        repository.push_manifest("v1", m.OCI_MANIFEST, manifest_of(b"x"))


def test_mount(registry: FakeRegistry, repository: RegistryRepository, digest: str) -> None:
    with opened(registry, "other/one") as other:
        assert repository.mount_blob(m.describe("", BLOB), other)
        assert "from=other%2Fone" in registry.seen[-1].path
        assert not repository.mount_blob(m.describe("", b"unknown"), other)
        assert not registry.uploads
        registry.rule("POST", "mount=", fake.status(403))
        assert not repository.mount_blob(m.describe("", BLOB), other)
    with fake.fake_registry() as elsewhere, opened(elsewhere) as far:
        assert not repository.mount_blob(m.describe("", BLOB), far)


def test_push_skips_what_is_there(
    registry: FakeRegistry, repository: RegistryRepository, digest: str
) -> None:
    moved: list[int] = []
    repository.push_blob(m.describe("", BLOB), io.BytesIO(b"not read"), moved.append)
    assert moved == [len(BLOB)]
    assert registry.count("POST") == 0
