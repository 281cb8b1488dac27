"""The options of ``lamina run`` that docker users know, and what they mean."""

from __future__ import annotations

import argparse
import os
import resource
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from lamina.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from lamina.cli.parser import Parser
    from lamina.serve.bundle import ContainerOptions, Volume

MAX_LIMIT: Final = (1 << 63) - 1


def add_container_options(parser: Parser) -> None:
    """Declare them."""
    group = parser.add_argument_group("Container options")
    add = group.add_argument
    add("-i", "--interactive", action="store_true", help="give the command the standard input")
    add("-t", "--tty", action="store_true", help="give the command the terminal")
    add("--rm", action="store_true", help="keep nothing of what the container writes")
    add("--name", metavar="NAME", help="name of the container (a random one)")
    add("--entrypoint", metavar="COMMAND", help="replace the image's entrypoint; '' drops it")
    add("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]",
        help="set a variable, or pass on the one of this environment; may be repeated")  # fmt: skip
    add("--env-file", action="append", default=[], metavar="FILE",
        help="read variables from a file of NAME[=VALUE] lines; may be repeated")  # fmt: skip
    add("-w", "--workdir", metavar="PATH", help="where the command starts")
    add("-u", "--user", metavar="USER[:GROUP]", help="who the command runs as, by name or number")
    add("-v", "--volume", action="append", default=[], metavar="SRC:DST[:ro]",
        help="show a folder or file of the host in the container; may be repeated")  # fmt: skip
    add("--tmpfs", action="append", default=[], metavar="PATH",
        help="an empty folder in memory; may be repeated")  # fmt: skip
    add("--network", choices=("host", "none"), default="host", metavar="host|none",
        help="the network that the container sees (%(default)s)")  # fmt: skip
    add("--hostname", default="", metavar="NAME", help="host name in the container")
    add("--read-only", action="store_true", help="let the container write nowhere but to volumes")
    add("--cap-add", action="append", default=[], metavar="CAPABILITY",
        help="add to docker's default capabilities, or ALL; may be repeated")  # fmt: skip
    add("--cap-drop", action="append", default=[], metavar="CAPABILITY",
        help="take away a capability, or ALL; may be repeated")  # fmt: skip
    add("--ulimit", action="append", default=[], metavar="NAME=SOFT[:HARD]",
        help="set a resource limit, as nofile=1024:4096; may be repeated")  # fmt: skip
    add("--runtime", metavar="FILE", help="the container runtime (runc, else crun)")


def container_options(args: argparse.Namespace) -> ContainerOptions:
    """What the arguments ask of the container.  Raises UsageError, NotFoundError."""
    from lamina.serve.bundle import ContainerOptions

    variables = [pair for path in args.env_file for pair in read_env_file(path)]
    variables += [pair for text in args.env for pair in variable(text)]
    return ContainerOptions(
        command=tuple(args.command),
        entrypoint=args.entrypoint,
        env=tuple(variables),
        workdir=args.workdir,
        user=args.user,
        hostname=args.hostname,
        network=args.network,
        volumes=tuple(volume(text) for text in args.volume),
        tmpfs=tuple(container_path(text) for text in args.tmpfs),
        terminal=args.tty,
        interactive=args.interactive,
        read_only=args.read_only,
        capabilities_added=tuple(args.cap_add),
        capabilities_dropped=tuple(args.cap_drop),
        rlimits=tuple(limit(text) for text in args.ulimit),
    )


def variable(text: str) -> Iterator[tuple[str, str]]:
    """``NAME=VALUE``, or ``NAME`` for the value in this environment, if it has one."""
    name, equals, value = text.partition("=")
    if not name:
        raise UsageError(f"{text!r} names no variable", hint="write -e NAME=VALUE or -e NAME")
    if equals:
        yield name, value
    elif name in os.environ:
        yield name, os.environ[name]


def read_env_file(path: str) -> Iterator[tuple[str, str]]:
    """Variables of a file in docker's form: one a line, ``#`` starts a comment line, no quoting."""
    try:
        with open(path, errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise NotFoundError(f"cannot read the variables in {path}: {error.strerror}") from error
    for line in lines:
        stripped = line.lstrip()
        if stripped and not stripped.startswith("#"):
            yield from variable(stripped)


def volume(text: str) -> Volume:
    """``SRC:DST`` or ``SRC:DST:ro``; SRC is a path of the host that exists."""
    from lamina.serve.bundle import Volume

    parts = text.split(":")
    modes = set(parts[2].split(",")) if len(parts) == 3 else set()
    if len(parts) not in (2, 3) or not all(parts) or not modes <= {"ro", "rw"}:
        raise UsageError(f"{text!r} is no volume", hint="write -v SRC:DST or -v SRC:DST:ro")
    source = os.path.expanduser(parts[0])
    if "/" not in source and source not in (".", ".."):
        raise UsageError(
            f"the volume source {source!r} is no path; there are no named volumes",
            hint=f"write ./{source} for a folder here",
        )
    if not os.path.lexists(source):
        raise NotFoundError(f"there is no {source} to show in the container", hint="make it first")
    return Volume(os.path.abspath(source), container_path(parts[1]), "ro" in modes)


def container_path(text: str) -> str:
    """An absolute path in the container other than its root, without a slash at the end."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not text.startswith("/") or not parts or ".." in parts:
        raise UsageError(f"{text!r} is no absolute path of a place in the container")
    return "/" + "/".join(parts)


def limit(text: str) -> tuple[str, int, int]:
    """``nofile=1024:4096`` as (RLIMIT_NOFILE, 1024, 4096); one number is both; -1 is no limit."""
    name, _, numbers = text.partition("=")
    kind = f"RLIMIT_{name.upper()}"
    values = [_limit_value(part, text) for part in numbers.split(":")]
    if not hasattr(resource, kind) or len(values) > 2:
        names: Sequence[str] = [item[7:].lower() for item in dir(resource) if item[:7] == "RLIMIT_"]
        raise UsageError(f"{text!r} is no limit", hint=f"NAME is one of {', '.join(names)}")
    soft, hard = values[0], values[-1]
    if soft > hard:
        raise UsageError(f"the soft limit of {text!r} is above the hard one")
    return kind, soft, hard


def _limit_value(text: str, whole: str) -> int:
    if text in ("-1", "unlimited"):
        return (1 << 64) - 1
    if not (text.isascii() and text.isdigit()) or int(text) > MAX_LIMIT:
        raise UsageError(f"{whole!r} is no limit", hint="write --ulimit nofile=1024:4096")
    return int(text)
