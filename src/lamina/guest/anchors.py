"""What a guest believes from the beginning: anchors in its init-data, which its evidence proves.

They are in the file ``cdh.toml`` of the init-data, as the confidential data hub reads it: where the
key broker is and by which certificate it is known, and where the broker has the policy of images,
the credentials of registries and their authorities.  Source: guest-components, the example
configuration of the confidential data hub.

A setting of images that is not known here is refused: it may be what forbids an image.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any, Final

from lamina.errors import FormatError, TrustError
from lamina.trust.broker.init_data import InitData
from lamina.trust.broker.kbs_packet import ResourcePath, parse_resource

FILE: Final = "cdh.toml"
_OF_SPEED: Final = frozenset(("max_concurrent_layer_downloads_per_image",))
"""Settings of images that decide nothing here."""
_KNOWN: Final = frozenset(
    (
        *("image_security_policy", "image_security_policy_uri"),
        *("authenticated_registry_credentials_uri", "extra_root_certificates"),
    )
)


@dataclass(frozen=True, slots=True)
class Anchors:
    """``policy`` is the text of a policy, or the resource that the broker has it under."""

    broker_url: str
    broker_authority: str
    policy: str | ResourcePath
    credentials: ResourcePath | None = None
    registry_authorities: tuple[str, ...] = ()


def parse_anchors(init_data: InitData) -> Anchors:
    """Return the anchors in init-data.

    Raises FormatError for what is malformed or not known, TrustError where one is missing without
    which the host could choose what is run.
    """
    files = tomllib.loads(init_data.text)["data"]
    if FILE not in files:
        raise TrustError(
            f"the init-data has no {FILE}", hint="it says which key broker and policy to believe"
        )
    try:
        document = tomllib.loads(files[FILE])
    except (ValueError, RecursionError):
        raise FormatError(f"the {FILE} in the init-data is no TOML") from None
    broker, image = _table(document, "kbc"), _table(document, "image")
    if unknown := sorted(image.keys() - _KNOWN - _OF_SPEED):
        raise FormatError(
            f"the {FILE} in the init-data has a setting that is not known here: "
            f"image.{unknown[0][:60]}"
        )
    certificates = image.get("extra_root_certificates", [])
    if not isinstance(certificates, list) or not all(isinstance(c, str) for c in certificates):
        raise FormatError(f"the extra_root_certificates of the {FILE} are no list of texts")
    credentials = _text(image, "authenticated_registry_credentials_uri")
    url, authority = _text(broker, "url"), _text(broker, "kbs_cert")
    if not url or not authority or not url.startswith("https://"):
        raise TrustError(
            "the init-data does not say by which certificate the key broker is known",
            hint="kbc.url with https and kbc.kbs_cert; over plain HTTP anybody could be the broker",
        )
    return Anchors(
        broker_url=url,
        broker_authority=authority,
        policy=_policy(image),
        credentials=parse_resource(credentials) if credentials else None,
        registry_authorities=tuple(certificates),
    )


def _policy(image: dict[str, Any]) -> str | ResourcePath:
    text, uri = _text(image, "image_security_policy"), _text(image, "image_security_policy_uri")
    if text and uri:
        raise FormatError(f"the {FILE} in the init-data has two policies of images")
    if not text and not uri:
        raise TrustError(
            "the init-data names no policy of images, so the host could choose what is run",
            hint="image.image_security_policy_uri, or the policy itself as "
            "image.image_security_policy",
        )
    return text or parse_resource(uri)


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name, {})
    if not isinstance(found, dict):
        raise FormatError(f"the {name} of the {FILE} in the init-data is no table")
    return found


def _text(table: dict[str, Any], name: str) -> str:
    found = table.get(name, "")
    if not isinstance(found, str):
        raise FormatError(f"the {name} of the {FILE} in the init-data is no text")
    return found
