"""A client against brokers that are not what they say."""

from __future__ import annotations

import json
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.key_broker import RunningBroker, running_broker
from tests.unit.trust.keys_in_code import make_key

from lamina.errors import Error, FetchError, FormatError, NotFoundError, TrustError, UsageError
from lamina.kbs.certificate import make_certificates
from lamina.trust.broker import connection, protocol
from lamina.trust.broker.client import KbsClient
from lamina.trust.broker.connection import Answer, parse_endpoint
from lamina.trust.broker.evidence import SampleEvidence
from lamina.trust.broker.kbs_packet import parse_resource
from lamina.trust.crypto import jwe
from lamina.trust.crypto.jwk import public_from_jwk
from lamina.trust.crypto.keys import PublicKey

KEY = b"k" * 32
RESOURCE = parse_resource("kbs:///a/b/c")
COOKIE = {"set-cookie": "kbs-session-id=" + "5" * 32 + "; Path=/"}


class FakeBroker:
    """Stands for an endpoint; each answer can be another one than it should be."""

    def __init__(self) -> None:
        self.nonces = iter(protocol.strict_json.encode_base64(bytes([n] * 32)) for n in range(99))
        self.changes: dict[str, Callable[[Answer], Answer]] = {}
        self.asked: list[str] = []
        self.tee_key: dict[str, Any] = {}

    def __str__(self) -> str:
        return "https://fake.example"

    def request(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes | None = None,
        *,
        again: bool = True,
    ) -> Answer:
        name = path.split("/")[3].partition("?")[0]
        self.asked.append(name)
        if name == "auth":
            answer = Answer(200, COOKIE, json.dumps({"nonce": next(self.nonces)}).encode())
        elif name == "attest":
            assert body is not None
            self.tee_key = json.loads(body)["runtime-data"]["tee-pubkey"]
            answer = Answer(200, {}, b'{"token":"a.b.c"}')
        else:
            key, algorithm = public_from_jwk(self.tee_key, "key")
            sealed = jwe.encrypt(KEY, [PublicKey(key, "key", algorithm)])
            answer = Answer(200, {}, sealed)
        return self.changes.get(name, lambda same: same)(answer)


@pytest.fixture
def fake() -> FakeBroker:
    return FakeBroker()


def client(fake: FakeBroker) -> KbsClient:
    return KbsClient(fake, SampleEvidence())  # type: ignore[arg-type]


def test_one_session_for_many_resources(fake: FakeBroker) -> None:
    one = client(fake)
    assert one.fetch(RESOURCE).reveal() == one.fetch(RESOURCE).reveal() == KEY
    assert fake.asked == ["auth", "attest", "resource", "resource"]
    one.close()
    assert one.fetch(RESOURCE).reveal() == KEY
    assert fake.asked[4:] == ["auth", "attest", "resource"]


def test_a_session_that_the_broker_forgot_is_renewed(fake: FakeBroker) -> None:
    one = client(fake)
    one.fetch(RESOURCE)
    answers = iter([Answer(401, {}, b""), None])
    fake.changes["resource"] = lambda same: next(answers) or same
    assert one.fetch(RESOURCE).reveal() == KEY
    assert fake.asked[3:] == ["resource", "auth", "attest", "resource"]


def test_a_broker_that_always_wants_more_is_left(fake: FakeBroker) -> None:
    fake.changes["resource"] = lambda _: Answer(401, {}, b"")
    with pytest.raises(TrustError, match="status 401"):
        client(fake).fetch(RESOURCE)
    assert fake.asked.count("auth") == 2


# A fake broker or a redirect: the row of the threat table.


def test_fake_kbs_wrong_authority(tmp_path: Path) -> None:
    with running_broker(tmp_path) as broker:
        broker.put(str(RESOURCE), KEY)
        foreign = tmp_path / "foreign.crt"
        foreign.write_bytes(make_certificates(["127.0.0.1"]).authority)
        one = KbsClient(parse_endpoint(broker.url, str(foreign)), SampleEvidence())
        with pytest.raises(TrustError, match="is not the key broker that is trusted") as caught:
            one.fetch(RESOURCE)
        assert "--kbs-ca" in str(caught.value.hint)
        assert broker.audit_file.read_text() == "", "nothing was sent to it"


