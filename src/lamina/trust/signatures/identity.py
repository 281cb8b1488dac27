"""Does the name in a signature allow the image that was asked for?  The match rules of
containers-policy.json(5), ``signedIdentity``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from lamina.errors import FormatError, UsageError
from lamina.oci.reference import Reference, parse_reference
from lamina.trust import strict_json

ANY_NAME: Final = "anyName"
"""A rule that no policy file can ask for: the signature need not state a name."""

_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "matchExact": (),
    "matchRepoDigestOrExact": (),
    "matchRepository": (),
    "exactReference": ("dockerReference",),
    "exactRepository": ("dockerRepository",),
    "remapIdentity": ("prefix", "signedPrefix"),
}


@dataclass(frozen=True, slots=True)
class IdentityRule:
    """One rule; ``first`` and ``second`` are its reference, repository or prefixes."""

    kind: str = "matchRepoDigestOrExact"
    first: str = ""
    second: str = ""

    def allows(self, signed: str, wanted: Reference) -> bool:
        """Tell whether a signature for the name ``signed`` is one for the image ``wanted``.

        A tag that was asked for must be the signed one, except with matchRepository.
        """
        if self.kind == ANY_NAME:
            return True
        named = _parse(signed)
        if named is None:
            return False
        match self.kind:
            case "exactReference":
                expected = _parse(self.first)
                return expected is not None and _is_versioned(signed) and named == expected
            case "exactRepository":
                expected = _parse(self.first)
                return expected is not None and named.name == expected.name
            case _:
                return self._matches(signed, named, wanted)

    def _matches(self, signed: str, named: Reference, wanted: Reference) -> bool:
        """Apply the rules that look at the image that was asked for."""
        if not wanted.is_remote:
            return False
        name = self._remapped(wanted.name)
        if self.kind == "matchRepository":
            return named.name == name
        if wanted.tag is None and self.kind != "matchExact":
            return named.name == name
        same_tag = wanted.tag is not None and named.tag == wanted.tag
        return _is_versioned(signed) and named.name == name and same_tag

    def _remapped(self, name: str) -> str:
        if self.kind == "remapIdentity" and (name + "/").startswith(self.first + "/"):
            return self.second + name[len(self.first) :]
        return name


def parse_rule(value: Any, what: str) -> IdentityRule:
    """Return a rule from its JSON object.  Raises FormatError for anything unknown."""
    if not isinstance(value, dict):
        raise FormatError(f"the signedIdentity of the {what} is no object")
    fields = _FIELDS.get(str(value.get("type")))
    if fields is None:
        raise FormatError(f"the signedIdentity of the {what} has an unknown type")
    strict_json.expect_keys(value, f"signedIdentity of the {what}", ("type", *fields))
    texts = [strict_json.text_of(value[name], f"{name} of the {what}") for name in fields]
    if fields and fields[0].startswith("docker") and _parse(texts[0]) is None:
        raise FormatError(f"the {fields[0]} of the {what} is no reference")
    return IdentityRule(value["type"], *texts)


def _parse(text: str) -> Reference | None:
    try:
        return parse_reference(f"docker://{text}")
    except UsageError:
        return None


def _is_versioned(text: str) -> bool:
    """Tell whether a name has a tag or digest: parsing adds ``latest`` where there is none."""
    return ":" in text.rpartition("/")[2] or "@" in text
