"""When a broker gives a key away: the rule of a resource, and what it is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

from lamina.errors import FormatError
from lamina.oci.reference import is_digest
from lamina.trust import strict_json
from lamina.trust.broker.protocol import Claims, Problem

_LISTS: Final = ("tees", "measurements", "images")
_MAX_ITEMS: Final = 1024
_MAX_ITEM: Final = 1024


class Attested(NamedTuple):
    """What verified evidence says: the kind of TEE and the measurement of what was started."""

    tee: str
    measurement: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Demands on who wants a key; an empty list and release 0 demand nothing.

    ``images`` are digests of manifests.  Image and release are what the attested guest says it
    verified: they are worth as much as the measurement that vouches for the guest.
    """

    tees: tuple[str, ...] = ()
    measurements: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    minimum_release: int = 0

    def refusal(self, attested: Attested, claims: Claims) -> Problem | None:
        """Why this guest does not get the key; None if it does."""
        if self.tees and attested.tee not in self.tees:
            return Problem("TeeNotAllowed", f"evidence of the kind {attested.tee} does not suffice")
        if self.measurements and attested.measurement not in self.measurements:
            return Problem("MeasurementNotAllowed", "the measurement is not among those allowed")
        if self.images and claims.image_digest not in self.images:
            stated = claims.image_digest or "no image"
            return Problem("ImageNotAllowed", f"the key is not for {stated}")
        release = claims.release
        if self.minimum_release and (release is None or release < self.minimum_release):
            stated = "no release" if release is None else f"release {release}"
            return Problem("ReleaseTooOld", f"{stated} is below {self.minimum_release}")
        return None

    def describe(self) -> str:
        """In one line."""
        parts = [
            f"{name}: {' '.join(values)}" for name in _LISTS if (values := getattr(self, name))
        ]
        if self.minimum_release:
            parts.append(f"release: {self.minimum_release} or later")
        return "; ".join(parts) or "anybody attested"

    def encode(self) -> dict[str, Any]:
        """Return the rule as a JSON object."""
        lists = {name: list(getattr(self, name)) for name in _LISTS}
        return {**lists, "minimum_release": self.minimum_release}

    @classmethod
    def decode(cls, value: Any, what: str) -> Self:
        """Parse a rule of JSON; raises FormatError."""
        strict_json.expect_keys(value, what, (*_LISTS, "minimum_release"))
        release = value["minimum_release"]
        if type(release) is not int or release < 0:
            raise FormatError(f"the minimum release of the {what} is no number")
        tees, measurements, images = (_texts(value[name], what) for name in _LISTS)
        if not all(is_digest(digest) for digest in images):
            raise FormatError(f"an image of the {what} is no digest")
        return cls(tees, measurements, images, release)


def _texts(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MAX_ITEMS:
        raise FormatError(f"the {what} has something else than a list")
    texts = tuple(strict_json.text_of(item, what) for item in value)
    if any(not 0 < len(text) <= _MAX_ITEM for text in texts):
        raise FormatError(f"the {what} has an item that is empty or too long")
    return texts
