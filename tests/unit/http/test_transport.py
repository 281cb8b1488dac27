"""Connections: TLS, proxies, forks, what happens on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from tests.support import fake_registry as fake
from tests.support import tools
from tests.support.fake_registry import FakeRegistry
from tests.support.registry_server import make_certificate
from tests.unit.registry.images import noise

from lamina.errors import FetchError, UsageError
from lamina.http import tls
from lamina.http.client_options import ClientOptions
from lamina.http.transport import Pool
from lamina.http.url import parse_url
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.client import RegistryRepository
from lamina.registry.session import Session

BLOB = noise(1000)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake.fake_registry() as registry:
        registry.add_blob(BLOB)
        yield registry


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    tools.require_tool("openssl")
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@contextlib.contextmanager
def relay(registry: FakeRegistry, answer: bytes = b"") -> Iterator[tuple[str, list[bytes]]]:
    """A proxy: reads a head, answers ``answer`` if any, then passes bytes to the fake registry."""
    heads: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    client.settimeout(60)
                    with client, contextlib.suppress(OSError):
                        head = b""
                        while b"\r\n\r\n" not in head:
                            head += client.recv(1)
                        heads.append(head)
                        client.sendall(answer)
                        if answer and b" 200 " not in answer:
                            continue
                        pass_on(client, b"" if answer else head)

        def pass_on(client: socket.socket, first: bytes) -> None:
            host, port = registry.host.split(":")
            with socket.create_connection((host, int(port)), 60) as upstream:
                upstream.sendall(first.replace(b"http://reg.example:80", b""))
                back = threading.Thread(target=pump, args=(upstream, client))
                back.start()
                pump(client, upstream)
                back.join()

        def pump(source: socket.socket, sink: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    sink.sendall(data)
                sink.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://ada:pw@127.0.0.1:{server.getsockname()[1]}", heads
        server.shutdown(socket.SHUT_RDWR)
        thread.join(60)


def read(name: str, **options: object) -> bytes:
    reference = parse_reference(f"docker://{name}/a/b")
    chosen = ClientOptions(timeout_s=30, **options)  # type: ignore[arg-type]
    with RegistryRepository(reference, chosen) as repository:
        return repository.read_range(m.describe("", BLOB).digest, 0, len(BLOB))


def test_http_through_a_proxy(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    with relay(registry) as (proxy, heads):
        monkeypatch.setenv("http_proxy", proxy)
        assert read("reg.example", plain_http=True) == BLOB
    assert heads[0].startswith(b"GET http://reg.example/v2/a/b/blobs/sha256:")
    assert b"Proxy-Authorization: Basic YWRhOnB3\r\n" in heads[0]
    assert registry.seen[0].headers["host"] == "reg.example"


@contextlib.contextmanager
def tls_front(
    registry: FakeRegistry, certificate: tuple[Path, Path, Path]
) -> Iterator[FakeRegistry]:
    """The fake registry behind TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[1], certificate[2])
    handler = type("Bound", (fake.Exchange,), {"registry": registry})
    server = fake.Server(handler, context)
    registry.host = f"127.0.0.1:{server.server_port}"
    with fake.serving(server):
        yield registry


@pytest.fixture
def secure(registry: FakeRegistry, certificate: tuple[Path, Path, Path]) -> Iterator[FakeRegistry]:
    with tls_front(registry, certificate) as server:
        yield server


def test_tls_with_a_ca_file(secure: FakeRegistry, certificate: tuple[Path, Path, Path]) -> None:
    assert read(secure.host, ca_file=str(certificate[0])) == BLOB
    assert read(secure.host, verify_tls=False) == BLOB
    with pytest.raises(FetchError, match="certificate") as caught:
        read(secure.host)
    assert "--ca-file" in (caught.value.hint or "")


def test_tls_is_for_the_right_name(
    secure: FakeRegistry, certificate: tuple[Path, Path, Path]
) -> None:
    name = secure.host.replace("127.0.0.1", "127.0.0.2")
    with pytest.raises(FetchError):
        read(name, ca_file=str(certificate[0]))


