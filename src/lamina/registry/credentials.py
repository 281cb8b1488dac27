"""Credentials of a registry: given ones, docker's and containers' files, credential helpers.

Files in the order they are asked: ``--authfile`` or ``REGISTRY_AUTH_FILE`` (alone, if set),
``$XDG_RUNTIME_DIR/containers/auth.json`` (``/run/containers/$UID/auth.json`` without it),
``$XDG_CONFIG_HOME/containers/auth.json``, ``$DOCKER_CONFIG/config.json`` or
``~/.docker/config.json``. Sources: containers-auth.json(5), docker's configuration reference,
docker-credential-helpers.  Programs of a kubelet come last.
"""

from __future__ import annotations

import os
import re
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from lamina.errors import AuthError, Error, NotFoundError, UsageError
from lamina.http.client_options import ClientOptions
from lamina.oci.reference import DEFAULT_REGISTRY
from lamina.registry.local import read_small_file

_MAX_FILE_BYTES: Final = 4 << 20
_HELPER_TIMEOUT_S: Final = 30
_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_KEYS: Final = ("https://index.docker.io/v1/", "index.docker.io", "docker.io")
_NO_CREDENTIALS: Final = b"credentials not found in native keychain"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name with a password, or an identity token (OAuth2 refresh token)."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


class _AuthEntry(msgspec.Struct, rename="lower"):
    auth: str = ""
    username: str = ""
    password: str = ""
    identity_token: str = msgspec.field(name="identitytoken", default="")


class _AuthFile(msgspec.Struct, rename="camel"):
    auths: dict[str, _AuthEntry | None] | None = None
    creds_store: str | None = None
    cred_helpers: dict[str, str] | None = None


class _HelperAnswer(msgspec.Struct, rename="pascal"):
    username: str = ""
    secret: str = ""


def find_credentials(
    registry: str,
    repository: str,
    options: ClientOptions | None = None,
    refused: Credentials | None = None,
) -> Credentials | None:
    """Return the credentials for a repository; None if there are none.

    A kubelet's programs, which are asked for what no file has, are asked anew for those that were
    *refused*.  Raises UsageError for a file that cannot be used, AuthError for a helper that
    fails.  No message has a secret.
    """
    options = options or ClientOptions()
    if options.login_socket is not None:
        found = _of_pull(options, f"{registry}/{repository}", refused)
        if found is not None:
            return found
    elif options.username is not None:
        return Credentials(options.username, options.password or "")
    explicit = options.authfile or os.environ.get("REGISTRY_AUTH_FILE")
    if explicit and not os.path.exists(explicit):
        raise UsageError(f"there is no credentials file {explicit}", hint="check --authfile")
    for path in [explicit] if explicit else _default_files():
        found = _from_file(path, registry, repository)
        if found is not None:
            return found
    if options.credential_providers is None:
        return None
    from lamina.registry.credential_providers import Login, providers_of

    old = None if refused is None else Login(refused.username, refused.password)
    login = providers_of(*options.credential_providers).find(f"{registry}/{repository}", old)
    return None if login is None else Credentials(login.username, login.password)


def _of_pull(options: ClientOptions, image: str, refused: Credentials | None) -> Credentials | None:
    """Return the login that an image was pulled with, a newer one if that was refused."""
    if refused is None and options.username is not None:
        return _token_or_pair(options.username, options.password or "")
    from lamina.registry.pull_login import ask_login

    login = ask_login(options.login_socket or "", image)
    found = None if login is None else _token_or_pair(login.username, login.password)
    return None if found == refused else found


def _default_files() -> Iterator[str]:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    yield (
        f"{runtime}/containers/auth.json" if runtime else f"/run/containers/{os.getuid()}/auth.json"
    )
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    yield f"{config}/containers/auth.json"
    docker = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    yield f"{docker}/config.json"


