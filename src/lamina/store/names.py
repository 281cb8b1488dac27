"""What things are kept under."""

from __future__ import annotations

import hashlib

from lamina.errors import FormatError
from lamina.oci.reference import is_digest


def split_digest(digest: str) -> tuple[str, str]:
    """Return (algorithm, hex digits), both of them safe in a path; raises FormatError."""
    if not is_digest(digest):
        raise FormatError(f"{digest!r} is not a sha256 or sha512 digest")
    algorithm, _, hex_digits = digest.partition(":")
    return algorithm, hex_digits


def digest_of_file(name: str) -> str | None:
    """Return the digest that ``ALGORITHM-HEX`` stands for, None for another name."""
    digest = name.replace("-", ":", 1)
    return digest if is_digest(digest) else None


def name_digest(name: str) -> str:
    """Return what a record about something that has a name and no digest is kept under."""
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