def test_fake_kbs_certificate_for_another_name(tmp_path: Path) -> None:
    with running_broker(tmp_path) as broker:
        url = broker.url.replace("127.0.0.1", "localhost")
        one = KbsClient(parse_endpoint(url, str(broker.ca_file)), SampleEvidence())
        with pytest.raises(TrustError, match="certificate is refused") as caught:
            one.fetch(RESOURCE)
        hint = str(caught.value.hint)
        assert "--kbs-ca" not in hint, "the authority is right"
        assert "not for localhost" in hint


def test_a_certificate_with_an_address_as_a_dns_name(tmp_path: Path) -> None:
    """As trustee's guide makes it."""
    with running_broker(tmp_path, names=["localhost"]) as broker:
        one = broker.client()
        with pytest.raises(TrustError, match="IP address mismatch") as caught:
            one.fetch(RESOURCE)
        hint = str(caught.value.hint)
        assert "--kbs-ca" not in hint
        assert "as an address" in hint


def test_a_certificate_that_has_expired(tmp_path: Path) -> None:
    with running_broker(tmp_path, valid_days=0) as broker:
        with pytest.raises(TrustError, match="expired") as caught:
            broker.client().fetch(RESOURCE)
        assert "--kbs-ca" not in str(caught.value.hint)
        assert "clock" in str(caught.value.hint)


def test_fake_kbs_the_systems_authorities_do_not_count(tmp_path: Path) -> None:
    """SSL_CERT_FILE is what stands for the system's store."""
    with running_broker(tmp_path) as broker, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(broker.ca_file))
        foreign = tmp_path / "foreign.crt"
        foreign.write_bytes(make_certificates(["127.0.0.1"]).authority)
        one = KbsClient(parse_endpoint(broker.url, str(foreign)), SampleEvidence())
        with pytest.raises(TrustError):
            one.fetch(RESOURCE)


def test_fake_kbs_sealed_for_another_key(fake: FakeBroker) -> None:
    other = jwe.encrypt(KEY, [make_key("P-256").public()])
    fake.changes["resource"] = lambda _: Answer(200, {}, other)
    with pytest.raises(TrustError, match="not for this session"):
        client(fake).fetch(RESOURCE)


def test_fake_kbs_replayed_nonce(fake: FakeBroker) -> None:
    one = client(fake)
    one.fetch(RESOURCE)
    one.close()
    fake.nonces = iter([protocol.strict_json.encode_base64(bytes(32))])
    with pytest.raises(TrustError, match="same nonce again"):
        one.fetch(RESOURCE)


def test_fake_kbs_replayed_resource(fake: FakeBroker) -> None:
    """An answer of an earlier session is for an earlier key."""
    one, kept = client(fake), []
    fake.changes["resource"] = lambda answer: kept.append(answer) or answer  # type: ignore[func-returns-value]
    one.fetch(RESOURCE)
    one.close()
    fake.changes["resource"] = lambda _: kept[0]
    with pytest.raises(TrustError, match="not for this session"):
        one.fetch(RESOURCE)


@pytest.mark.parametrize("status", [301, 302, 307])
def test_fake_kbs_redirects_are_not_followed(fake: FakeBroker, status: int) -> None:
    there = {"location": "https://evil.example/kbs/v0/resource/a/b/c"}
    fake.changes["resource"] = lambda _: Answer(status, there, b"")
    with pytest.raises(TrustError, match=f"status {status}"):
        client(fake).fetch(RESOURCE)
    assert fake.asked == ["auth", "attest", "resource"]