def _from_file(path: str, registry: str, repository: str) -> Credentials | None:
    try:
        data = read_small_file(path, _MAX_FILE_BYTES)
    except NotFoundError:
        return None
    except Error as error:
        raise UsageError(
            f"the credentials file cannot be used: {error}", hint="check it, or name another one"
        ) from None
    try:
        file = msgspec.json.decode(data, type=_AuthFile)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        # The decoder's message may quote the file.
        raise UsageError(f"the credentials file {path} is malformed") from None
    hosts = _HUB_KEYS if registry == DEFAULT_REGISTRY else (registry,)
    for host in hosts:
        helper = (file.cred_helpers or {}).get(host)
        if helper:
            return _ask_helper(helper, host)
    auths = {_normalised(key): entry for key, entry in (file.auths or {}).items()}
    for key in _keys(hosts, repository):
        entry = auths.get(key)
        credentials = _from_entry(entry, path) if entry is not None else None
        if credentials is not None:
            return credentials
    if file.creds_store:
        return _ask_helper(file.creds_store, hosts[0])
    return None


def _keys(hosts: tuple[str, ...], repository: str) -> Iterator[str]:
    """Yield the most special key first: HOST/NAME/SPACE, HOST/NAME, HOST."""
    for host in dict.fromkeys(_normalised(host) for host in hosts):
        path = repository
        while path:
            yield f"{host}/{path}"
            path = path.rpartition("/")[0]
        yield host


def _normalised(key: str) -> str:
    """Docker's old keys are URLs, ``https://HOST/v1/``."""
    plain = key.removeprefix("https://").removeprefix("http://")
    for suffix in ("/v1/", "/v2/", "/v1", "/v2", "/"):
        plain = plain.removesuffix(suffix)
    return plain


def _from_entry(entry: _AuthEntry, path: str) -> Credentials | None:
    if entry.identity_token:
        return Credentials(entry.username, identity_token=entry.identity_token)
    if entry.auth:
        try:
            pair = b64decode(entry.auth, validate=True).rstrip(b"\0").decode()
        except ValueError:
            raise UsageError(
                f"the credentials file {path} has an entry that is not base64"
            ) from None
        username, colon, password = pair.partition(":")
        if not colon:
            raise UsageError(f"the credentials file {path} has an entry without a password")
        return _token_or_pair(username, password)
    if entry.username:
        return Credentials(entry.username, entry.password)
    return None


def _token_or_pair(username: str, secret: str) -> Credentials:
    if username == "<token>":
        return Credentials(identity_token=secret)
    return Credentials(username, secret)


def _ask_helper(helper: str, host: str) -> Credentials | None:
    """``docker-credential-HELPER get`` with the host on its standard input."""
    import subprocess

    program = f"docker-credential-{helper}"
    if not _HELPER_NAME.fullmatch(helper):
        raise UsageError("the credentials file names a helper with a malformed name")
    try:
        done = subprocess.run(
            [program, "get"],
            input=host.encode(),
            capture_output=True,
            timeout=_HELPER_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise AuthError(
            f"the credential helper {program} is not installed",
            hint="install it, or remove it from the credentials file",
        ) from None
    except (OSError, subprocess.TimeoutExpired):
        raise AuthError(f"the credential helper {program} does not run or does not end") from None
    if done.returncode != 0:
        # A helper says on its output, not by its code, that it simply has none.
        if _NO_CREDENTIALS in done.stdout or _NO_CREDENTIALS in done.stderr:
            return None
        raise AuthError(f"the credential helper {program} failed with code {done.returncode}")
    return _parse_answer(done.stdout, program)


def _parse_answer(output: bytes, program: str) -> Credentials | None:
    try:
        answer = msgspec.json.decode(output[:_MAX_FILE_BYTES], type=_HelperAnswer)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise AuthError(f"the credential helper {program} gave a malformed answer") from None
    return _token_or_pair(answer.username, answer.secret) if answer.secret else None
