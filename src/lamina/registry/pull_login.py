"""The login that an image was pulled with, asked of the process that saw the pull.

It listens at a socket that only its own user can reach.  The question is ``REGISTRY/REPOSITORY``
and the end of it; the answer is a JSON object, or nothing if there is no login.
"""

from __future__ import annotations

import socket
from typing import Final

import msgspec

MAX_BYTES: Final = 1 << 20
"""Of an answer; tokens of identity providers are a few kilobytes."""
ASK_S: Final = 5.0


class PullLogin(msgspec.Struct, frozen=True):
    """A user's name with a password; of an identity token the name is ``<token>``."""

    username: str
    password: str

    def __repr__(self) -> str:
        return f"PullLogin({self.username!r})"


def ask_login(path: str, image: str) -> PullLogin | None:
    """Return the login for ``REGISTRY/REPOSITORY``; None if there is none, or nobody to ask."""
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.settimeout(ASK_S)
            end.connect(path)
            end.sendall(image.encode())
            end.shutdown(socket.SHUT_WR)
            while (data := end.recv(1 << 16)) and len(answer) <= MAX_BYTES:
                answer += data
        return msgspec.json.decode(answer, type=PullLogin) if answer else None
    except (OSError, msgspec.MsgspecError, UnicodeError):
        # The process is being replaced; what it knew is gone with it.
        return None
    finally:
        answer[:] = bytes(len(answer))
