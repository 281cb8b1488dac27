"""Init-data: what a confidential guest was started with beside its image, and its digest.

A TOML document with ``version``, ``algorithm`` and a table ``data`` of texts.  Whoever starts the
guest puts the digest of the whole text into a field that the CPU reports: ``host_data`` of SNP,
``mr_config_id`` of TDX; it is cut, or filled with zeros, to the size of the field.
Source: confidential-containers, ``kbs/docs/initdata.md`` of trustee, version 0.1.0.
"""

from __future__ import annotations

import hashlib
import tomllib
from typing import Final, NamedTuple, Self

from lamina.errors import FormatError, NotFoundError, UsageError

VERSION: Final = "0.1.0"
FORMAT: Final = "toml"
ALGORITHMS: Final = ("sha256", "sha384", "sha512")
MAX_BYTES: Final = 128 << 10


class InitData(NamedTuple):
    """A document that was parsed once; ``text`` is what is sent and hashed, byte for byte."""

    text: str
    algorithm: str

    @classmethod
    def parse(cls, text: str, what: str) -> Self:
        """Parse init-data (TOML); raises FormatError for anything else."""
        if len(text.encode("utf-8", "replace")) > MAX_BYTES:
            raise FormatError(f"the {what} has more than {MAX_BYTES} bytes")
        try:
            document = tomllib.loads(text)
        except (ValueError, RecursionError):
            # The cause may quote the document, which can have credentials in it.
            raise FormatError(f"the {what} is no TOML") from None
        if document.get("version") != VERSION:
            raise FormatError(f"the {what} is not of version {VERSION}")
        algorithm, data = document.get("algorithm"), document.get("data")
        if algorithm not in ALGORITHMS:
            raise FormatError(f"the {what} names none of the algorithms {', '.join(ALGORITHMS)}")
        if not isinstance(data, dict) or not all(isinstance(v, str) for v in data.values()):
            raise FormatError(f"the {what} has no table 'data' of texts")
        return cls(text, algorithm)

    def digest(self) -> bytes:
        """Return the digest of the whole text."""
        return hashlib.new(self.algorithm, self.text.encode("utf-8")).digest()

    def encode(self) -> dict[str, str]:
        """Return the member ``init-data`` of an attestation."""
        return {"format": FORMAT, "body": self.text}


def read_init_data(path: str) -> InitData:
    """Return the init-data in a file.  Raises NotFoundError, UsageError, FormatError."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(f"there is no init-data file {path}") from None
    except OSError as error:
        raise UsageError(f"cannot read the init-data file {path}: {error.strerror}") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(
            f"the init-data in {path} is no text",
            hint="give the TOML document itself, not its gzip or base64 form",
        ) from None
    return InitData.parse(text, f"init-data in {path}")


def fitted(digest: bytes, size_bytes: int) -> bytes:
    """Return a digest as it stands in a field of the CPU's report: cut, or with zeros after it."""
    return digest[:size_bytes].ljust(size_bytes, b"\0")
