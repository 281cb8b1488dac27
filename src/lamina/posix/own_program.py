"""Modules of ours as programs, from wherever we stand."""

from __future__ import annotations

import sys

OPTIONS: tuple[str, ...] = ("-P",)
"""Python else looks for every module, its own among them, in the working folder first, which may be
anybody's.  Tests whose modules are found no other way do without.
"""


def own_program(module: str, *arguments: object) -> list[str]:
    """Return the command that runs a module of ours with arguments."""
    return [sys.executable, *OPTIONS, "-m", module, *map(str, arguments)]
