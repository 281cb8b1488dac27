"""How to talk to registries, from plain keywords."""

from __future__ import annotations

import os
from dataclasses import replace

from lamina.errors import UsageError
from lamina.http.client_options import ClientOptions


def client_options(
    options: ClientOptions | None,
    *,
    username: str | None = None,
    password: str | None = None,
    authfile: str | os.PathLike[str] | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    plain_http: bool | None = None,
) -> ClientOptions:
    """Return *options* with what the keywords say in their places.

    Raises UsageError for one of user name and password without the other.
    """
    if (username is None) != (password is None):
        raise UsageError(
            "a user name and a password belong together",
            hint="give both username= and password=, or authfile=",
        )
    given = {
        "username": username,
        "password": password,
        "authfile": None if authfile is None else os.fspath(authfile),
        "ca_file": None if ca_file is None else os.fspath(ca_file),
        "plain_http": plain_http,
    }
    said = {name: value for name, value in given.items() if value is not None}
    return replace(options or ClientOptions(), **said)  # type: ignore[arg-type]
