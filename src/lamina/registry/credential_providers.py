"""Programs that a kubelet asks for the credentials of an image, asked in the same way.

A file names them, with the images that each is for; the image is told on standard input, and the
answer says for which images and how long it may be kept.  It is kept in memory alone.  Sources:
Kubernetes, "Configure a kubelet image credential provider"; ``CredentialProviderConfig`` of
kubelet.config.k8s.io/v1, ``CredentialProviderRequest`` of credentialprovider.kubelet.k8s.io/v1.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

import msgspec

from lamina.errors import UnsupportedError, UsageError
from lamina.registry.local import read_small_file

LOG: Final = logging.getLogger("lamina")

_KIND: Final = "credentialprovider.kubelet.k8s.io"
_MAX_FILE_BYTES: Final = 4 << 20
_MAX_ANSWER_BYTES: Final = 1 << 20
_ANSWER_S: Final = 60
_UNITS_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|m|s|us|µs|ns)")
_GLOBAL: Final = "*"


class _Variable(msgspec.Struct):
    name: str
    value: str


class _Provider(msgspec.Struct, rename="camel"):
    name: str
    match_images: list[str]
    default_cache_duration: str
    api_version: str
    args: list[str] | None = None
    env: list[_Variable] | None = None
    token_attributes: Any = None


class _Config(msgspec.Struct):
    kind: str
    providers: list[_Provider]


class Login(msgspec.Struct, frozen=True):
    """What a program says of images: a user's name and password."""

    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Login({self.username!r})"


class _Answer(msgspec.Struct, rename="camel"):
    cache_key_type: str
    cache_duration: str | None = None
    auth: dict[str, Login] | None = None


class _Kept(NamedTuple):
    until_s: float
    logins: Mapping[str, Login]