@pytest.mark.parametrize(
    ("where", "answer", "kind"),
    [
        ("auth", Answer(200, COOKIE, b""), FormatError),
        ("auth", Answer(200, COOKIE, b"[]"), FormatError),
        ("auth", Answer(200, COOKIE, b'{"nonce":5}'), FormatError),
        ("auth", Answer(200, COOKIE, b'{"nonce":""}'), FormatError),
        ("auth", Answer(200, COOKIE, b'{"nonce":"AAAA"}'), FormatError),
        ("auth", Answer(200, COOKIE, b'{"nonce":"!"}'), FormatError),
        ("auth", Answer(200, COOKIE, b'{"nonce":"' + b"A" * 10000 + b'"}'), FormatError),
        ("auth", Answer(200, {}, b'{"nonce":"' + b"A" * 44 + b'"}'), FormatError),
        ("auth", Answer(500, {}, b"oops"), FetchError),
        ("auth", Answer(404, {}, b"oops"), TrustError),
        ("attest", Answer(200, {}, b""), FormatError),
        ("attest", Answer(200, {}, b'{"token":5}'), FormatError),
        ("attest", Answer(200, {}, b'{"token":""}'), FormatError),
        ("attest", Answer(401, {}, b""), TrustError),
        ("resource", Answer(200, {}, b""), TrustError),
        ("resource", Answer(200, {}, b"{}"), TrustError),
        ("resource", Answer(200, {}, b"[" * 99999), TrustError),
        ("resource", Answer(204, {}, b""), TrustError),
        ("resource", Answer(404, {}, b""), NotFoundError),
        ("resource", Answer(503, {}, b""), FetchError),
    ],
)
def test_hostile_answers(fake: FakeBroker, where: str, answer: Answer, kind: type[Error]) -> None:
    fake.changes[where] = lambda _: answer
    with pytest.raises(kind, match=r"fake\.example"):
        client(fake).fetch(RESOURCE)


@pytest.mark.parametrize(
    "cookie",
    ["", "other=1", "kbs-session-id=", "kbs-session-id=a b" + "c" * 30, "x; kbs-session-id=1"],
)
def test_hostile_cookies(fake: FakeBroker, cookie: str) -> None:
    fake.changes["auth"] = lambda answer: answer._replace(headers={"set-cookie": cookie})
    with pytest.raises(FormatError, match="cookie"):
        client(fake).fetch(RESOURCE)


@pytest.mark.parametrize("parameters", [5, [], {"selected-hash-algorithm": "md5"}])
def test_hostile_parameters(fake: FakeBroker, parameters: Any) -> None:
    nonce = "A" * 43 + "="
    body = json.dumps({"nonce": nonce, "extra-params": parameters}).encode()
    fake.changes["auth"] = lambda answer: answer._replace(body=body)
    if parameters == []:
        assert client(fake).fetch(RESOURCE).reveal() == KEY
        return
    with pytest.raises(FormatError, match="hash algorithm"):
        client(fake).fetch(RESOURCE)


def test_what_a_broker_says_is_safe_to_print(fake: FakeBroker) -> None:
    detail = "\x1b[31mred\x07\n" + "x" * 5000
    body = json.dumps({"type": protocol.PROBLEM + "Strange", "detail": detail}).encode()
    fake.changes["attest"] = lambda _: Answer(401, {}, body)
    with pytest.raises(TrustError) as caught:
        client(fake).fetch(RESOURCE)
    text = str(caught.value)
    assert text.isprintable()
    assert "Strange" in text
    assert len(text) < 600


def test_no_error_has_the_key_in_it(fake: FakeBroker) -> None:
    fake.changes["attest"] = lambda _: Answer(401, {}, KEY + COOKIE["set-cookie"].encode())
    with pytest.raises(TrustError) as caught:
        client(fake).fetch(RESOURCE)
    shown = "".join(traceback.format_exception(caught.value))
    assert KEY.decode() not in shown
    assert "5" * 32 not in shown


@given(st.binary(max_size=200), st.sampled_from([200, 401, 403, 500]))
def test_any_answer(body: bytes, status: int) -> None:
    for where in ("auth", "attest", "resource"):
        fake = FakeBroker()
        fake.changes[where] = lambda answer: answer._replace(status=status, body=body)
        with pytest.raises(Error):
            client(fake).fetch(RESOURCE)


@pytest.fixture
def scripted() -> Iterator[Callable[[bytes], str]]:
    """Serves the same bytes to whoever connects, over HTTP."""
    servers: list[tuple[socket.socket, threading.Thread]] = []

    def serve(answer: bytes) -> str:
        server = socket.create_server(("127.0.0.1", 0))

        def run() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(65536)
                        connection.sendall(answer)
                    except OSError:
                        continue

        thread = threading.Thread(target=run)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield serve
    for server, thread in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n" + b"x" * 400_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000\r\n" + b"x" * 65538,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    ],
)  # fmt: skip
def test_hostile_http(scripted: Callable[[bytes], str], answer: bytes) -> None:
    endpoint = parse_endpoint(scripted(answer), None, 5)
    with pytest.raises(FetchError, match=str(endpoint)):
        KbsClient(endpoint, SampleEvidence()).fetch(RESOURCE)


