"""The payload that a cosign tag signature signs ("simple signing"), read strictly.

cosign itself ignores the identity, the type and unknown critical fields; containers-image does not,
nor does this.  Source: containers/image, ``docs/containers-signature.5.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Self

from lamina.errors import FormatError
from lamina.oci.reference import is_digest
from lamina.trust import strict_json

TYPE: Final = "cosign container image signature"
MAX_PAYLOAD_BYTES: Final = 64 << 10
RELEASE: Final = "release"
"""Member of the optional part: a number that a signer counts up, Lamina's own."""


@dataclass(frozen=True, slots=True)
class Payload:
    """Which image is signed under which name, and what the signer adds (``release``, ``suite``)."""

    reference: str
    digest: str
    optional: dict[str, Any] = field(default_factory=dict)

    @property
    def release(self) -> int | None:
        """The release that the signer states; None without one, or for anything but a number."""
        stated = self.optional.get(RELEASE)
        return stated if type(stated) is int else None

    def encode(self) -> bytes:
        """Return the bytes to sign."""
        return strict_json.compact(
            {
                "critical": {
                    "identity": {"docker-reference": self.reference},
                    "image": {"docker-manifest-digest": self.digest},
                    "type": TYPE,
                },
                "optional": self.optional or None,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a payload whose signature has been verified.  Raises FormatError."""
        what = "signed payload"
        document = strict_json.parse_object(data, what, MAX_PAYLOAD_BYTES)
        strict_json.expect_keys(document, what, ("critical", "optional"))
        critical = strict_json.expect_keys(
            document["critical"], what, ("type", "image", "identity")
        )
        image = strict_json.expect_keys(critical["image"], what, ("docker-manifest-digest",))
        identity = strict_json.expect_keys(critical["identity"], what, ("docker-reference",))
        if critical["type"] != TYPE:
            raise FormatError(f"the {what} has another type than {TYPE!r}")
        optional = document["optional"] if document["optional"] is not None else {}
        if not isinstance(optional, dict):
            raise FormatError(f"the optional part of the {what} is no object")
        if "timestamp" in optional and type(optional["timestamp"]) is not int:
            raise FormatError(f"the timestamp of the {what} is no integer")
        digest = strict_json.text_of(image["docker-manifest-digest"], f"digest of the {what}")
        if not is_digest(digest):
            raise FormatError(f"the {what} names no manifest digest")
        reference = identity["docker-reference"]
        return cls(strict_json.text_of(reference, f"name in the {what}"), digest, optional)
