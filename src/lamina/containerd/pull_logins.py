"""The logins that images were pulled with: in memory, for their own repositories, for a time.

A login goes when the last image that was pulled with it is removed, when it is old, or when there
are too many.  The mount service has its own copy for each mount, and asks here for a newer one when
a registry refuses that (:mod:`lamina.registry.pull_login`).
"""

from __future__ import annotations

import base64
import contextlib
import gc
import logging
import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import msgspec

from lamina.errors import StoreError, UsageError
from lamina.http.client_options import ClientOptions
from lamina.oci.reference import DEFAULT_REGISTRY, parse_reference
from lamina.registry.pull_login import ASK_S, PullLogin
from lamina.trust.crypto.secret import Secret

LOG: Final = logging.getLogger("lamina")

MOST: Final = 1024
"""A node has about a hundred pods."""
AGE_S: Final = 12 * 3600.0
"""As long as clouds' logins hold; a pull begins it anew."""
_HUB_HOSTS: Final = ("docker.io", "index.docker.io", "registry-1.docker.io")
_MAX_QUESTION_BYTES: Final = 4096


class _Kept:
    """A login, and the images (names and what containerd calls them) that were pulled with it."""

    def __init__(self, login: PullLogin, until_s: float) -> None:
        self.secret = Secret(msgspec.json.encode(login))
        self.until_s = until_s
        self.images: dict[str, str] = {}


class PullLogins:
    """See the module.  Threads share it."""

    def __init__(self, socket_path: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Answer at ``socket_path``, once that is asked for."""
        self.socket = socket_path
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    @contextlib.contextmanager
    def pulling(self, image: str, login: PullLogin) -> Iterator[list[str]]:
        """Have a login for a pull that runs meanwhile.  It stays if what containerd calls the image
        is put into the list; else the one before counts again.
        """
        key = place_of(image)
        names: list[str] = []
        kept = _Kept(login, self._clock() + AGE_S)
        with self._lock:
            before = self._kept.pop(key, None)
            if before is not None:
                kept.images.update(before.images)
            self._kept[key] = kept
        try:
            yield names
        finally:
            with self._lock:
                current = self._kept.get(key)
                if names and current is not None:
                    current.images[image] = names[0]
                elif current is kept:
                    del self._kept[key]
                    if before is not None:
                        self._kept[key], before = before, None
                if not names or current is not kept:
                    kept.secret.close()
                if before is not None:
                    before.secret.close()
                self._drop_old()

    def forget(self, image: str) -> None:
        """Drop what an image was pulled with, by its name or by what containerd calls it."""
        with self._lock:
            for key, kept in list(self._kept.items()):
                known = len(kept.images)
                for name, reference in list(kept.images.items()):
                    if image in (name, reference):
                        del kept.images[name]
                if known and not kept.images:
                    self._kept.pop(key).secret.close()
        # Messages and requests in cycles have copies.
        gc.collect()

    def find(self, place: str) -> bytes:
        """Return the login for ``REGISTRY/REPOSITORY`` as JSON; nothing if there is none."""
        with self._lock:
            self._drop_old()
            kept = self._kept.get(place)
            return b"" if kept is None else kept.secret.reveal()

    def client(self, client: ClientOptions, place: str) -> ClientOptions:
        """Return how ``REGISTRY/REPOSITORY`` is asked with the login of its pull."""
        client = replace(client, login_socket=self.socket)
        data = self.find(place)
        if not data:
            return client
        login = msgspec.json.decode(data, type=PullLogin)
        return replace(client, username=login.username, password=login.password)

    def _drop_old(self) -> None:
        now_s = self._clock()
        for key, kept in list(self._kept.items()):
            if kept.until_s <= now_s or len(self._kept) > MOST:
                self._kept.pop(key).secret.close()

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Answer at the socket meanwhile.  Raises StoreError."""
        listener = socket.socket(socket.AF_UNIX)
        with contextlib.closing(listener):
            mask = os.umask(0o177)
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.socket)
                listener.bind(self.socket)
                listener.listen()
            except OSError as error:
                raise StoreError(f"cannot listen at {self.socket}: {error.strerror}") from error
            finally:
                os.umask(mask)
            threading.Thread(target=self._answer_all, args=(listener,), daemon=True).start()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)

    def _answer_all(self, listener: socket.socket) -> None:
        while True:
            try:
                end, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), end:
                end.settimeout(ASK_S)
                question = bytearray()
                while (data := end.recv(_MAX_QUESTION_BYTES)) and (
                    len(question) <= _MAX_QUESTION_BYTES
                ):
                    question += data
                end.sendall(self.find(question.decode(errors="replace")))


def place_of(image: str) -> str:
    """Return ``REGISTRY/REPOSITORY`` of an image.  Raises UsageError."""
    reference = parse_reference(image)
    if not reference.is_remote:
        raise UsageError(f"{image!r:.200} is in no registry")
    return f"{reference.registry}/{reference.repository}"


def login_of(auth: Any, image: str) -> PullLogin | None:
    """Return the login in an ``AuthConfig``, None if it has none for the image.

    Raises UsageError for an image without a registry.
    """
    registry = place_of(image).partition("/")[0]
    if auth.server_address:
        host = auth.server_address.partition("://")[2] or auth.server_address
        host = host.partition("/")[0]
        if host not in (_HUB_HOSTS if registry == DEFAULT_REGISTRY else (registry,)):
            return None
    if auth.identity_token:
        return PullLogin("<token>", auth.identity_token)
    if auth.username:
        return PullLogin(auth.username, auth.password)
    if not auth.auth:
        return None
    try:
        pair = base64.b64decode(auth.auth, validate=True).decode()
    except ValueError:
        LOG.warning("the login of the pull of %s is malformed, and not used", image)
        return None
    username, _, password = pair.partition(":")
    return PullLogin(username, password.strip("\0"))
