"""The key provider by a broker: in process, from a configuration, and as a program."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.key_broker import RunningBroker
from tests.unit.trust.encryption.test_layers import PRIVATE

from lamina.errors import Error, FetchError, FormatError, TrustError, UsageError
from lamina.kbs.rules import Rule
from lamina.trust.broker import kbs_packet
from lamina.trust.broker.provider import KbsKeyProvider, answer_request, parse_parameter
from lamina.trust.crypto.secret import Secret
from lamina.trust.encryption import recipients
from lamina.trust.encryption.key_provider import (
    load_providers,
    read_answer,
    unwrap_request,
    wrap_request,
)
from lamina.trust.encryption.recipients import parse_decryption_keys, parse_recipients, unwrap, wrap

KEK = bytes(range(32))
URI = "kbs:///tenant/image-kek/7"
IMAGE, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32


@pytest.fixture
def broker(running: RunningBroker) -> RunningBroker:
    running.put(URI, KEK)
    return running


@pytest.fixture
def provider(broker: RunningBroker) -> KbsKeyProvider:
    return KbsKeyProvider(broker.client())


def test_wrap_and_unwrap(provider: KbsKeyProvider) -> None:
    packet = provider.wrap(PRIVATE, f"keyid={URI}")
    assert list(json.loads(packet)) == ["kid", "wrapped_data", "iv", "wrap_type"]
    assert json.loads(packet)["kid"] == URI
    assert provider.unwrap(packet, "") == PRIVATE


def test_a_key_file_wraps_without_the_broker(provider: KbsKeyProvider, tmp_path: Path) -> None:
    file = tmp_path / "kek"
    file.touch(0o600)
    file.write_bytes(KEK)
    packet = provider.wrap(PRIVATE, f"keyid={URI}::keypath={file}::algorithm=A256GCM")
    assert kbs_packet.unwrap(Secret(KEK), kbs_packet.parse_packet(packet)) == PRIVATE
    assert provider.unwrap(packet, "") == PRIVATE
    file.chmod(0o644)
    with pytest.raises(TrustError, match="read by every user"):
        provider.wrap(PRIVATE, f"keyid={URI}::keypath={file}")


@pytest.mark.parametrize(
    "text",
    ["", "Enabled", "sample=true", "keyid=", "keypath=/x", "keyid=a::keyid=b",
     "keyid=kbs:///a/b/c::algorithm=A256CTR", "keyid=kbs:///a/b/c::more=1"],
)  # fmt: skip
def test_parameters(text: str) -> None:
    with pytest.raises(UsageError):
        parse_parameter(text)


def test_an_image_cannot_choose_the_broker(provider: KbsKeyProvider) -> None:
    packet = json.loads(provider.wrap(PRIVATE, f"keyid={URI}"))
    packet["kid"] = "kbs://evil.example:8080/tenant/image-kek/7"
    assert provider.unwrap(json.dumps(packet).encode(), "") == PRIVATE


def test_a_resource_that_is_no_key(provider: KbsKeyProvider, broker: RunningBroker) -> None:
    broker.put(URI, b"a short text")
    with pytest.raises(FormatError, match="12 bytes") as caught:
        provider.wrap(PRIVATE, f"keyid={URI}")
    assert "short text" not in str(caught.value)


def configuration(broker: RunningBroker, folder: Path, **more: Any) -> Path:
    file = folder / "providers.json"
    entry = {"kbs": {"url": broker.url, "ca-file": str(broker.ca_file), **more}}
    file.write_text(json.dumps({"key-providers": {"attestation-agent": entry}}))
    return file


def test_by_the_configuration_of_ocicrypt(
    broker: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = configuration(broker, tmp_path, measurement="m1")
    monkeypatch.setenv("OCICRYPT_KEYPROVIDER_CONFIG", str(file))
    broker.put(URI, KEK, Rule(measurements=("m1",), images=(IMAGE,), minimum_release=7))
    keys = parse_decryption_keys([])
    packet = kbs_packet.wrap(Secret(KEK), kbs_packet.parse_resource(URI), PRIVATE)
    name = "org.opencontainers.image.enc.keys.provider.attestation-agent"
    annotations = {name: base64.b64encode(packet).decode()}
    opened = unwrap(annotations, keys.for_image(IMAGE, 7), "layer")
    assert opened.encode() == PRIVATE
    for image, release, message in (
        (OTHER, 7, "does not allow this image"),
        (IMAGE, 6, "too old"),
        (IMAGE, None, "too old"),
    ):
        with pytest.raises(TrustError, match=message):
            unwrap(annotations, keys.for_image(image, release), "layer")


def annotated(*packets: bytes) -> dict[str, str]:
    name = "org.opencontainers.image.enc.keys.provider.attestation-agent"
    return {name: ",".join(base64.b64encode(packet).decode() for packet in packets)}


def test_a_key_that_the_broker_refused_is_not_asked_of_the_user(
    broker: RunningBroker, provider: KbsKeyProvider
) -> None:
    packet = provider.wrap(PRIVATE, f"keyid={URI}")
    broker.put(URI, KEK, Rule(measurements=("m1",)))
    keys = parse_decryption_keys([], {"attestation-agent": provider})
    with pytest.raises(TrustError, match="runs something else") as caught:
        unwrap(annotated(packet), keys, "layer")
    hint = str(caught.value.hint)
    assert "--decryption-key" not in hint
    assert "who runs the broker" in hint


def test_a_provider_that_refuses_is_to_be_asked_why() -> None:
    class Refusing:
        def wrap(self, options: bytes, parameter: str) -> bytes:
            raise TrustError("no")

        unwrap = wrap

    keys = parse_decryption_keys([], {"attestation-agent": Refusing()})
    with pytest.raises(TrustError) as caught:
        unwrap(annotated(b"{}"), keys, "layer")
    assert caught.value.hint == "ask who runs provider.attestation-agent"


@pytest.mark.parametrize(
    ("scheme", "hint"),
    [
        ("provider.attestation-agent", "--kbs URL"),
        ("provider.other", "OCICRYPT_KEYPROVIDER_CONFIG"),
        ("jwe", "--decryption-key FILE"),
    ],
)
def test_where_nobody_was_asked_the_hint_says_whom(scheme: str, hint: str) -> None:
    annotations = {f"org.opencontainers.image.enc.keys.{scheme}": "e30="}
    with pytest.raises(TrustError) as caught:
        unwrap(annotations, parse_decryption_keys([]), "layer")
    assert hint in str(caught.value.hint)


def test_an_image_does_not_decide_how_long_providers_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, asked = [0.0], []

    class Silent:
        def wrap(self, options: bytes, parameter: str) -> bytes:
            asked.append(now[0])
            now[0] += 20
            raise FetchError("no answer")

        unwrap = wrap

    monkeypatch.setattr(recipients.time, "monotonic", lambda: now[0])
    keys = parse_decryption_keys([], {"attestation-agent": Silent()})
    with pytest.raises(TrustError, match="after 120 s no other"):
        unwrap(annotated(*[b"{}"] * 200), keys, "layer")
    assert asked == [0, 20, 40, 60, 80, 100, 120]


def test_init_data_of_a_configuration(broker: RunningBroker, tmp_path: Path) -> None:
    file = tmp_path / "initdata.toml"
    file.write_text('version = "0.1.0"\nalgorithm = "sha256"\n[data]\n')
    path = configuration(broker, tmp_path, **{"init-data": str(file)})
    (provider,) = load_providers(str(path)).values()
    provider.wrap(PRIVATE, f"keyid={URI}")
    attested = [line for line in broker.audit() if line["event"] == "attest"][-1]
    assert attested["init-data"] == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    file.write_text("nothing")
    with pytest.raises(FormatError):
        load_providers(str(path))


def test_recipients_by_a_broker_of_the_command_line(provider: KbsKeyProvider) -> None:
    brokers = {"attestation-agent": provider}
    shared = parse_recipients([f"provider:attestation-agent:keyid={URI}"], brokers)
    options = unwrap(
        {"org.opencontainers.image.enc.pubopts": "x"} | wrap(parse_options(), shared),
        parse_decryption_keys(["provider:attestation-agent"], brokers),
        "layer",
    )
    assert options.encode() == PRIVATE


def parse_options() -> Any:
    from lamina.trust.encryption.layer_options import PrivateOptions

    return PrivateOptions.decode(PRIVATE)


@pytest.mark.parametrize(
    "entry",
    [
        5,
        {},
        {"url": 5},
        {"url": "https://127.0.0.1:1"},
        {"url": "http://192.0.2.1:1"},
        {"url": "https://127.0.0.1:1", "ca-file": "x", "more": 1},
        {"url": "https://127.0.0.1:1", "ca-file": "x", "evidence": "magic"},
    ],
)
def test_broken_configurations(entry: Any, tmp_path: Path) -> None:
    file = tmp_path / "providers.json"
    file.write_text(json.dumps({"key-providers": {"a": {"kbs": entry}}}))
    with pytest.raises(Error):
        load_providers(str(file))


def test_the_protocol_of_programs(provider: KbsKeyProvider) -> None:
    request = wrap_request("attestation-agent", PRIVATE, f"keyid={URI}")
    answer = answer_request(provider, request)
    assert isinstance(json.loads(answer)["keywrapresults"]["annotation"], list)
    packet = read_answer(answer, "keywrapresults", "annotation")
    answer = answer_request(provider, unwrap_request("attestation-agent", packet, "Enabled"))
    assert read_answer(answer, "keyunwrapresults", "optsdata") == PRIVATE


@pytest.mark.parametrize(
    "request_",
    [
        b"", b"[]", b"{}", b'{"op":"x"}', b'{"op":"keywrap"}', b'{"op":"keyunwrap"}',
        b'{"op":"keyunwrap","keyunwrapparams":{"annotation":5}}',
        b'{"op":"keyunwrap","keyunwrapparams":{"annotation":"e30="}}',
        b'{"op":"keywrap","keywrapparams":{"optsdata":"e30=","ec":{"Parameters":{}}}}',
        b'{"op":"keywrap","keywrapparams":{"optsdata":"e30=","ec":{"Parameters":{"a":["/w=="]}}}}',
    ],
)  # fmt: skip
def test_requests_that_are_none(provider: KbsKeyProvider, request_: bytes) -> None:
    with pytest.raises(Error):
        answer_request(provider, request_)
