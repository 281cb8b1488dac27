"""Who may open a layer, and with what: the arguments ``--encryption-key`` and
``--decryption-key``, and wrapping and unwrapping of a layer's options by all schemes of ocicrypt.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Self

from lamina.errors import Error, FormatError, TrustError, UnsupportedError, UsageError
from lamina.oci.manifest import Annotations
from lamina.trust import PROVIDERS_VARIABLE, providers_file, strict_json
from lamina.trust.crypto import jwe
from lamina.trust.crypto.keys import (
    PrivateKey,
    PublicKey,
    load_private_key,
    load_public_key,
    read_key_file,
)
from lamina.trust.crypto.secret import read_passphrase
from lamina.trust.encryption.layer_options import PrivateOptions

# Opening an image by a key in a file needs neither providers nor certificates, and is not to wait
# for their modules.
if TYPE_CHECKING:
    from lamina.trust.crypto.pkcs7 import Certificate
    from lamina.trust.encryption.key_provider import KeyProvider

PREFIX: Final = "org.opencontainers.image.enc."
PUBLIC_OPTIONS: Final = PREFIX + "pubopts"
KEYS_PREFIX: Final = PREFIX + "keys."
JWE_KEYS: Final = KEYS_PREFIX + "jwe"
PKCS7_KEYS: Final = KEYS_PREFIX + "pkcs7"
PROVIDER_PREFIX: Final = KEYS_PREFIX + "provider."
MAX_ANNOTATION_BYTES: Final = 1 << 20
MAX_PACKETS: Final = 256
PATIENCE_S: Final = 120.0
"""How long the keys of one layer are looked for: providers may be slow, and an image names many."""
_DEFAULT_PARAMETER: Final = "Enabled"
_PROVIDER_HINTS: Final = {"attestation-agent": "say which key broker has the key: --kbs URL"}
_OTHER_PROVIDER_HINT: Final = f"name the provider's configuration file in {PROVIDERS_VARIABLE}"


@dataclass(frozen=True, slots=True)
class Recipients:
    """Everybody who shall be able to open what is encrypted."""

    public_keys: tuple[PublicKey, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    providers: tuple[tuple[str, KeyProvider, str], ...] = ()
    """Annotation name, provider, parameter."""

    def __bool__(self) -> bool:
        return bool(self.public_keys or self.certificates or self.providers)


@dataclass(frozen=True, slots=True)
class DecryptionKeys:
    """Everything that may open a layer."""

    private_keys: tuple[PrivateKey, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    providers: dict[str, KeyProvider] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.private_keys or self.certificates or self.providers)

    def for_image(self, image_digest: str, release: int | None = None) -> Self:
        """Return the same keys; key brokers are told the digest of the image's manifest, and the
        release in its signature if that was verified.
        """
        if not self.providers:
            return self
        from lamina.trust.broker.provider import KbsKeyProvider

        told = {
            name: provider.for_image(image_digest, release)
            for name, provider in self.providers.items()
            if isinstance(provider, KbsKeyProvider)
        }
        return replace(self, providers={**self.providers, **told})


def parse_recipients(
    texts: Sequence[str], brokers: Mapping[str, KeyProvider] | None = None
) -> Recipients:
    """Recipients from ``jwe:FILE``, ``pkcs7:FILE`` and ``provider:NAME[:PARAMETER]``; ``brokers``
    are providers beside the configured ones.

    Raises UsageError for other texts, and what reading keys raises.
    """
    known = _all_providers(brokers)
    if any("keypath=" in text for text in texts):
        from lamina.trust.broker.provider import PROVIDER_NAME, KeyFileProvider

        known.setdefault(PROVIDER_NAME, KeyFileProvider())
    keys: list[PublicKey] = []
    certificates: list[Certificate] = []
    providers: list[tuple[str, KeyProvider, str]] = []
    for text in texts:
        scheme, colon, rest = text.partition(":")
        if not colon or not rest:
            scheme = ""
        match scheme:
            case "jwe":
                keys.append(load_public_key(read_key_file(rest, private=False), rest))
                jwe.algorithm_for(keys[-1])
            case "pkcs7":
                certificates.append(_certificate(read_key_file(rest, private=False), rest))
            case "provider":
                name, _, parameter = rest.partition(":")
                provider = _configured(name, known)
                providers.append((name, provider, parameter or _DEFAULT_PARAMETER))
            case _:
                raise UsageError(
                    f"{text!r} names no encryption key",
                    hint="write jwe:PUBLIC_KEY_FILE, pkcs7:CERTIFICATE_FILE or provider:NAME:PARAM",
                )
    return Recipients(tuple(keys), tuple(certificates), tuple(providers))


def _all_providers(brokers: Mapping[str, KeyProvider] | None) -> dict[str, KeyProvider]:
    found: dict[str, KeyProvider] = {}
    if providers_file() is not None:
        from lamina.trust.encryption.key_provider import load_providers

        found |= load_providers()
    return {**found, **(brokers or {})}


def _certificate(data: bytes, source: str) -> Certificate:
    from lamina.trust.crypto.pkcs7 import load_certificate

    return load_certificate(data, source)


def _configured(name: str, known: Mapping[str, KeyProvider]) -> KeyProvider:
    provider = known.get(name)
    if provider is None:
        raise UsageError(
            f"no key provider {name!r} is configured",
            hint="name its configuration file in OCICRYPT_KEYPROVIDER_CONFIG, or a key broker with "
            "--kbs",
        )
    return provider


def parse_decryption_keys(
    texts: Sequence[str], brokers: Mapping[str, KeyProvider] | None = None
) -> DecryptionKeys:
    """Keys from ``FILE[:pass=…|:file=…|:fd=…]`` (private key or certificate) and
    ``provider:NAME[:PARAMETER]``; all configured providers and ``brokers`` are asked as well, as
    ocicrypt does.
    """
    return read_decryption_keys(texts, _all_providers(brokers))


def read_decryption_keys(texts: Sequence[str], known: Mapping[str, KeyProvider]) -> DecryptionKeys:
    """Parse as :func:`parse_decryption_keys`, with the providers that are *known* and no others."""
    keys: list[PrivateKey] = []
    certificates: list[Certificate] = []
    parameters: dict[str, str] = {}
    for text in texts:
        scheme, _, rest = text.partition(":")
        if scheme == "provider":
            name, _, parameter = rest.partition(":")
            _configured(name, known)
            parameters[name] = parameter or _DEFAULT_PARAMETER
            continue
        path, kind, value = split_passphrase(text)
        passphrase = read_passphrase(f"{kind}={value}") if kind else None
        for prefix in ("jwe:", "pkcs7:"):
            path = path.removeprefix(prefix)
        data = read_key_file(path, private=True)
        if b"-----BEGIN CERTIFICATE" in data:
            certificates.append(_certificate(data, path))
        else:
            keys.append(load_private_key(data, path, passphrase))
    return DecryptionKeys(tuple(keys), tuple(certificates), dict(known), parameters)


def portable_key(text: str) -> str:
    """Return a text of :func:`parse_decryption_keys` for a process with other files and another
    folder: paths are absolute, and a passphrase from a file descriptor is in the text, as others
    are that were.

    Never log or store it.  Raises what reading the passphrase raises.
    """
    if text.startswith("provider:"):
        return text
    scheme = next((s for s in ("jwe:", "pkcs7:") if text.startswith(s)), "")
    path, kind, value = split_passphrase(text.removeprefix(scheme))
    if kind == "file":
        value = os.path.abspath(value)
    elif kind == "fd":
        kind, value = "pass", os.fsdecode(read_passphrase(f"fd={value}").reveal())
    tail = f":{kind}={value}" if kind else ""
    return scheme + os.path.abspath(path) + tail


def split_passphrase(text: str) -> tuple[str, str, str]:
    """(path, kind, value) of ``PATH:pass=…``, ``PATH:file=…`` and ``PATH:fd=…``; kind and value are
    empty without a passphrase.
    """
    for kind in ("pass", "file", "fd"):
        path, mark, value = text.partition(f":{kind}=")
        if mark:
            return path, kind, value
    return text, "", ""


def wrap(options: PrivateOptions, recipients: Recipients) -> Annotations:
    """Return the key annotations of a layer for some recipients."""
    plain, annotations = options.encode(), Annotations()
    if recipients.public_keys:
        annotations[JWE_KEYS] = strict_json.encode_base64(
            jwe.encrypt(plain, recipients.public_keys)
        )
    if recipients.certificates:
        from lamina.trust.crypto import pkcs7

        annotations[PKCS7_KEYS] = strict_json.encode_base64(
            pkcs7.encrypt(plain, recipients.certificates)
        )
    for name, provider, parameter in recipients.providers:
        packet = strict_json.encode_base64(provider.wrap(plain, parameter))
        add_packets(annotations, {PROVIDER_PREFIX + name: packet})
    return annotations


def add_packets(annotations: Annotations, more: Annotations) -> None:
    """Append wrapped keys to those that are there already, in place."""
    for name, packet in more.items():
        there = annotations.get(name)
        annotations[name] = f"{there},{packet}" if there else packet


def unwrap(annotations: Annotations, keys: DecryptionKeys, what: str) -> PrivateOptions:
    """Return the private options, opened by the first of the keys that fits.

    Raises TrustError if none does: its message has the reasons of all that were tried.
    """
    reasons: list[str] = []
    hints: list[str | None] = []
    ends_s = time.monotonic() + PATIENCE_S
    for name, packet in _wrapped_keys(annotations, what):
        scheme = name.removeprefix(KEYS_PREFIX)
        if time.monotonic() > ends_s:
            reasons.append(f"after {PATIENCE_S:.0f} s no other of its wrapped keys was tried")
            break
        try:
            plain = _opener(name, keys)(packet)
        except Error as error:
            reasons.append(f"{scheme}: {error}")
            asked = name.removeprefix(PROVIDER_PREFIX) in keys.providers
            hints.append(error.hint or (f"ask who runs {scheme}" if asked else None))
            continue
        return PrivateOptions.decode(plain)
    if not reasons:
        raise FormatError(f"{what} is encrypted but has no wrapped key")
    raise TrustError(
        f"no key opens {what} ({'; '.join(dict.fromkeys(reasons))})",
        hint=next(filter(None, hints), "give its key: --decryption-key FILE or provider:NAME"),
    )


def _wrapped_keys(annotations: Annotations, what: str) -> Iterator[tuple[str, bytes]]:
    """Annotation and packet of each wrapped key.  Raises FormatError."""
    size = sum(len(value) for name, value in annotations.items() if name.startswith(PREFIX))
    if size > MAX_ANNOTATION_BYTES:
        raise FormatError(f"the encryption annotations of {what} have {size} bytes")
    for name in sorted(annotations):
        if name.startswith(KEYS_PREFIX):
            for packet in _packets(annotations[name], what):
                yield name, packet


def recipient_counts(annotations: Annotations) -> dict[str, int]:
    """Return how many keys are wrapped by each scheme (``jwe``, ``pkcs7``, ``provider.NAME``)."""
    return {
        name.removeprefix(KEYS_PREFIX): len(value.split(","))
        for name, value in sorted(annotations.items())
        if name.startswith(KEYS_PREFIX)
    }


def _opener(name: str, keys: DecryptionKeys) -> Callable[[bytes], bytes]:
    if name == JWE_KEYS:
        return lambda packet: jwe.decrypt(packet, keys.private_keys)
    if name == PKCS7_KEYS:
        from lamina.trust.crypto import pkcs7

        return lambda packet: pkcs7.decrypt(packet, keys.certificates, keys.private_keys)
    provider_name = name.removeprefix(PROVIDER_PREFIX)
    provider = keys.providers.get(provider_name) if name.startswith(PROVIDER_PREFIX) else None
    if provider is None:
        raise UnsupportedError(
            "no key provider or scheme of this name is known here",
            hint=_PROVIDER_HINTS.get(provider_name, _OTHER_PROVIDER_HINT)
            if name.startswith(PROVIDER_PREFIX)
            else None,
        )
    parameter = keys.parameters.get(provider_name, _DEFAULT_PARAMETER)
    return lambda packet: provider.unwrap(packet, parameter)


def _packets(value: str, what: str) -> list[bytes]:
    texts = value.split(",")
    if len(texts) > MAX_PACKETS:
        raise FormatError(f"{what} has more than {MAX_PACKETS} wrapped keys")
    return [strict_json.decode_base64(text, f"wrapped key of {what}") for text in texts]