@contextmanager
def answering(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Serve one answer a connection, the last one to all later ones; also what was asked."""
    left, asked = list(answers), []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(65536))
                    connection.sendall(left.pop(0) if len(left) > 1 else left[0])

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def test_what_may_pass_is_asked_again() -> None:
    """By the retry code of everything else: a broken connection, and an overloaded broker."""
    with answering(b"", BUSY, FINE) as (url, asked):
        assert parse_endpoint(url, None).request("GET", "/kbs", {}).body == b"ok"
    assert len(asked) == 3
    with answering(BUSY) as (url, asked):
        assert parse_endpoint(url, None).request("GET", "/kbs", {}).status == 503
    assert len(asked) == connection.POLICY.passing_attempts


def test_evidence_is_sent_once() -> None:
    for broken in (b"", BUSY):
        with answering(broken, FINE) as (url, asked), suppress(FetchError):
            parse_endpoint(url, None).request("POST", "/kbs", {}, b"x", again=False)
        assert len(asked) == 1


def test_a_name_of_many_addresses_has_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each address gets its part, so the last is tried too."""
    waits: list[float] = []

    class Silent(socket.socket):
        def connect(self, address: Any) -> None:
            waits.append(self.gettimeout() or 1e9)
            now[0] += waits[-1]
            raise TimeoutError

    def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))] * 5

    now = [1000.0]
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "socket", Silent)
    monkeypatch.setattr(connection.time, "monotonic", lambda: now[0])
    with pytest.raises(FetchError, match="did not answer in 20 s"):
        KbsClient(parse_endpoint("http://127.0.0.1:1", None), SampleEvidence()).fetch(RESOURCE)
    assert len(waits) == 5
    assert sum(waits) == pytest.approx(20)


def test_hints_where_nobody_answers(scripted: Callable[[bytes], str]) -> None:
    with socket.socket() as taken:
        # Bound, so that nobody else listens there meanwhile.
        taken.bind(("127.0.0.1", 0))
        for url, hint in (
            (f"http://127.0.0.1:{taken.getsockname()[1]}", "is it running"),
            (scripted(b"\x15\x03\x01\x00\x02\x02\x16"), "https://"),
        ):
            with pytest.raises(FetchError) as caught:
                KbsClient(parse_endpoint(url, None, 5), SampleEvidence()).fetch(RESOURCE)
            assert hint in str(caught.value.hint)


def test_a_broker_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = parse_endpoint(f"http://127.0.0.1:{server.getsockname()[1]}", None, 0.2)
        with pytest.raises(FetchError, match="did not answer"):
            KbsClient(endpoint, SampleEvidence()).fetch(RESOURCE)


def test_a_broker_without_tls(tmp_path: Path, scripted: Callable[[bytes], str]) -> None:
    authority = tmp_path / "ca.crt"
    authority.write_bytes(make_certificates(["127.0.0.1"]).authority)
    url = scripted(b"HTTP/1.1 200 OK\r\n\r\n").replace("http:", "https:")
    with pytest.raises(FetchError, match="does not speak TLS") as caught:
        KbsClient(parse_endpoint(url, str(authority), 5), SampleEvidence()).fetch(RESOURCE)
    assert "http://" in str(caught.value.hint)
    authority.write_text("nothing")
    with pytest.raises(UsageError, match="CA file"):
        KbsClient(parse_endpoint(url, str(authority), 5), SampleEvidence()).fetch(RESOURCE)


def test_many_threads_share_a_session(tmp_path: Path) -> None:
    with running_broker(tmp_path) as broker:
        broker.put(str(RESOURCE), KEY)
        one: KbsClient = broker.client()
        found: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: found.append(one.fetch(RESOURCE).reveal()))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [KEY] * 8
        assert [line["event"] for line in broker.audit()].count("attest") == 1
        assert isinstance(broker, RunningBroker)
