"""Start profiles as files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from lamina.build.start_profile import Profile


def write_profile(path: str, profile: Profile) -> None:
    """Write a profile.  Raises UsageError if the file cannot be written."""
    from lamina.build.start_profile import encode_profile

    try:
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(encode_profile(profile))
    except OSError as error:
        raise UsageError(f"cannot write the profile to {path}: {error.strerror}") from error


def read_profile(path: str) -> Profile:
    """Read a profile.  Raises NotFoundError if the file cannot be read, FormatError if it is no
    profile.
    """
    from lamina.build.start_profile import decode_profile

    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return decode_profile(file.read())
    except OSError as error:
        raise NotFoundError(f"cannot read the profile {path}: {error.strerror}") from error
