"""The key provider ``attestation-agent``: layers whose keys a broker's key wraps.

In process it asks the broker itself; as a program (``lamina kbs key-provider``) it serves skopeo
and everything else that knows ocicrypt's key providers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Self

from lamina.errors import FormatError, TrustError, UsageError
from lamina.trust import strict_json
from lamina.trust.broker import kbs_packet
from lamina.trust.broker.client import KbsClient
from lamina.trust.broker.connection import parse_endpoint
from lamina.trust.broker.evidence import SAMPLE, SAMPLE_MEASUREMENT, SOURCES, make_source
from lamina.trust.broker.init_data import read_init_data
from lamina.trust.broker.kbs_packet import WRAP_TYPE, parse_resource
from lamina.trust.broker.protocol import NO_CLAIMS, Claims
from lamina.trust.crypto.keys import read_key_file
from lamina.trust.crypto.secret import Secret

PROVIDER_NAME: Final = "attestation-agent"
_PARAMETERS: Final = ("keyid", "keypath", "algorithm")
_SETTINGS: Final = ("url", "ca-file", "evidence", "measurement", "init-data")
MAX_REQUEST_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class KbsKeyProvider:
    """A key provider that asks a broker; ``claims`` say which image the keys are for."""

    client: KbsClient
    claims: Claims = NO_CLAIMS

    def for_image(self, image_digest: str, release: int | None = None) -> Self:
        """Return the same provider for keys of one image: the digest of its manifest, and the
        release in its signature if that was verified.
        """
        return replace(self, claims=Claims(image_digest, release))

    def wrap(self, options: bytes, parameter: str) -> bytes:
        """Wrap with the key that ``keyid=kbs:///A/B/C`` names: from the file ``keypath=`` if that
        is given, else from the broker.  Parameters are separated by ``::``.
        """
        fields = parse_parameter(parameter)
        if "keypath" in fields:
            return KeyFileProvider().wrap(options, parameter)
        resource = parse_resource(fields["keyid"])
        with self.client.fetch(resource, self.claims) as key:
            return kbs_packet.wrap(key, resource, options)

    def unwrap(self, packet: bytes, parameter: str) -> bytes:  # noqa: ARG002 - the protocol's
        """Unwrap with the key that the packet names; the broker's address in it is ignored."""
        parsed = kbs_packet.parse_packet(packet)
        with self.client.fetch(parsed.resource, self.claims) as key:
            return kbs_packet.unwrap(key, parsed)


class KeyFileProvider:
    """Wraps with a key that is in a file, for whoever will ask a broker for the same key; so no
    broker has to give a key for an image that is not there yet.
    """

    def wrap(self, options: bytes, parameter: str) -> bytes:
        """Wrap with the key of ``keypath=``, for a key that a broker calls ``keyid=``.  Raises
        UsageError without one of these.
        """
        fields = parse_parameter(parameter)
        if "keypath" not in fields:
            raise UsageError(
                f"no broker is named that has the key {fields['keyid']}",
                hint="name it with --kbs, or the key in a file: keyid=URI::keypath=FILE",
            )
        with Secret(read_key_file(fields["keypath"], private=True)) as key:
            return kbs_packet.wrap(key, parse_resource(fields["keyid"]), options)

    def unwrap(self, packet: bytes, parameter: str) -> bytes:  # noqa: ARG002 - the protocol's
        """Raise TrustError: only a broker unwraps."""
        raise TrustError("no key broker is named", hint="name it with --kbs")


def parse_parameter(parameter: str) -> dict[str, str]:
    """``keyid=URI[::keypath=FILE][::algorithm=A256GCM]``, as the provider of confidential
    containers takes it.  Raises UsageError.
    """
    fields: dict[str, str] = {}
    for part in parameter.split("::"):
        name, equals, value = part.partition("=")
        if not equals or not value or name not in _PARAMETERS or name in fields:
            raise UsageError(
                f"{parameter[:200]!r} does not say which key of the broker shall wrap",
                hint=f"write provider:{PROVIDER_NAME}:keyid=kbs:///REPOSITORY/TYPE/TAG",
            )
        fields[name] = value
    if "keyid" not in fields or fields.get("algorithm", WRAP_TYPE) != WRAP_TYPE:
        raise UsageError(f"{parameter[:200]!r} has no keyid, or another algorithm than {WRAP_TYPE}")
    return fields


def make_provider(
    url: str,
    ca_file: str | None,
    evidence: str = SAMPLE,
    measurement: str = SAMPLE_MEASUREMENT,
    init_data_file: str | None = None,
) -> KbsKeyProvider:
    """Return a provider for the broker at an address.  Raises UsageError, and what reading
    init-data raises.
    """
    endpoint = parse_endpoint(url, ca_file)
    init_data = read_init_data(init_data_file) if init_data_file else None
    source = make_source(evidence, measurement, init_data)
    return KbsKeyProvider(KbsClient(endpoint, source, init_data))


def configured_provider(settings: Any, what: str) -> KbsKeyProvider:
    """Return the provider of a ``kbs`` entry in the configuration of key providers: ``url``,
    ``ca-file``, ``evidence`` (``sample`` or ``tsm``), ``init-data`` (a file), and for samples
    ``measurement``.

    Raises FormatError, UsageError, and what reading init-data raises.
    """
    strict_json.expect_keys(settings, what, ("url",), _SETTINGS)
    fields = {name: strict_json.text_of(value, what) for name, value in settings.items()}
    evidence = fields.get("evidence", SAMPLE)
    if evidence not in SOURCES:
        raise FormatError(f"the {what} has an unknown source of evidence")
    measurement = fields.get("measurement", SAMPLE_MEASUREMENT)
    init_data = fields.get("init-data")
    return make_provider(fields["url"], fields.get("ca-file"), evidence, measurement, init_data)


def answer_request(provider: KbsKeyProvider, request: bytes) -> bytes:
    """Answer one request of ocicrypt's protocol; bytes in answers are lists of numbers, which
    readers in Go and in Rust both take.

    Raises FormatError, and what the provider raises.
    """
    what = "request to the key provider"
    document = strict_json.parse_object(request, what, MAX_REQUEST_BYTES)
    match document.get("op"):
        case "keywrap":
            inner = _object(document.get("keywrapparams"), what)
            options = strict_json.decode_base64(inner.get("optsdata"), f"options in the {what}")
            parameter = _parameter(_object(inner.get("ec"), what), what)
            packet = provider.wrap(options, parameter)
            return strict_json.compact({"keywrapresults": {"annotation": list(packet)}})
        case "keyunwrap":
            inner = _object(document.get("keyunwrapparams"), what)
            packet = strict_json.decode_base64(inner.get("annotation"), f"packet in the {what}")
            options = provider.unwrap(packet, "")
            return strict_json.compact({"keyunwrapresults": {"optsdata": list(options)}})
        case _:
            raise FormatError(f"the {what} is neither to wrap nor to unwrap")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"the {what} lacks its parameters")
    return value


def _parameter(config: dict[str, Any], what: str) -> str:
    """Return the only parameter of the only provider that a request to wrap names."""
    values = list(_object(config.get("Parameters"), what).values())
    if len(values) != 1 or not isinstance(values[0], list) or len(values[0]) != 1:
        raise FormatError(f"the {what} does not have one parameter of one provider")
    try:
        return strict_json.decode_base64(values[0][0], f"parameter in the {what}").decode()
    except UnicodeDecodeError:
        raise FormatError(f"the parameter in the {what} is no text") from None
