"""The error of a registry that may do better later, apart from the clients that raise it."""

from __future__ import annotations

from lamina.errors import FetchError


class TransientError(FetchError):
    """A failure that may pass: connection refused or broken, time-out, overloaded server.

    ``is_answer`` says that the server answered at all, with a status that may pass.
    """

    transient = True

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        retry_after_s: float = 0,
        is_answer: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
        self.is_answer = is_answer
