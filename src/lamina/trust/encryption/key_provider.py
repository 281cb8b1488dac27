"""Key providers of ocicrypt: programs or gRPC services that wrap and unwrap the options of a layer.

The configuration is a JSON file named by ``OCICRYPT_KEYPROVIDER_CONFIG``.  Beside ocicrypt's own
``cmd`` and ``grpc`` an entry can be ``kbs``, a key broker that is asked in process.  A request and
its answer are one JSON object each, on stdin and stdout of a program, or as the only field of a
protobuf message.  Answers carry bytes as base64 (Go) or as a list of numbers (Rust).
Source: ocicrypt, ``docs/keyprovider.md``.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from lamina.errors import FormatError, NotFoundError, TrustError, UnsupportedError, UsageError
from lamina.trust import providers_file, strict_json

if TYPE_CHECKING:
    from subprocess import Popen

MAX_ANSWER_BYTES: Final = 1 << 20
_DEADLINE_S: Final = 60.0
_SERVICE: Final = "/keyprovider.KeyProviderService"


class KeyProvider(Protocol):
    """Wraps and unwraps; both raise TrustError if the provider refuses or fails."""

    def wrap(self, options: bytes, parameter: str) -> bytes:
        """Return the packet that goes into the annotation of the layer."""

    def unwrap(self, packet: bytes, parameter: str) -> bytes:
        """Return the private options that a packet wraps."""


def wrap_request(name: str, options: bytes, parameter: str) -> bytes:
    """Return the JSON of a request to wrap."""
    parameters = {name: [strict_json.encode_base64(parameter.encode())]}
    return strict_json.compact(
        {
            "op": "keywrap",
            "keywrapparams": {
                "ec": {"Parameters": parameters, "DecryptConfig": {"Parameters": {}}},
                "optsdata": strict_json.encode_base64(options),
            },
            "keyunwrapparams": {"dc": None, "annotation": None},
        }
    )


def unwrap_request(name: str, packet: bytes, parameter: str) -> bytes:
    """Return the JSON of a request to unwrap."""
    return strict_json.compact(
        {
            "op": "keyunwrap",
            "keywrapparams": {"ec": None, "optsdata": None},
            "keyunwrapparams": {
                "dc": {"Parameters": {name: [strict_json.encode_base64(parameter.encode())]}},
                "annotation": strict_json.encode_base64(packet),
            },
        }
    )


def read_answer(answer: bytes, results: str, member: str) -> bytes:
    """Return the bytes in an answer.  Raises FormatError, which never quotes the answer."""
    document = strict_json.parse_object(answer, "answer of the key provider", MAX_ANSWER_BYTES)
    inner = document.get(results)
    if not isinstance(inner, dict) or member not in inner:
        raise FormatError(f"the answer of the key provider has no {results}.{member}")
    value = inner[member]
    if isinstance(value, list):
        if not all(type(item) is int and 0 <= item < 256 for item in value):
            raise FormatError("the answer of the key provider has a list that is not of bytes")
        return bytes(value)
    return strict_json.decode_base64(value, "answer of the key provider")


@dataclass(frozen=True, slots=True)
class _Exchange(ABC):
    """The half that programs and services share."""

    name: str

    def wrap(self, options: bytes, parameter: str) -> bytes:
        answer = self.call("WrapKey", wrap_request(self.name, options, parameter))
        return read_answer(answer, "keywrapresults", "annotation")

    def unwrap(self, packet: bytes, parameter: str) -> bytes:
        answer = self.call("UnWrapKey", unwrap_request(self.name, packet, parameter))
        return read_answer(answer, "keyunwrapresults", "optsdata")

    @abstractmethod
    def call(self, method: str, request: bytes) -> bytes:
        """Send a request and return its answer."""


@dataclass(frozen=True, slots=True)
class CommandProvider(_Exchange):
    """A program, started once a request."""

    command: tuple[str, ...]

    def call(self, method: str, request: bytes) -> bytes:
        """Run the program; its stderr is not passed on, for it may quote what it got."""
        import subprocess

        from lamina.trust.crypto.secret import PASSWORD_VARIABLES

        environment = {k: v for k, v in os.environ.items() if k not in PASSWORD_VARIABLES}
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                self.command, stdin=pipe, stdout=pipe, stderr=nothing, env=environment
            )
        except OSError as error:
            raise UsageError(
                f"cannot start the key provider {self.name} ({self.command[0]}): {error.strerror}"
            ) from None
        ends_s = time.monotonic() + _DEADLINE_S
        with process:
            try:
                answer = _converse(process, request, ends_s, self.name)
                code = process.wait(max(0.0, ends_s - time.monotonic()))
            except (TimeoutError, subprocess.TimeoutExpired):
                raise TrustError(
                    f"the key provider {self.name} did not answer in {_DEADLINE_S:.0f} s"
                ) from None
            finally:
                process.kill()
        if code:
            raise TrustError(f"the key provider {self.name} refused {method} (exit status {code})")
        return answer


def _converse(process: Popen[bytes], request: bytes, ends_s: float, name: str) -> bytes:
    """Write a request and read the answer at the same time, for programs may do as they like.

    Raises TimeoutError; FormatError for an answer that is too long, before it takes memory.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    left, answer = memoryview(request), bytearray()
    with selectors.DefaultSelector() as pipes:
        pipes.register(process.stdin, selectors.EVENT_WRITE)
        pipes.register(process.stdout, selectors.EVENT_READ)
        while pipes.get_map():
            ready = pipes.select(max(0.0, ends_s - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                if key.fileobj is process.stdout:
                    part = os.read(key.fd, MAX_ANSWER_BYTES)
                    answer += part
                    if not part:
                        pipes.unregister(process.stdout)
                    if len(answer) > MAX_ANSWER_BYTES:
                        raise FormatError(
                            f"the answer of the key provider {name} is longer than "
                            f"{MAX_ANSWER_BYTES} bytes"
                        )
                    continue
                try:
                    # What a pipe takes at once without blocking, once it is ready.
                    left = left[os.write(key.fd, left[: select.PIPE_BUF]) :]
                except BrokenPipeError:
                    # It has seen enough.
                    left = left[len(left) :]
                if not left:
                    pipes.unregister(process.stdin)
                    process.stdin.close()
    return bytes(answer)


@dataclass(frozen=True, slots=True)
class ServiceProvider(_Exchange):
    """A gRPC service; ``tls`` is None for a plain connection."""

    address: str
    tls: dict[str, Any] | None = field(default=None, repr=False)

    def call(self, method: str, request: bytes) -> bytes:
        """Make one unary call."""
        try:
            import grpc
        except ImportError:
            raise UnsupportedError(
                f"the key provider {self.name} speaks gRPC, which needs the package 'grpcio'",
                hint="pip install 'lamina[grpc]'",
            ) from None
        with contextlib.closing(self._channel(grpc)) as channel:
            stub = channel.unary_unary(
                f"{_SERVICE}/{method}", request_serializer=pack, response_deserializer=unpack
            )
            try:
                answer: bytes = stub(request, timeout=_DEADLINE_S)
            except grpc.RpcError as error:
                code = getattr(error, "code", lambda: None)()
                reason = getattr(code, "name", "an unreadable answer")
                raise TrustError(
                    f"the key provider {self.name} at {self.address} failed {method}: {reason}"
                ) from None
        return answer

    def _channel(self, grpc: Any) -> Any:
        if self.tls is None:
            return grpc.insecure_channel(self.address)
        if self.tls.get("insecure-skip-verify"):
            raise UnsupportedError(
                f"the key provider {self.name} is configured with insecure-skip-verify",
                hint="give root-ca-file instead; keys are not sent to somebody unknown",
            )
        ca, key, certificate = (
            _file(self.tls.get(name)) for name in ("root-ca-file", "key-file", "cert-file")
        )
        options = []
        if server := self.tls.get("server-name"):
            options.append(("grpc.ssl_target_name_override", server))
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        return grpc.secure_channel(self.address, credentials, options)


def _file(path: str | None) -> bytes | None:
    from lamina.trust.crypto.keys import read_key_file

    return None if not path else read_key_file(path, private=False)


def pack(document: bytes) -> bytes:
    """Return a protobuf message whose field 1 is the document."""
    size, length = len(document), bytearray(b"\x0a")
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes(length) + document


def unpack(message: bytes) -> bytes:
    """Field 1 of a protobuf message that has no other.  Raises FormatError."""
    size, shift, position = 0, 0, 1
    while True:
        if position >= len(message) or message[0] != 0x0A or shift > 28:
            raise FormatError("the answer of the key provider is no message with one field")
        size |= (message[position] & 0x7F) << shift
        shift += 7
        position += 1
        if not message[position - 1] & 0x80:
            break
    if len(message) - position != size:
        raise FormatError("the answer of the key provider is truncated")
    return message[position:]


def load_providers(path: str | None = None) -> dict[str, KeyProvider]:
    """Return the providers of a configuration file, by default that of
    ``OCICRYPT_KEYPROVIDER_CONFIG``.

    No variable or no file means no providers.  Raises FormatError.
    """
    path = path or providers_file()
    if not path:
        return {}
    from lamina.trust.crypto.keys import read_key_file

    try:
        data = read_key_file(path, private=False)
    except NotFoundError:
        return {}
    what = f"key provider configuration {path}"
    document = strict_json.parse_object(data, what)
    entries = document.get("key-providers") or {}
    if not isinstance(entries, dict):
        raise FormatError(f"the {what} has no object 'key-providers'")
    return {name: _provider(name, entry, what) for name, entry in entries.items()}


def _provider(name: str, entry: Any, what: str) -> KeyProvider:
    if not isinstance(entry, dict):
        raise FormatError(f"the {what} has no object for {name!r}")
    if "kbs" in entry:
        from lamina.trust.broker.provider import configured_provider

        return configured_provider(entry["kbs"], f"kbs entry of {name!r} in the {what}")
    command, address = entry.get("cmd"), entry.get("grpc")
    if isinstance(command, dict) and isinstance(command.get("path"), str):
        arguments = command.get("args") or []
        if isinstance(arguments, list) and all(isinstance(item, str) for item in arguments):
            return CommandProvider(name, (command["path"], *arguments))
    if isinstance(address, str) and address:
        tls = entry.get("grpc-tls")
        if tls is None or isinstance(tls, dict):
            return ServiceProvider(name, address, tls)
    raise UnsupportedError(
        f"the {what} gives {name!r} no command, gRPC address or key broker",
        hint='write {"cmd": {"path": "/path", "args": []}}, {"grpc": "host:port"} or '
        '{"kbs": {"url": "https://host:port", "ca-file": "/path"}}',
    )
