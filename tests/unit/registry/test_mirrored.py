"""Who is asked for what, when a ``hosts.toml`` names mirrors, and what each is told."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lamina.cli import main
from lamina.errors import AuthError, FetchError, NotFoundError, UsageError
from lamina.http.client_options import ClientOptions
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry import mirrored
from lamina.registry.client import RegistryRepository
from lamina.registry.hosts_file import parse_hosts
from lamina.registry.open_repository import open_repository
from lamina.registry.referrers import list_referrers
from lamina.registry.repository import Repository
from lamina.source.health import LONGEST_PENALTY_S
from tests.support.fake_registry import FakeRegistry, fake_registry, reset, stall, status
from tests.support.registry_server import make_certificate, start_registry
from tests.support.tools import require_tool
from tests.unit.registry.images import make_image, noise

ALL = '["pull", "resolve", "referrers"]'
MANY = 1000
BIG = noise((16 << 20) + 5)


@pytest.fixture(autouse=True)
def _nobody_failed_before() -> Iterator[None]:
    mirrored._health.clear()
    yield
    mirrored._health.clear()


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[FakeRegistry]:
    make_image(tmp_path / "layout")
    with fake_registry() as found:
        put(tmp_path, found)
        yield found


@pytest.fixture
def mirror(tmp_path: Path, origin: FakeRegistry) -> Iterator[FakeRegistry]:
    """It has all that the origin has."""
    with fake_registry() as found:
        found.blobs, found.manifests = dict(origin.blobs), dict(origin.manifests)
        yield found


def put(tmp_path: Path, registry: FakeRegistry) -> None:
    words = ["-q", "copy", f"oci:{tmp_path}/layout:latest", f"docker://{registry.host}/x:1"]
    assert main(words) == 0
    registry.seen.clear()


def configure(tmp_path: Path, origin: FakeRegistry, text: str) -> ClientOptions:
    folder = tmp_path / "certs.d" / origin.host
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.toml").write_text(text)
    return ClientOptions(hosts_dirs=(f"{tmp_path}/certs.d",), attempts=1)


def mirrors(*hosts: FakeRegistry, capabilities: str = ALL, more: str = "") -> str:
    return "".join(
        f'[host."http://{each.host}"]\ncapabilities = {capabilities}\n{more}\n' for each in hosts
    )


def opened(origin: FakeRegistry, options: ClientOptions, version: str = ":1") -> Repository:
    return open_repository(parse_reference(f"docker://{origin.host}/x{version}"), options=options)


def digest_of(registry: FakeRegistry) -> str:
    return next(name for name in registry.manifests if name.startswith("sha256:"))


def read_all(repository: Repository) -> list[bytes]:
    """The manifest, and all that it names."""
    _, data = repository.manifest()
    manifest = m.parse_manifest(data, "x")
    assert isinstance(manifest, m.Manifest)
    found = [data]
    for descriptor in (manifest.config, *manifest.layers):
        with repository.open_blob(descriptor) as stream:
            found.append(stream.read())
        assert repository.read_range(descriptor.digest, 3, 20) == found[-1][3:23]
        assert repository.has_blob(descriptor.digest, descriptor.size)
    return found


def test_without_a_file_there_is_no_mirror(tmp_path: Path, origin: FakeRegistry) -> None:
    with opened(origin, ClientOptions(hosts_dirs=(str(tmp_path),))) as repository:
        assert isinstance(repository, RegistryRepository)
        assert read_all(repository)


def test_the_variable_names_folders(
    tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, origin, mirrors(mirror))
    monkeypatch.setenv("LAMINA_HOSTS_DIR", f"{tmp_path}/nothing:{tmp_path}/certs.d")
    with opened(origin, ClientOptions()) as repository:
        read_all(repository)
    assert mirror.seen and not origin.seen
    with opened(origin, ClientOptions(hosts_dirs=())) as repository:
        read_all(repository)
    assert origin.seen


def test_a_mirror_is_asked_for_everything_and_told_for_whom(
    tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    options = configure(tmp_path, origin, mirrors(mirror))
    with opened(origin, options) as repository:
        assert len(read_all(repository)) == 4
    assert not origin.seen
    assert all(each.path.endswith(f"?ns={origin.host}") for each in mirror.seen)


def test_who_may_not_resolve_is_not_asked_what_a_tag_means(
    tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    options = configure(tmp_path, origin, mirrors(mirror, capabilities='["pull"]'))
    with opened(origin, options) as repository:
        read_all(repository)
        assert list(origin.seen) and not mirror.count("GET", "/manifests/")
        assert not origin.count("GET", "/blobs/")
        digest = digest_of(origin)
        assert repository.manifest(digest)[0].digest == digest
    assert mirror.count("GET", f"/manifests/{digest}") == 1
    assert origin.count("GET", "/manifests/") == 1


def test_nobody_may_say_what_a_tag_means(
    tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    text = f'server = "http://{origin.host}"\ncapabilities = ["pull"]\n'
    options = configure(tmp_path, origin, text + mirrors(mirror, capabilities='["pull"]'))
    with opened(origin, options) as repository:
        with pytest.raises(NotFoundError, match="may be asked to resolve"):
            repository.resolve()
        assert repository.resolve(digest_of(origin))


@pytest.mark.parametrize("code", [404, 500, 403, 401, 429])
def test_a_mirror_that_answers_an_error_is_passed_over(
    tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry, code: int
) -> None:
    mirror.rule("GET", "/v2/", status(code), MANY)
    mirror.rule("HEAD", "/v2/", status(code), MANY)
    with opened(origin, configure(tmp_path, origin, mirrors(mirror))) as repository:
        assert len(read_all(repository)) == 4
    assert mirror.seen and origin.seen


def test_a_mirror_that_is_down_is_passed_over(tmp_path: Path, origin: FakeRegistry) -> None:
    text = '[host."http://127.0.0.1:1"]\n'
    with opened(origin, configure(tmp_path, origin, text)) as repository:
        assert len(read_all(repository)) == 4


def test_a_mirror_that_says_nothing_is_passed_over(
    tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrored, "MIRROR_WAIT_S", 0.1)
    mirror.rule("GET", "/v2/", stall(30), MANY)
    with opened(origin, configure(tmp_path, origin, mirrors(mirror))) as repository:
        assert repository.resolve().digest == digest_of(origin)


def test_a_mirror_that_failed_is_asked_last_and_again_later(
    tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.rule("GET", "/v2/", status(500))
    options = configure(tmp_path, origin, mirrors(mirror))
    now = [1000.0]
    monkeypatch.setattr(mirrored.time, "monotonic", lambda: now[0])
    with opened(origin, options) as repository:
        repository.resolve()
        assert mirror.count("GET") == 1
        repository.resolve()
        assert mirror.count("GET") == 1
    with opened(origin, options) as another:
        another.resolve()
        assert mirror.count("GET") == 1, "it is known of the host, whoever asks it"
        now[0] += LONGEST_PENALTY_S
        another.resolve()
    assert mirror.count("GET") == 2
    assert origin.count("GET", "/manifests/") == 3


def test_a_mirror_that_lies_is_passed_over(
    tmp_path: Path,
    origin: FakeRegistry,
    mirror: FakeRegistry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    origin.add_blob(BIG)
    for name, data in origin.blobs.items():
        mirror.blobs[name] = data[:-1] + bytes((data[-1] ^ 1,))
    digest = digest_of(origin)
    media_type, data = mirror.manifests[digest]
    mirror.manifests[digest] = (media_type, data + b" ")
    options = configure(tmp_path, origin, mirrors(mirror))
    caplog.set_level(logging.WARNING, "lamina")
    for number, data in enumerate(origin.blobs.values(), 1):
        mirrored._health.clear()
        descriptor = m.describe("", data)
        with opened(origin, options) as repository, repository.open_blob(descriptor) as stream:
            assert stream.read() == data
        assert mirror.count("GET", "/blobs/") == origin.count("GET", "/blobs/") == number
    mirrored._health.clear()
    with opened(origin, options, f"@{digest}") as repository:
        assert repository.manifest()[0].digest == digest
    told = [each.message for each in caplog.records]
    assert all(f"at {mirror.host} is passed over" in each for each in told)
    assert len(told) == len(origin.blobs) + 1


def test_a_page_for_people_is_no_manifest(
    tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    mirror.rule("GET", "/manifests/", status(200, {}, b"<html>log in</html>"), MANY)
    with opened(origin, configure(tmp_path, origin, mirrors(mirror))) as repository:
        assert repository.resolve().digest == digest_of(origin)


def test_the_origin_is_down_and_the_mirror_complete(
    tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    origin.rule("GET", "/", status(503), MANY)
    origin.rule("HEAD", "/", status(503), MANY)
    with opened(origin, configure(tmp_path, origin, mirrors(mirror))) as repository:
        assert len(read_all(repository)) == 4
    assert not origin.seen


def test_all_fail_with_the_error_of_the_registry_itself(
    tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    mirror.rule("GET", "/v2/", status(404), MANY)
    origin.rule("GET", "/manifests/", status(403), MANY)
    with (
        opened(origin, configure(tmp_path, origin, mirrors(mirror))) as repository,
        pytest.raises(AuthError, match=origin.host),
    ):
        repository.resolve()


def test_the_order_is_that_of_the_file(
    tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    with fake_registry() as second:
        second.blobs, second.manifests = dict(origin.blobs), dict(origin.manifests)
        text = mirrors(second, mirror)
        with opened(origin, configure(tmp_path, origin, text)) as repository:
            read_all(repository)
            assert second.seen and not mirror.seen
            second.rule("GET", "/v2/", status(500), MANY)
            repository.resolve()
    assert mirror.seen and not origin.seen


def login(name: str) -> str:
    return base64.b64encode(name.encode()).decode()


def test_nobody_gets_the_credentials_of_another(
    tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    authfile = tmp_path / "auth.json"
    auths = {origin.host: {"auth": login("o:own")}, mirror.host: {"auth": login("m:mirrors")}}
    authfile.write_text(json.dumps({"auths": auths}))
    options = configure(tmp_path, origin, mirrors(mirror))
    given = ClientOptions(hosts_dirs=options.hosts_dirs, username="o", password="own", attempts=1)
    listed = ClientOptions(hosts_dirs=options.hosts_dirs, authfile=str(authfile), attempts=1)
    origin.token, origin.login = "of-origin", "o:own"
    mirror.token, mirror.login = "of-mirror", "m:mirrors"
    for each in (given, listed):
        mirrored._health.clear()
        with opened(origin, each) as repository:
            repository.resolve()
    told = [str(each.headers) for each in mirror.seen]
    assert any(login("m:mirrors") in each for each in told)
    assert not any(secret in each for each in told for secret in (login("o:own"), "of-origin"))
    told = [str(each.headers) for each in origin.seen]
    assert any(login("o:own") in each for each in told)
    assert not any(secret in each for each in told for secret in (login("m:mirrors"), "of-mirror"))


def test_headers_are_for_one_host_only(
    tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    more = f'[host."http://{mirror.host}".header]\nauthorization = "Key k"\nx-two = ["a", "b"]\n'
    options = configure(tmp_path, origin, mirrors(mirror, more=more))
    with fake_registry() as storage:
        storage.blobs = origin.blobs
        mirror.redirect_blobs_to = storage.host
        with opened(origin, options) as repository:
            read_all(repository)
            mirror.rule("GET", "/manifests/", status(404), MANY)
            repository.resolve()
        for each in mirror.seen:
            assert (each.headers["authorization"], each.headers["x-two"]) == ("Key k", "a, b")
        assert storage.count("GET")
        for each in (*origin.seen, *storage.seen):
            assert not {"authorization", "x-two"} & set(each.headers)
            assert "?ns=" not in each.path


def test_a_path_in_place_of_v2(tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry) -> None:
    digest = digest_of(origin)
    mirror.rule("GET", "^/proxy/x/manifests", status(200, {}, origin.manifests[digest][1]), MANY)
    text = f'[host."http://{mirror.host}/proxy"]\noverride_path = true\n'
    with opened(origin, configure(tmp_path, origin, text)) as repository:
        assert repository.resolve().digest == digest
    assert [each.path for each in mirror.seen] == [f"/proxy/x/manifests/1?ns={origin.host}"]


def test_what_is_written_goes_to_the_registry(
    tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    text = f'server = "http://{origin.host}"\n[header]\nx-one = "1"\n' + mirrors(mirror)
    options = configure(tmp_path, origin, text)
    reference = parse_reference(f"docker://{origin.host}/x:2")
    with open_repository(reference, write=True, options=options) as repository:
        media_type, data = origin.manifests[digest_of(origin)]
        repository.push_manifest("2", media_type, data)
    assert not mirror.seen
    assert origin.seen[-1].headers["x-one"] == "1"
    with opened(origin, options) as repository, pytest.raises(UsageError, match="for reading"):
        repository.push_manifest("2", media_type, data)


def test_an_empty_list_of_a_mirror_is_not_the_last_word(
    tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    subject = digest_of(origin)
    config = m.describe(m.OCI_EMPTY, b"{}")
    document = m.Manifest(
        schema_version=2,
        media_type=m.OCI_MANIFEST,
        config=config,
        layers=(),
        subject=m.Descriptor(media_type=m.OCI_MANIFEST, digest=subject, size=1),
    )
    data = m.encode(document)
    origin.manifests[m.describe("", data).digest] = (m.OCI_MANIFEST, data)
    origin.referrers_page = mirror.referrers_page = 5
    options = configure(tmp_path, origin, mirrors(mirror))
    with opened(origin, options) as repository:
        found = [each.digest for each in repository.referrers(subject)]  # type: ignore[attr-defined]
    assert found == [m.describe("", data).digest]
    assert mirror.count("GET", "/referrers/") == 1


def test_what_need_not_be_there_is_not_waited_for(
    tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    """The mirror has neither list nor tag, and the registry is down: nothing is attached."""
    origin.rule("GET", "/v2/", reset(), MANY)
    subject = digest_of(mirror)
    options = replace(configure(tmp_path, origin, mirrors(mirror)), plain_http=True)
    with opened(origin, options) as repository:
        assert list_referrers(repository, subject) == ()
        with pytest.raises(FetchError):
            repository.manifest("another-tag")
    mirror.rule("GET", "/v2/", reset(), MANY)
    with opened(origin, options) as repository, pytest.raises(FetchError):
        list_referrers(repository, subject)


def test_the_registry_is_no_mirror_of_itself(tmp_path: Path) -> None:
    for registry, server in (
        ("registry.example", "https://registry.example:443"),
        ("registry.example:443", "https://Registry.example"),
        ("registry.example", "http://registry.example:80"),
    ):
        (host,) = parse_hosts(f'server = "{server}"'.encode(), registry, tmp_path)
        assert not host.is_mirror
    for registry, server in (
        ("registry.example", "https://registry.example:80"),
        ("registry.example:5000", "https://registry.example"),
        ("registry.example", "https://mirror.example"),
    ):
        (host,) = parse_hosts(f'server = "{server}"'.encode(), registry, tmp_path)
        assert host.is_mirror


def test_authorities_and_certificates_are_for_one_host_only(
    tmp_path: Path, origin: FakeRegistry
) -> None:
    require_tool("docker-registry", "openssl")
    ca, certificate, key = make_certificate(tmp_path / "tls")
    extra = f"  tls: {{certificate: {certificate}, key: {key}, clientcas: [{ca}]}}"
    with start_registry(tmp_path / "mirror", extra=extra) as mirror:
        base = f'[host."https://{mirror.host}"]\n'
        good = f'ca = "{ca}"\nclient = [["{certificate}", "{key}"]]\n'
        for text, message in (
            (base, "certificate"),
            (base + f'ca = "{ca}"\n', "127.0.0.1"),
            (base + good, "answers 404"),
            (base + good.replace(f'ca = "{ca}"', "skip_verify = true"), "answers 404"),
        ):
            configure(tmp_path, origin, f'server = "http://127.0.0.1:1"\n{text}')
            options = ClientOptions(hosts_dirs=(f"{tmp_path}/certs.d",), attempts=1)
            with opened(origin, options) as repository:
                (host, *_) = repository.pulled_from  # type: ignore[attr-defined]
                with pytest.raises((FetchError, NotFoundError), match=message) as caught:
                    host.repository.resolve("1")
            assert isinstance(caught.value, NotFoundError) is (message == "answers 404")
