"""The command line ``lamina``: a frame that knows the verbs by name, and one module a verb,
imported on demand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; ``arguments`` defaults to those of the
    process.
    """
    import sys

    from lamina.cli.dispatch import run_command

    return run_command(sys.argv[1:] if arguments is None else list(arguments))


def entry() -> NoReturn:
    """Run the command line as a process of its own: never returns.

    Everything is closed by now and the threads have ended.  The interpreter's teardown, which
    frees object by object, took 20-40 ms of a ``run`` and 5 % of a ``convert``; so it is left out.
    """
    import contextlib
    import os
    import sys

    try:
        from lamina.cli.streams import prepare_streams

        prepare_streams()
        code = main()
    except KeyboardInterrupt:
        # While modules are imported; from then on the frame takes it.
        code = 128 + 2
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
