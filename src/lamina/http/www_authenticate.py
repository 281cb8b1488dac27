"""Parse ``WWW-Authenticate``: which scheme a server wants, and its parameters.  Source: RFC 9110
§11.6.1.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_MAX_HEADER: Final = 16 << 10
_MAX_CHALLENGES: Final = 8
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME: Final = re.compile(rf"[ \t,]*({_WORD})(?:[ \t]+|[ \t]*(?=,|\Z))")
_PARAMETER: Final = re.compile(
    rf'[ \t,]*({_WORD})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))[ \t]*(?=,|\Z)', re.DOTALL
)
_TOKEN68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|\Z)")
_QUOTED_PAIR: Final = re.compile(r"\\(.)", re.DOTALL)


class Challenge(NamedTuple):
    """One scheme (lower case) with its parameters (names in lower case)."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """Return the challenges of a header, in order; what cannot be understood ends the list and is
    not an error.
    """
    challenges: list[Challenge] = []
    if len(header) > _MAX_HEADER:
        return challenges
    position = 0
    while len(challenges) < _MAX_CHALLENGES:
        scheme = _SCHEME.match(header, position)
        if scheme is None:
            break
        position = scheme.end()
        parameters: dict[str, str] = {}
        token68 = _TOKEN68.match(header, position)
        if token68 is not None and _PARAMETER.match(header, position) is None:
            position = token68.end()
        while (found := _PARAMETER.match(header, position)) is not None:
            position = found.end()
            quoted, plain = found[2], found[3]
            value = plain if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted)
            parameters.setdefault(found[1].lower(), value)
        challenges.append(Challenge(scheme[1].lower(), parameters))
    return challenges
