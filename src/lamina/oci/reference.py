"""Image references as skopeo writes them, and bare names as docker writes them.

What: ``parse_reference`` turns text into a :class:`Reference`, ``str`` turns it back.  No network,
no file is touched. Grammar of names, tags and digests: the OCI distribution specification 1.1
("Pulling manifests") and the reference grammar of CNCF distribution.  Transports:
containers-transports(5).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, NoReturn

from lamina.errors import UsageError

DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
TRANSPORTS: Final = ("docker", "oci", "oci-archive", "docker-archive")

_MAX_TEXT: Final = 8192
_MAX_REPOSITORY: Final = 255
_FOREIGN_TRANSPORTS: Final = (
    "atomic",
    "containers-storage",
    "dir",
    "docker-daemon",
    "ostree",
    "sif",
    "tarball",
)

DIGEST_PATTERN: Final = r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})"
_DIGEST: Final = re.compile(DIGEST_PATTERN)
_DIGEST_SUFFIX: Final = re.compile(rf"@({DIGEST_PATTERN})\Z")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LAYOUT_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:@+/-]{0,254}")
_PATH_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*")
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY: Final = re.compile(
    rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]{{2,45}}\])(?::[0-9]{{1,5}})?"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is: in a registry (``registry``, ``repository``) or under a local ``path``.

    ``tag`` and ``digest`` choose the image in there; with both, the digest decides.  For
    ``docker-archive`` the tag is a whole docker reference (``node:20``).  A local reference with
    neither means "the only image in it".
    """

    transport: str
    registry: str = ""
    repository: str = ""
    path: str = ""
    tag: str | None = None
    digest: str | None = None

    @property
    def is_remote(self) -> bool:
        """True for an image in a registry."""
        return self.transport == "docker"

    @property
    def name(self) -> str:
        """The place without tag and digest: ``docker.io/library/node`` or the path."""
        return f"{self.registry}/{self.repository}" if self.is_remote else self.path

    @property
    def version(self) -> str | None:
        """What to resolve: the digest if there is one, else the tag."""
        return self.digest or self.tag

    def with_version(self, *, tag: str | None = None, digest: str | None = None) -> Reference:
        """Return the same place with another tag and digest."""
        return replace(self, tag=tag, digest=digest)

    def __str__(self) -> str:
        mark = "docker://" if self.is_remote else f"{self.transport}:"
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{mark}{self.name}{tag}{digest}"


def is_digest(text: str) -> bool:
    """Tell whether the text is a well-formed sha256 or sha512 digest."""
    return _DIGEST.fullmatch(text) is not None


def parse_reference(text: str) -> Reference:
    """Parse an image reference; a bare name means ``docker://``.

    Raises UsageError with a hint for everything that is not a reference.
    """
    if len(text) > _MAX_TEXT or not text.isprintable():
        raise UsageError("the image reference is too long or has control characters in it")
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "docker":
        if not rest.startswith("//"):
            # "docker:24" is the image of that name, as every docker user expects.
            return _parse_docker(text, text)
        return _parse_docker(rest[2:], text)
    if colon and scheme in TRANSPORTS:
        return _parse_local(scheme, rest, text)
    if colon and scheme in _FOREIGN_TRANSPORTS:
        raise UsageError(
            f"the transport {scheme!r} of {text!r} is not supported",
            hint=f"known transports: {', '.join(TRANSPORTS)}; `skopeo copy` reaches the others",
        )
    if "://" in text:
        raise UsageError(
            f"{text!r} is a URL, not an image reference",
            hint="write docker://HOST/REPOSITORY:TAG, without http:// or https://",
        )
    if text.startswith(("/", "./", "../", "~")):
        raise UsageError(
            f"{text!r} is a path, not an image reference",
            hint=f"write oci:{text} for an OCI layout folder, oci-archive:{text} for a tar of one",
        )
    return _parse_docker(text, text)


