"""What client and broker of the KBS protocol share: names, bounds, report data, problem documents.

Source: trustee, ``kbs/docs/kbs_attestation_protocol.md``, as its version 0.4.0 is spoken on the
wire.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode

from lamina.errors import FormatError
from lamina.oci.reference import is_digest
from lamina.trust import strict_json

VERSION: Final = "0.4.0"
PREFIX: Final = "/kbs/v0"
SESSION_COOKIE: Final = "kbs-session-id"
PROBLEM: Final = "https://github.com/confidential-containers/kbs/errors/"
KEY_ALGORITHM: Final = "ECDH-ES+A256KW"
HASHES: Final = ("sha384", "sha256", "sha512")
"""Of the report data, the one that is taken if nothing is said first."""
MAX_BODY_BYTES: Final = 256 << 10
MAX_RESOURCE_BYTES: Final = 64 << 10
NONCE_BYTES: Final = 32
_IMAGE: Final = "image-digest"
_SIGNED: Final = "signed"
_RELEASE: Final = "release"
_MAX_RELEASE: Final = 1 << 53
_MAX_RELEASE_DIGITS: Final = len(str(_MAX_RELEASE))
_MAX_SIGNED_BYTES: Final = 256


class Claims(NamedTuple):
    """What an attested guest says it wants a key for: the digest of the manifest that it verified,
    "" if there is none, and the release in its signature.

    They go into the query of the request, which trustee's policies see as ``data.query``, where
    every value is a text.  Rego orders any text above any number, so a release of its own there
    would pass ``data.query.release >= 7`` whatever it is.  It is a number inside JSON instead: what
    does not unpack it finds nothing, and gives no key.
    """

    image_digest: str = ""
    release: int | None = None

    def query(self) -> str:
        """Return the query, with its question mark; "" if nothing is claimed."""
        pairs = [(_IMAGE, self.image_digest)] if self.image_digest else []
        if self.release is not None:
            signed = strict_json.compact({_RELEASE: self.release})
            pairs.append((_SIGNED, signed.decode("ascii")))
        return f"?{urlencode(pairs)}" if pairs else ""


NO_CLAIMS: Final = Claims()


def parse_claims(query: str) -> Claims:
    """Return the claims of a query; a bare ``release`` is read as well.

    Raises FormatError for anything else in it.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=4)
    except ValueError:
        pairs = [("", "")] if query else []
    fields = dict(pairs)
    if len(fields) != len(pairs) or fields.keys() - {_IMAGE, _SIGNED, _RELEASE}:
        raise FormatError("the query of the request has something else than claims")
    digest, release = fields.get(_IMAGE, ""), fields.get(_RELEASE)
    if digest and not is_digest(digest):
        raise FormatError("the image digest that the request claims is none")
    if _SIGNED in fields:
        if release is not None:
            raise FormatError("the request claims two releases")
        return Claims(digest, _signed_release(fields[_SIGNED]))
    if release is None:
        return Claims(digest)
    # Its length first: Python does not convert texts of thousands of digits.
    decimal = release.isascii() and release.isdecimal() and len(release) <= _MAX_RELEASE_DIGITS
    return Claims(digest, _checked_release(int(release) if decimal else None))


def _signed_release(text: str) -> int:
    what = "signed statement that the request claims"
    document = strict_json.parse_object(text, what, _MAX_SIGNED_BYTES)
    return _checked_release(strict_json.expect_keys(document, what, (_RELEASE,))[_RELEASE])


def _checked_release(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX_RELEASE:
        raise FormatError("the release that the request claims is no number")
    return value


def report_digest(runtime: dict[str, Any], algorithm: str, additional: str = "") -> bytes:
    """Return the digest that evidence has to have in its report data: of nonce, key of the guest
    and additional evidence, as canonical JSON (RFC 8785 for strings: sorted keys, no spaces).
    """
    document = {**runtime, "additional-evidence": additional}
    text = json.dumps(document, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    return hashlib.new(algorithm, text.encode("utf-8")).digest()


class Problem(NamedTuple):
    """Why a broker refuses: the last word of the problem's type, and its text.  Unproven words of
    the other side, made safe to print.
    """

    name: str
    detail: str


def encode_problem(problem: Problem) -> bytes:
    """Return the body of a refusal."""
    return strict_json.compact({"type": PROBLEM + problem.name, "detail": problem.detail})


def read_problem(body: bytes) -> Problem:
    """Return the problem that a body states; nothing that is no problem document raises."""
    try:
        document = strict_json.parse_object(body, "refusal of the key broker", MAX_BODY_BYTES)
    except FormatError:
        return Problem("", "")
    name, detail = (str(document.get(member, "")) for member in ("type", "detail"))
    name = name.removeprefix(PROBLEM)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        name = ""
    return Problem(name, "".join(c if c.isprintable() else "?" for c in detail[:300]))