def test_certs_d(
    secure: FakeRegistry,
    certificate: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "containers" / "certs.d" / secure.host
    folder.mkdir(parents=True)
    shutil.copy(certificate[0], folder / "ca.crt")
    assert read(secure.host) == BLOB
    (folder / "client.cert").write_text("x")
    with pytest.raises(UsageError, match=r"client\.cert"):
        read(secure.host)
    monkeypatch.setattr(os, "listdir", Mock(side_effect=PermissionError(13, "no permission")))
    with pytest.raises(UsageError, match=f"certificates in {folder}: no permission"):
        read(secure.host)


@pytest.mark.parametrize("content", [None, "", "-----BEGIN CERTIFICATE-----\nx\n"])
def test_an_unusable_ca_file(secure: FakeRegistry, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.crt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"ca\.crt"):
        read(secure.host, ca_file=str(path))


def test_https_through_a_proxy(
    secure: FakeRegistry,
    certificate: tuple[Path, Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 127.0.0.1 never goes through a proxy, so the name of the certificate stands for another host.
    monkeypatch.setattr("lamina.http.proxy.is_loopback", lambda host: False)
    answer = b"HTTP/1.1 200 Connection established\r\n\r\n"
    with relay(secure, answer) as (proxy, heads):
        monkeypatch.setenv("https_proxy", proxy)
        assert read(secure.host, ca_file=str(certificate[0]), plain_http=False) == BLOB
    host = secure.host.encode()
    assert heads[0].startswith(b"CONNECT " + host + b" HTTP/1.1\r\nHost: " + host + b"\r\n")
    assert b"Proxy-Authorization: Basic YWRhOnB3\r\n" in heads[0]
    assert not any(b"Authorization: B" in repr(seen.headers).encode() for seen in secure.seen)


def test_a_proxy_that_refuses(secure: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.http.proxy.is_loopback", lambda host: False)
    with relay(secure, b"HTTP/1.1 403 Forbidden\r\n\r\n") as (proxy, _):
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(FetchError, match=r"proxy 127\.0\.0\.1:.* answers 403"):
            read(secure.host, plain_http=False)


def base(host: str, **options: object) -> str:
    chosen = ClientOptions(timeout_s=30, **options)  # type: ignore[arg-type]
    session = Session(parse_reference(f"docker://{host}/a"), chosen)
    try:
        return str(session.url("x").origin)
    finally:
        session.close()


def test_scheme(registry: FakeRegistry) -> None:
    assert base(registry.host) == f"http://{registry.host}"
    assert base(registry.host, plain_http=False) == f"https://{registry.host}"
    assert base("reg.example") == "https://reg.example"
    assert base("reg.example", plain_http=True) == "http://reg.example"
    assert base("docker.io") == "https://registry-1.docker.io"
    assert base("127.0.0.1:1") == "http://127.0.0.1:1"


def test_scheme_of_tls_on_loopback(secure: FakeRegistry) -> None:
    assert base(secure.host) == f"https://{secure.host}"


@pytest.mark.parametrize("answer", [fake.status(400), fake.raw(b"\x15\x03\x03\0\2\2\x46")])
def test_scheme_of_servers_that_want_tls(registry: FakeRegistry, answer: fake.Action) -> None:
    registry.rule("GET", "^/v2/$", answer)
    assert base(registry.host) == f"https://{registry.host}"


def test_a_forked_process_takes_new_connections(registry: FakeRegistry) -> None:
    reference = parse_reference(f"docker://{registry.host}/a/b")
    digest = m.describe("", BLOB).digest
    with RegistryRepository(reference, ClientOptions(timeout_s=30)) as repository:
        repository.read_range(digest, 0, 10)
        pool = repository.session.pool
        (idle,) = (pool._idle[origin] for origin in pool._idle)
        parent = idle[0]
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                repository.read_range(digest, 0, 10)
                (mine,) = pool._idle.values()
                code = 0 if mine[0] is not parent else 2
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert repository.read_range(digest, 0, 10) == BLOB[:10]


def test_folders_of_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lamina.http.url import Origin

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("reg.example", "reg.example:443", "reg.example:5000"):
        (tmp_path / "containers" / "certs.d" / name).mkdir(parents=True)
    found = tls.certificate_folders(Origin("https", "reg.example", 443))
    assert [os.path.basename(path) for path in found] == ["reg.example", "reg.example:443"]
    found = tls.certificate_folders(Origin("https", "reg.example", 5000))
    assert [os.path.basename(path) for path in found] == ["reg.example:5000"]


def test_closing_wakes_whoever_waits_for_an_answer() -> None:
    """Beside a server that says nothing, for as long as one would wait."""
    asked = threading.Event()
    outcomes: list[Exception] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = parse_url(f"http://127.0.0.1:{server.getsockname()[1]}/")
        pool = Pool(ClientOptions(timeout_s=600.0, deadline_s=600.0))

        def ask() -> None:
            try:
                pool.request("GET", url, {}, None, time.monotonic() + 600)
            except FetchError as error:
                outcomes.append(error)

        def listen() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                asked.set()
                connection.recv(1)

        threads = [threading.Thread(target=each) for each in (ask, listen)]
        for thread in threads:
            thread.start()
        assert asked.wait(60)
        pool.close()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    assert len(outcomes) == 1
    with pytest.raises(FetchError, match="is not asked any more"):
        pool.request("GET", url, {}, None, time.monotonic() + 600)
