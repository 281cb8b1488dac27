"""The program that is the service, which starts its successors as itself."""

from __future__ import annotations

from lamina.posix.own_program import own_program

MODULE = "lamina.serve.service"
"""What is run; tests that have images of their own put a module of theirs here."""


def service_command(*arguments: object) -> list[str]:
    """Return the command that starts the service with arguments."""
    return own_program(MODULE, *arguments)
