"""The values of docker's options, read: variables, volumes, sizes, limits, hosts.

All raise UsageError with how it is written; those that look on this machine NotFoundError too.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from lamina.errors import NotFoundError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from lamina.serve.container_options import Device, MemoryFolder, Volume

MAX_LIMIT: Final = (1 << 63) - 1
MAX_WAIT_S: Final = 2_000_000
PROPAGATIONS: Final = ("private", "rprivate", "slave", "rslave")

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?")
_SHIFTS: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_TMPFS_PAIRS: Final = ("uid", "gid", "nr_inodes", "nr_blocks", "huge")


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
    for number, line in _lines(path, "variables"):
        name = line.partition("=")[0]
        if any(char.isspace() for char in name):
            raise UsageError(
                f"line {number} of {path} names no variable, because {name!r} has a space in it",
                hint="write NAME=VALUE, without `export`",
            )
        yield from variable(line)


def _lines(path: str, what: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that say something, with their numbers."""
    try:
        with open(path, errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise NotFoundError(f"cannot read the {what} in {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        stripped = line.lstrip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped


def label(text: str) -> tuple[str, str]:
    """``KEY=VALUE``, or ``KEY`` for an empty value."""
    key, _, value = text.partition("=")
    if not key:
        raise UsageError(f"{text!r} is no label", hint="write --label KEY=VALUE")
    return key, value


def read_label_file(path: str) -> list[tuple[str, str]]:
    """Labels of a file, one a line."""
    return [label(line) for _, line in _lines(path, "labels")]


def pair(text: str) -> tuple[str, str]:
    """``NAME=VALUE``."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"{text!r} is no NAME=VALUE")
    return name, value


def volume(text: str) -> Volume:
    """``SRC:DST`` or ``SRC:DST:OPTIONS``; SRC is a path of the host that exists."""
    from lamina.serve.container_options import Volume

    parts = text.split(":")
    words = parts[2].split(",") if len(parts) == 3 else []
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageError(f"{text!r} is no volume", hint="write -v SRC:DST or -v SRC:DST:ro")
    source = host_path(parts[0])
    target = container_path(parts[1])
    read_only = False
    follows = False
    for word in words:
        if word in ("ro", "rw"):
            read_only = word == "ro"
        elif word in ("z", "Z"):
            _check_labels(text)
        elif word not in ("rbind", "consistent", "cached", "delegated"):
            follows = _propagation(word)
    return Volume(source, target, read_only, follows)


def host_path(text: str) -> str:
    """Return a path of the host that exists, absolute."""
    source = os.path.expanduser(text)
    if "/" not in source and source not in (".", ".."):
        raise UsageError(
            f"the volume source {source!r} is no path; there are no named volumes",
            hint=f"write ./{source} for a folder here",
        )
    if not os.path.lexists(source):
        raise NotFoundError(f"there is no {source} to show in the container", hint="make it first")
    return os.path.abspath(source)


def _propagation(word: str) -> bool:
    """Tell whether what the host mounts later is seen."""
    if word in ("shared", "rshared"):
        raise UnsupportedError(
            f"{word} would let a container mount on the host",
            hint="mount it on the host, and write rslave to have it seen in the container",
        )
    if word not in PROPAGATIONS:
        raise UsageError(
            f"{word!r} is no option of a volume", hint=f"one of ro, rw, {', '.join(PROPAGATIONS)}"
        )
    return word in ("slave", "rslave")


def _check_labels(text: str) -> None:
    """Refuse to promise labels where they matter: without SELinux there is nothing to do."""
    if os.path.exists("/sys/fs/selinux/enforce"):
        raise UnsupportedError(
            f"{text} asks for labels of SELinux, which Lamina does not write",
            hint="chcon -R -t container_file_t SRC, and leave z and Z out",
        )


def mount(text: str) -> Volume | MemoryFolder | str:
    """``--mount type=bind|tmpfs|volume,…``; what is returned for a volume is its folder."""
    from lamina.serve.container_options import MemoryFolder, Volume

    words = dict(item.partition("=")[::2] for item in text.split(","))
    kind = words.pop("type", "volume")
    source = next((words.pop(key) for key in ("source", "src") if key in words), None)
    target = next((words.pop(k) for k in ("target", "destination", "dst") if k in words), None)
    read_only = any(_truth(words.pop(k)) for k in ("readonly", "ro") if k in words)
    if target is None:
        raise UsageError(f"{text!r} has no target", hint="add target=PATH")
    if kind == "bind" and source is not None:
        follows = _propagation(words.pop("bind-propagation", "rprivate"))
        _refuse_more(text, words)
        return Volume(host_path(source), container_path(target), read_only, follows)
    if kind == "tmpfs" and source is None:
        size, mode = words.pop("tmpfs-size", None), words.pop("tmpfs-mode", None)
        _refuse_more(text, words)
        return MemoryFolder(
            container_path(target),
            None if size is None else str(byte_count(size)),
            None if mode is None else _octal(mode),
            read_only,
        )
    if kind == "volume" and source is None:
        _refuse_more(text, words)
        return container_path(target)
    if kind == "volume":
        raise UsageError(
            f"{text!r} names a volume, and there are no named volumes",
            hint="type=bind,source=FOLDER shows a folder of the host",
        )
    raise UsageError(f"{text!r} is no mount", hint="write type=bind,source=PATH,target=PATH")


def _truth(text: str) -> bool:
    return text.lower() in ("", "1", "t", "true")


def _refuse_more(text: str, words: Mapping[str, str]) -> None:
    if words:
        raise UsageError(f"{next(iter(words))!r} of --mount {text} is not supported")


def _octal(text: str) -> int:
    if not text or text.strip("01234567") or int(text, 8) > 0o7777:
        raise UsageError(f"{text!r} is no mode", hint="write four octal digits, as 1777")
    return int(text, 8)


def memory_folder(text: str) -> MemoryFolder:
    """``PATH`` or ``PATH:size=64m,mode=1777,exec,…``: an empty folder in memory."""
    from lamina.serve.container_options import MemoryFolder

    path, _, rest = text.partition(":")
    words = [word for word in rest.split(",") if word]
    pairs = dict(word.split("=", 1) for word in words if "=" in word)
    flags = {word for word in words if "=" not in word}
    size, mode = pairs.pop("size", None), pairs.pop("mode", None)
    known = {"rw", "ro", "exec", "noexec", "nosuid", "nodev", "noatime", "async"}
    for word in (*sorted(flags - known), *(name for name in pairs if name not in _TMPFS_PAIRS)):
        raise UsageError(
            f"{word!r} is no option of --tmpfs", hint="write --tmpfs PATH:size=64m,mode=1777,exec"
        )
    return MemoryFolder(
        container_path(path),
        size if size is None or size.endswith("%") else str(byte_count(size)),
        None if mode is None else _octal(mode),
        "ro" in flags,
        "exec" in flags,
        tuple(pairs.items()),
    )


def container_path(text: str) -> str:
    """Return an absolute path in the container other than its root, without a slash at the end."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not text.startswith("/") or not parts or ".." in parts:
        raise UsageError(f"{text!r} is no absolute path of a place in the container")
    return "/" + "/".join(parts)


def device(text: str) -> Device:
    """``/dev/NAME``, ``/dev/NAME:/dev/OTHER``, ``/dev/NAME:rw`` or all three."""
    from lamina.serve.container_options import Device

    source, *rest = text.split(":")
    access = rest.pop() if rest and not rest[-1].startswith("/") else "rwm"
    target = rest.pop() if rest else source
    if rest or not access or set(access) - set("rwm") or not source.startswith("/"):
        raise UsageError(f"{text!r} is no device", hint="write --device /dev/fuse")
    return Device(source, container_path(target), access)


def byte_count(text: str) -> int:
    """``64m``, ``1.5g``, ``1024``: bytes in binary units, as docker reads them."""
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None:
        raise UsageError(f"{text!r} is no size", hint="write a number and b, k, m or g, as 64m")
    count = int(float(found[1]) * (1 << _SHIFTS[found[2]]))
    if count > MAX_LIMIT:
        raise UsageError(f"{text!r} is more than a machine has")
    return count


def byte_count_or_all(text: str) -> int:
    """Return a size, or -1 as it is: no limit."""
    return -1 if text == "-1" else byte_count(text)


def count(text: str) -> int:
    """Return a whole number, which may be below zero."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or int(digits) > MAX_LIMIT:
        raise UsageError(f"{text!r} is no number")
    return int(text)


def cpu_quota_us(text: str) -> int:
    """``1.5`` processors as microseconds of each period."""
    from lamina.serve.container_resources import CPU_PERIOD_US

    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.01 <= number <= (os.cpu_count() or 1):
        raise UsageError(
            f"{text!r} is no number of processors between 0.01 and {os.cpu_count()}",
            hint="write --cpus 1.5",
        )
    return round(number * CPU_PERIOD_US)


def host(text: str) -> tuple[str, str]:
    """``NAME:ADDRESS`` or ``NAME=ADDRESS`` as both."""
    import ipaddress

    name, mark, address = text.partition("=") if "=" in text else text.partition(":")
    address = address.removeprefix("[").removesuffix("]")
    # The network is the host's, so the host is where it always is.
    address = "127.0.0.1" if address == "host-gateway" else address
    try:
        ipaddress.ip_address(address)
    except ValueError:
        mark = ""
    if not name or not mark or any(char.isspace() for char in name):
        raise UsageError(f"{text!r} is no host", hint="write --add-host NAME:ADDRESS")
    return name, address


def seconds(text: str) -> float:
    """Return how long to wait, in whole seconds; below zero for ever, as what poll(2) cannot
    count.
    """
    number = count(text)
    return float(number) if number <= MAX_WAIT_S else -1.0


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
