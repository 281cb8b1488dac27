"""What guests ask the cache: the reading half of the OCI distribution API, as mirrors answer it.

``GET`` and ``HEAD`` of ``/v2/NAME/manifests/VERSION``, ``/v2/NAME/blobs/DIGEST`` with ranges, and
``/v2/NAME/referrers/DIGEST``; ``?ns=REGISTRY`` says whose repository is meant (containerd,
``docs/hosts.md``).  Sources: OCI distribution specification 1.1; RFC 9110 §14 for ranges.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import parse_qs

import msgspec

from lamina.errors import (
    AuthError,
    Error,
    FetchError,
    IntegrityError,
    NotFoundError,
    UsageError,
)
from lamina.source.retry import DeadlineError

_PATH: Final = re.compile(
    r"/v2/([a-z0-9][a-z0-9._/-]{0,254})/(manifests|blobs|referrers)/([A-Za-z0-9_][\w.:-]{0,254})",
    re.ASCII,
)
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_STATUSES: Final[tuple[tuple[type[Error], int, str], ...]] = (
    (UsageError, 400, "NAME_INVALID"),
    (NotFoundError, 404, "BLOB_UNKNOWN"),
    (AuthError, 403, "DENIED"),
    (DeadlineError, 504, "UNAVAILABLE"),
    # Not 502, after which clients ask again: the registry will send the same bytes.
    (IntegrityError, 422, "DIGEST_INVALID"),
    (FetchError, 502, "UNAVAILABLE"),
)


class Question(NamedTuple):
    """A request, parsed."""

    registry: str | None
    name: str
    kind: str
    which: str


def parse_target(target: str) -> Question | None:
    """Return what a request target asks for, None if it is nothing that there is."""
    path, _, query = target.partition("?")
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    try:
        registries = parse_qs(query, max_num_fields=8).get("ns")
    except ValueError:
        return None
    return Question(registries[0] if registries else None, *match.groups())


class RangeError(Error):
    """A range that lies outside of a blob."""


def parse_range(text: str | None, size_bytes: int) -> tuple[int, int] | None:
    """Return (start, stop) of a ``Range`` header; None for all of it, as for several ranges and
    other units, which a server may ignore.

    Raises RangeError for one that has nothing of the blob in it.
    """
    match = _RANGE.fullmatch(text.replace(" ", "")) if text else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(size_bytes - int(last), 0), size_bytes
    else:
        start, stop = int(first), min(int(last) + 1, size_bytes) if last else size_bytes
        if last and int(last) < start:
            return None
    if start >= stop:
        raise RangeError(f"there are {size_bytes} bytes only")
    return start, stop


class Refusal(NamedTuple):
    """An answer that is an error."""

    status: int
    body: bytes


def refusal(error: Error) -> Refusal:
    """Return how an error is told, with nothing in it that only the host is to know."""
    for kind, status, code in _STATUSES:
        if isinstance(error, kind):
            return refuse(status, code, str(error))
    return refuse(500, "UNKNOWN", "the cache has a problem of its own")


def refuse(status: int, code: str, message: str) -> Refusal:
    """Return an error in the form of the specification."""
    document = {"errors": [{"code": code, "message": message[:300]}]}
    return Refusal(status, msgspec.json.encode(document))