def full_name(tag: str) -> str:
    """Return a docker reference completed: ``node`` is ``docker.io/library/node:latest``."""
    return str(parse_reference(f"docker://{tag}")).removeprefix("docker://")


def _parse_local(transport: str, rest: str, text: str) -> Reference:
    digest = None
    if found := _DIGEST_SUFFIX.search(rest):
        digest = found[1]
        rest = rest[: found.start()]
    path, colon, tag = rest.partition(":")
    if not path:
        _reject(text, "has no path", f"write {transport}:PATH or {transport}:PATH:TAG")
    if path.endswith(("@sha256", "@sha512")):
        _reject(text, "has a malformed digest", "a digest is sha256: and 64 lower-case hex digits")
    if colon and not _LAYOUT_TAG.fullmatch(tag):
        _reject(
            text,
            f"has a malformed tag {tag!r}",
            "the tag starts after the first colon, so the path must not have a colon in it",
        )
    if transport == "docker-archive" and colon:
        tag = _archive_tag(tag, text)
    return Reference(transport, path=path, tag=tag if colon else None, digest=digest)


def _archive_tag(tag: str, text: str) -> str:
    """Check a docker reference inside an archive and complete it to ``name:tag``."""
    parsed = _parse_docker(tag, text)
    if parsed.digest is not None:
        _reject(
            text, "names a digest inside the archive's tag", "write docker-archive:PATH:NAME:TAG"
        )
    return tag if tag.endswith(f":{parsed.tag}") else f"{tag}:{parsed.tag}"


def _parse_docker(name: str, text: str) -> Reference:
    digest = None
    name, at, digest_text = name.partition("@")
    if at:
        if not is_digest(digest_text):
            hint = "a digest is sha256: and 64 lower-case hex digits"
            _reject(text, f"has a malformed digest {digest_text!r}", hint)
        digest = digest_text
    # A colon before the last slash belongs to the port of the registry.
    colon = name.find(":", name.rfind("/") + 1)
    tag = None
    if colon >= 0:
        name, tag = name[:colon], name[colon + 1 :]
        if not _TAG.fullmatch(tag):
            hint = "a tag has at most 128 letters, digits, '_', '.', '-', and no '.' or '-' first"
            _reject(text, f"has a malformed tag {tag!r}", hint)
    registry, repository = _split_registry(name)
    if not _REGISTRY.fullmatch(registry):
        _reject(text, f"has a malformed registry {registry!r}", "write HOST/NAME or HOST:PORT/NAME")
    _check_repository(repository, text)
    if tag is None and digest is None:
        tag = DEFAULT_TAG
    return Reference("docker", registry, repository, tag=tag, digest=digest)


def _split_registry(name: str) -> tuple[str, str]:
    """Docker's rule: the first component is a registry if it cannot be a path component."""
    first, slash, rest = name.partition("/")
    looks_like_host = any(mark in first for mark in ".:[") or first != first.lower()
    if slash and (looks_like_host or first == "localhost"):
        registry, repository = first, rest
    else:
        registry, repository = DEFAULT_REGISTRY, name
    if registry in ("index.docker.io", "registry-1.docker.io"):
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and repository and "/" not in repository:
        repository = f"library/{repository}"
    return registry, repository


def _check_repository(repository: str, text: str) -> None:
    if not repository or repository == "library/":
        _reject(text, "names no repository", "write NAME, HOST/NAME or HOST/NAME:TAG")
    if len(repository) > _MAX_REPOSITORY:
        _reject(text, "has a repository name of more than 255 characters", "choose a shorter name")
    for component in repository.split("/"):
        if not _PATH_COMPONENT.fullmatch(component):
            hint = "components are lower-case letters and digits, joined by '.', '_', '__' or '-'"
            if component != component.lower():
                hint = f"repository names are lower-case: {repository.lower()}"
            _reject(text, f"has a malformed repository component {component!r}", hint)


def _reject(text: str, problem: str, hint: str) -> NoReturn:
    raise UsageError(f"the image reference {text!r} {problem}", hint=hint)
