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
from lamina.registry.reference import is_digest
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
_RELEASE: Final = "release"
_MAX_RELEASE: Final = 1 << 53


class Claims(NamedTuple):
    """What an attested guest says it wants a key for: the digest of the manifest that it verified,
    "" if there is none, and the release in its signature.

    They go into the query of the request, which trustee's policies see as ``data.query``.
    """

    image_digest: str = ""
    release: int | None = None

    def query(self) -> str:
        """The query, with its question mark; "" if nothing is claimed."""
        pairs = [(_IMAGE, self.image_digest)] if self.image_digest else []
        if self.release is not None:
            pairs.append((_RELEASE, str(self.release)))
        return f"?{urlencode(pairs)}" if pairs else ""


NO_CLAIMS: Final = Claims()


def parse_claims(query: str) -> Claims:
    """The claims of a query.  Raises FormatError for anything else in it."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=4)
    except ValueError:
        pairs = [("", "")] if query else []
    fields = dict(pairs)
    if len(fields) != len(pairs) or fields.keys() - {_IMAGE, _RELEASE}:
        raise FormatError("the query of the request has something else than claims")
    digest, release = fields.get(_IMAGE, ""), fields.get(_RELEASE)
    if digest and not is_digest(digest):
        raise FormatError("the image digest that the request claims is none")
    if release is None:
        return Claims(digest)
    if not (release.isascii() and release.isdecimal()) or int(release[:17]) >= _MAX_RELEASE:
        raise FormatError("the release that the request claims is no number")
    return Claims(digest, int(release))


def report_digest(runtime: dict[str, Any], algorithm: str, additional: str = "") -> bytes:
    """The digest that evidence has to have in its report data: of nonce, key of the guest and
    additional evidence, as canonical JSON (RFC 8785 for strings: sorted keys, no spaces).
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
    """The body of a refusal."""
    return strict_json.compact({"type": PROBLEM + problem.name, "detail": problem.detail})


def read_problem(body: bytes) -> Problem:
    """The problem that a body states; nothing that is no problem document raises."""
    try:
        document = strict_json.parse_object(body, "refusal of the key broker", MAX_BODY_BYTES)
    except FormatError:
        return Problem("", "")
    name, detail = (str(document.get(member, "")) for member in ("type", "detail"))
    name = name.removeprefix(PROBLEM)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        name = ""
    return Problem(name, "".join(c if c.isprintable() else "?" for c in detail[:300]))