class CredentialProviders:
    """The programs of a configuration.  Threads share it."""

    def __init__(
        self, config: str, folder: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the configuration; the programs are in a folder.

        Raises UsageError if it cannot be used, and UnsupportedError for YAML where PyYAML is not
        installed.
        """
        self._providers = _read(config)
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], _Kept] = {}
        for each in self._providers:
            if not os.access(os.path.join(folder, each.name), os.X_OK):
                raise UsageError(
                    f"the credential provider {each.name} is not in {folder}",
                    hint="name its folder with --image-credential-provider-bin-dir",
                )

    def find(self, image: str, refused: Login | None = None) -> Login | None:
        """Return the login for an image, ``REGISTRY/REPOSITORY``; None if no program has one.

        One that a registry *refused* is not taken from memory.
        """
        for provider in self._providers:
            if any(_fits(pattern, image) for pattern in provider.match_images):
                found = self._of(provider, image, refused)
                if found is not None:
                    return found
        return None

    def _of(self, provider: _Provider, image: str, refused: Login | None) -> Login | None:
        registry = image.partition("/")[0]
        with self._lock:
            for place in (image, registry, _GLOBAL):
                kept = self._kept.get((provider.name, place))
                if kept is not None and self._clock() < kept.until_s:
                    found = _choose(kept.logins, image)
                    if found is None or found != refused:
                        return found
                    del self._kept[provider.name, place]
        asked_s = self._clock()
        answer = _ask(provider, os.path.join(self._folder, provider.name), image)
        if answer is None:
            return None
        keys = {"Image": image, "Registry": registry, "Global": _GLOBAL}
        key = keys.get(answer.cache_key_type)
        text = answer.cache_duration or provider.default_cache_duration
        lasts_s = 0.0 if key is None else duration_s(text)
        logins = answer.auth or {}
        with self._lock:
            now_s = self._clock()
            self._kept = {k: each for k, each in self._kept.items() if now_s < each.until_s}
            if key is not None and lasts_s > 0:
                self._kept[provider.name, key] = _Kept(asked_s + lasts_s, logins)
        return _choose(logins, image)


@functools.lru_cache(maxsize=4)
def providers_of(config: str, folder: str) -> CredentialProviders:
    """Return the programs of a configuration, the same for all who ask in this process."""
    return CredentialProviders(config, folder)


def duration_s(text: str) -> float:
    """Return a duration as Go writes it (``1h30m``) in seconds.  Raises UsageError."""
    if text == "0":
        return 0.0
    if not re.fullmatch(f"(?:{_DURATION.pattern})+", text):
        raise UsageError(f"{text!r:.40} is no duration, as 12h or 1m30s")
    return sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION.findall(text))


def _read(path: str) -> list[_Provider]:
    what = f"the configuration of credential providers {path}"
    data = read_small_file(path, _MAX_FILE_BYTES)
    try:
        if data.lstrip().startswith(b"{"):
            config = msgspec.json.decode(data, type=_Config)
        else:
            config = msgspec.yaml.decode(data, type=_Config)
    except ImportError as error:
        raise UnsupportedError(
            f"{what} is YAML, which needs the package 'pyyaml'",
            hint="pip install 'lamina[containerd]', or write it as JSON",
        ) from error
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UsageError(f"{what} cannot be used: {error}") from error
    if config.kind != "CredentialProviderConfig":
        raise UsageError(f"{what} is a {config.kind:.80}")
    for each in config.providers:
        duration_s(each.default_cache_duration)
        if "/" in each.name or each.name in ("", ".", ".."):
            raise UsageError(f"{what} has a provider whose name is no file: {each.name!r:.80}")
        if each.api_version not in (f"{_KIND}/v1", f"{_KIND}/v1beta1", f"{_KIND}/v1alpha1"):
            raise UsageError(f"{what} has a provider of the version {each.api_version:.80}")
        if each.token_attributes is not None:
            raise UnsupportedError(
                f"the credential provider {each.name} wants tokens of pods, as a kubelet has",
                hint="leave tokenAttributes out in a file for lamina",
            )
    return config.providers


def _ask(provider: _Provider, program: str, image: str) -> _Answer | None:
    """Ask a program; None if it gives no answer, which is logged without what it said: that may
    have secrets in it.
    """
    request = {
        "kind": "CredentialProviderRequest",
        "apiVersion": provider.api_version,
        "image": image,
    }
    variables = {each.name: each.value for each in provider.env or ()}
    try:
        done = subprocess.run(
            [program, *(provider.args or ())],
            input=msgspec.json.encode(request),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **variables},
            timeout=_ANSWER_S,
            check=False,
        )
        if done.returncode or len(done.stdout) > _MAX_ANSWER_BYTES:
            LOG.warning("the credential provider %s ended with %d", provider.name, done.returncode)
            return None
        answer = msgspec.json.decode(done.stdout, type=_Answer)
        duration_s(answer.cache_duration or "0")
    except (OSError, subprocess.TimeoutExpired) as error:
        LOG.warning("the credential provider %s cannot be asked: %s", provider.name, type(error))
        return None
    except (msgspec.MsgspecError, UnicodeError, RecursionError, UsageError):
        LOG.warning("the credential provider %s gives a malformed answer", provider.name)
        return None
    return answer


def _choose(logins: Mapping[str, Login], image: str) -> Login | None:
    """Return the login whose pattern fits, the last by name, which is the most exact one."""
    fitting = (logins[pattern] for pattern in sorted(logins, reverse=True) if _fits(pattern, image))
    return next(fitting, None)


def _fits(pattern: str, image: str) -> bool:
    """Tell whether a pattern of images fits: as many parts of the host, each by shell rules, the
    same port, and a path that begins like its own.
    """
    pattern = re.sub("^https?://", "", pattern)
    wanted, _, prefix = pattern.partition("/")
    host, _, path = image.partition("/")
    (wanted, _, wanted_port), (host, _, port) = wanted.partition(":"), host.partition(":")
    parts, wanted_parts = host.split("."), wanted.split(".")
    return (
        port == wanted_port
        and len(parts) == len(wanted_parts)
        and all(map(fnmatchcase, parts, wanted_parts))
        and path.startswith(prefix)
    )
