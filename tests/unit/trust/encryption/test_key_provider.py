"""Key providers as programs and as gRPC services, with answers of both encodings."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import Error, FormatError, TrustError, UnsupportedError, UsageError
from lamina.trust.encryption import key_provider as kp

OPTIONS = b'{"symkey":"..."}'

PROGRAM = """
import base64, json, os, sys
request = json.load(sys.stdin)
assert "COSIGN_PASSWORD" not in os.environ
form = (lambda b: base64.b64encode(b).decode()) if sys.argv[1] == "go" else list
turn = lambda b: bytes(c ^ 0x55 for c in b)
if request["op"] == "keywrap":
    assert request["keyunwrapparams"] == {"dc": None, "annotation": None}
    parameters = request["keywrapparams"]["ec"]["Parameters"]["mine"]
    assert base64.b64decode(parameters[0]) == b"param"
    data = turn(base64.b64decode(request["keywrapparams"]["optsdata"]))
    json.dump({"keywrapresults": {"annotation": form(data)}}, sys.stdout)
else:
    assert request["op"] == "keyunwrap"
    assert request["keywrapparams"] == {"ec": None, "optsdata": None}
    data = turn(base64.b64decode(request["keyunwrapparams"]["annotation"]))
    json.dump({"keyunwrapresults": {"optsdata": form(data)}}, sys.stdout)
"""


@pytest.mark.parametrize("form", ["go", "rust"])
def test_a_program(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSIGN_PASSWORD", "tea")
    program = tmp_path / "provider.py"
    program.write_text(PROGRAM)
    config = {"path": sys.executable, "args": [str(program), form]}
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"key-providers": {"mine": {"cmd": config}}}))
    provider = kp.load_providers(str(file))["mine"]
    packet = provider.wrap(OPTIONS, "param")
    assert packet == bytes(c ^ 0x55 for c in OPTIONS)
    assert provider.unwrap(packet, "param") == OPTIONS
    with pytest.raises(TrustError, match="refused WrapKey"):
        provider.wrap(OPTIONS, "other")
    assert os.environ["COSIGN_PASSWORD"] == "tea"


def test_programs_that_fail(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot start"):
        kp.CommandProvider("x", (str(tmp_path / "absent"),)).wrap(OPTIONS, "p")
    silent = kp.CommandProvider("x", (sys.executable, "-c", "pass"))
    with pytest.raises(FormatError):
        silent.wrap(OPTIONS, "p")


def program(code: str) -> kp.CommandProvider:
    return kp.CommandProvider("x", (sys.executable, "-c", f"import os, sys, time\n{code}"))


def test_a_program_does_not_decide_how_much_memory_is_used() -> None:
    endless = program("while True: os.write(1, b'x' * 65536)")
    with pytest.raises(FormatError, match="longer than 1048576 bytes"):
        endless.wrap(OPTIONS, "p")


def test_a_program_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kp, "_DEADLINE_S", 0.5)
    for code in ("time.sleep(3600)", "os.close(1); time.sleep(3600)"):
        with pytest.raises(TrustError, match="did not answer"):
            program(code).wrap(OPTIONS, "p")


def test_programs_that_answer_before_they_have_read() -> None:
    """Requests are larger than a pipe, so writing must not wait for the program."""
    answer = '{"keywrapresults":{"annotation":"AAAA"}}'
    large = bytes(600_000)
    for code in (f"print('{answer}')", f"print('{answer}'); sys.stdin.read()"):
        assert program(code).wrap(large, "p") == bytes(3)


class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, form: str) -> None:
        self.form = form

    def service(self, details: Any) -> Any:
        if not details.method.startswith("/keyprovider.KeyProviderService/"):
            return None
        return grpc.unary_unary_rpc_method_handler(self.answer)

    def answer(self, request: bytes, context: Any) -> bytes:
        document = json.loads(kp.unpack(request))
        if self.form == "broken":
            return b"\x12\x00"
        if self.form == "refusing":
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "the key is secret1234")
        form: Any = list if self.form == "rust" else (lambda b: base64.b64encode(b).decode())
        if document["op"] == "keywrap":
            data = base64.b64decode(document["keywrapparams"]["optsdata"])
            results = {"keywrapresults": {"annotation": form(data[::-1])}}
            return kp.pack(json.dumps(results).encode())
        data = base64.b64decode(document["keyunwrapparams"]["annotation"])
        answers = {"keyunwrapresults": {"optsdata": form(data[::-1])}}
        return kp.pack(json.dumps(answers).encode())


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Handler(request.param),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize("service", ["go", "rust"], indirect=True)
def test_a_service(service: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"key-providers": {"mine": {"grpc": service}}}))
    provider = kp.load_providers(str(file))["mine"]
    assert provider.unwrap(provider.wrap(OPTIONS, "p"), "p") == OPTIONS


@pytest.mark.parametrize("service", ["broken", "refusing"], indirect=True)
def test_services_that_fail(service: str) -> None:
    with pytest.raises(TrustError) as caught:
        kp.ServiceProvider("mine", service).wrap(OPTIONS, "p")
    assert "secret1234" not in str(caught.value)


def test_no_unverified_tls() -> None:
    provider = kp.ServiceProvider("mine", "127.0.0.1:1", {"insecure-skip-verify": True})
    with pytest.raises(UnsupportedError, match="insecure-skip-verify"):
        provider.wrap(OPTIONS, "p")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{", '{"key-providers": 5}', '{"key-providers": {"a": 5}}', '{"key-providers": {"a": {}}}',
        '{"key-providers": {"a": {"cmd": {"path": 5}}}}',
        '{"key-providers": {"a": {"cmd": {"path": "/x", "args": [1]}}}}',
        '{"key-providers": {"a": {"ttrpc": "unix:///x"}}}',
        '{"key-providers": {"a": {"grpc": "h:1", "grpc-tls": 5}}}',
    ],
)  # fmt: skip
def test_broken_configurations(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(Error):
        kp.load_providers(str(file))


def test_no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCICRYPT_KEYPROVIDER_CONFIG", raising=False)
    assert kp.load_providers() == {}
    monkeypatch.setenv("OCICRYPT_KEYPROVIDER_CONFIG", str(tmp_path / "absent"))
    assert kp.load_providers() == {}


@pytest.mark.parametrize("value", [[256], [-1], [True], ["a"], [1.5], 5, None, "!", {"a": 1}])
def test_answers_that_are_no_bytes(value: Any) -> None:
    answer = json.dumps({"keyunwrapresults": {"optsdata": value}}).encode()
    with pytest.raises(FormatError):
        kp.read_answer(answer, "keyunwrapresults", "optsdata")


@given(st.binary(max_size=70000))
def test_messages_round_trip(data: bytes) -> None:
    assert kp.unpack(kp.pack(data)) == data


@given(st.binary(max_size=40))
def test_hostile_messages(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        assert len(kp.unpack(data)) < len(data)
