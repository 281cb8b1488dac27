"""The exit codes of the command line, gathered from the families of errors."""

from __future__ import annotations

from typing import Final, NamedTuple

from lamina import errors

INTERNAL: Final = 70
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
TERMINATED: Final = 143


class ExitCode(NamedTuple):
    """A code, the name of its error (empty for what is no error of Lamina's) and its meaning."""

    code: int
    error: str
    meaning: str


def exit_codes() -> list[ExitCode]:
    """Return all codes that every verb shares, ascending."""
    families = [errors.Error, *(item for item in vars(errors).values() if _is_family(item))]
    table = [ExitCode(0, "", "Success.")]
    table += [ExitCode(family.exit_code, family.__name__, _meaning(family)) for family in families]
    table += [
        ExitCode(INTERNAL, "", "A defect of Lamina itself; with -v the traceback is shown."),
        ExitCode(INTERRUPTED, "", "Interrupted from the keyboard (SIGINT)."),
        ExitCode(BROKEN_PIPE, "", "The reader of standard output went away (SIGPIPE)."),
        ExitCode(TERMINATED, "", "Told to end (SIGTERM)."),
    ]
    return sorted(table)


def _is_family(item: object) -> bool:
    return isinstance(item, type) and issubclass(item, errors.Error) and item is not errors.Error


def _meaning(family: type[errors.Error]) -> str:
    if family is errors.Error:
        return "Anything else that went wrong."
    first = (family.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(first.replace("``", "`").split())
