"""The command line ``lamina``: a frame that knows the verbs by name, and one module a verb,
imported on demand.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; ``arguments`` defaults to those of the
    process.
    """
    import sys

    from lamina.cli.frame import run_command

    return run_command(sys.argv[1:] if arguments is None else list(arguments))
