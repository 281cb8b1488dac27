"""The OCI runtime bundle of a container: ``config.json`` from an image configuration and the wishes
of a user.

What: pure functions from values to values; nothing is mounted, started or written but
``config.json`` and the few files that :func:`write_etc_files` puts beside it.  Defaults are those
that docker users know: capabilities, masked paths, environment, entrypoint rules.  Sources: OCI
runtime specification 1.0.2 (config.md, config-linux.md), OCI image specification 1.1
(conversion.md), moby ``oci/defaults.go``.
"""

from __future__ import annotations

import json
import os
import posixpath
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from lamina.errors import FormatError, UsageError
from lamina.linux.capabilities import CAPABILITIES, bounding_set
from lamina.registry.manifest import RuntimeConfig
from lamina.serve.container_user import ContainerUser
from lamina.serve.seccomp import seccomp_profile

Network = Literal["host", "none"]

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ALL: Final = "CAP_ALL"
DEFAULT_CAPABILITIES: Final = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS: Final = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)
OPEN_FILES: Final = (1024, 524288)
HOSTS: Final = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


@dataclass(frozen=True, slots=True)
class Volume:
    """A folder or file of the host, seen at ``target`` in the container."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerOptions:
    """What a user asks of a container beyond its image; None and empty mean what the image says.

    ``env`` is in order, later wins; ``entrypoint`` "" drops the image's; ``rlimits`` are (name,
    soft, hard).
    """

    command: tuple[str, ...] = ()
    entrypoint: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    workdir: str | None = None
    user: str | None = None
    hostname: str = ""
    network: Network = "host"
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[str, ...] = ()
    terminal: bool = False
    interactive: bool = False
    read_only: bool = False
    capabilities_added: tuple[str, ...] = ()
    capabilities_dropped: tuple[str, ...] = ()
    rlimits: tuple[tuple[str, int, int], ...] = ()


def process_arguments(config: RuntimeConfig, options: ContainerOptions) -> list[str]:
    """The command line of the container: entrypoint and command, each from the image unless
    overridden.

    A new entrypoint drops the image's command too.  Raises UsageError where nothing is left to run.
    """
    if options.entrypoint is not None:
        arguments = [options.entrypoint] if options.entrypoint else []
        arguments += options.command
    else:
        arguments = [*config.entrypoint, *(options.command or config.cmd)]
    if not arguments or not arguments[0]:
        raise UsageError(
            "the image names no command to run", hint="write one: lamina run IMAGE COMMAND…"
        )
    _refuse_nul(arguments, "argument")
    return arguments


def process_environment(config: RuntimeConfig, options: ContainerOptions, home: str) -> list[str]:
    """The environment: defaults, then the image's, then the user's; later wins, first keeps its
    place.
    """
    values = {"PATH": DEFAULT_PATH, "HOSTNAME": options.hostname}
    if options.terminal:
        values["TERM"] = "xterm"
    for entry in config.env:
        name, equals, value = entry.partition("=")
        if name and equals:
            values[name] = value
    values.update(options.env)
    if not values.get("HOME"):
        values["HOME"] = home
    environment = [f"{name}={value}" for name, value in values.items()]
    _refuse_nul(environment, "environment variable")
    return environment


def working_directory(config: RuntimeConfig, options: ContainerOptions) -> str:
    """Where the command starts, as it is written; links in it are for the container's tree."""
    if options.workdir is not None and not options.workdir.startswith("/"):
        raise UsageError(f"the working directory {options.workdir!r} is not absolute")
    wanted = config.working_dir if options.workdir is None else options.workdir
    _refuse_nul([wanted], "working directory")
    return posixpath.normpath(posixpath.join("/", wanted)).replace("//", "/", 1)


def capability_set(added: Iterable[str], dropped: Iterable[str]) -> list[str]:
    """Docker's default set, plus and minus; ``ALL`` adds all that this process has, or drops all.
    Names may lack ``CAP_`` and be in lower case.

    Raises UsageError for one that Linux has not: runtimes ignore it.
    """
    more = {_capability(name) for name in added}
    less = {_capability(name) for name in dropped}
    if _ALL in more:
        return sorted(bounding_set() - less)
    kept = set() if _ALL in less else set(DEFAULT_CAPABILITIES) - less
    return sorted(kept | more)


def runtime_config(
    config: RuntimeConfig, user: ContainerUser, options: ContainerOptions
) -> dict[str, Any]:
    """The ``config.json`` of a bundle, whose root file system is its folder ``rootfs``, with the
    kernel's own mounts; :mod:`lamina.serve.container_mounts` places the others.

    Raises UsageError for impossible wishes, FormatError for an image configuration that no kernel
    could run.
    """
    namespaces = ["pid", "ipc", "uts", "mount", "cgroup"]
    if options.network == "none":
        namespaces.append("network")
    return {
        "ociVersion": "1.0.2",
        "process": _process(config, user, options),
        "root": {"path": "rootfs", "readonly": options.read_only},
        "hostname": options.hostname,
        "mounts": _system_mounts(),
        "linux": {
            "namespaces": [{"type": kind} for kind in namespaces],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
            "seccomp": seccomp_profile(),
        },
    }


def _process(
    config: RuntimeConfig, user: ContainerUser, options: ContainerOptions
) -> dict[str, Any]:
    capabilities = capability_set(options.capabilities_added, options.capabilities_dropped)
    # Other users get the bounding set only, which is what execve(2) would leave them.
    own = capabilities if user.uid == 0 else []
    # The own group too, or dropping it would lift what a file denies to it (CVE-2022-36109).
    groups = [user.gid, *(gid for gid in user.groups if gid != user.gid)]
    limits = {"RLIMIT_NOFILE": _open_files()}
    limits |= {name: (soft, hard) for name, soft, hard in options.rlimits}
    return {
        "terminal": options.terminal,
        "user": {
            "uid": user.uid,
            "gid": user.gid,
            "additionalGids": groups,
            "umask": 0o022,
        },
        "args": process_arguments(config, options),
        "env": process_environment(config, options, user.home),
        "cwd": working_directory(config, options),
        "capabilities": {"bounding": capabilities, "effective": own, "permitted": own},
        "rlimits": [
            {"type": name, "soft": soft, "hard": hard} for name, (soft, hard) in limits.items()
        ],
        "noNewPrivileges": False,
    }


def _open_files() -> tuple[int, int]:
    """systemd's limits, or less where this process may not give that much (CAP_SYS_RESOURCE)."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    ceiling = OPEN_FILES[1] if hard == resource.RLIM_INFINITY else hard
    return min(OPEN_FILES[0], ceiling), min(OPEN_FILES[1], ceiling)


def _system_mounts() -> list[dict[str, Any]]:
    safe = ["nosuid", "noexec", "nodev"]
    table = (
        ("/proc", "proc", "proc", safe),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/dev/shm", "tmpfs", "shm", [*safe, "mode=1777", "size=65536k"]),  # noqa: S108
        ("/dev/mqueue", "mqueue", "mqueue", safe),
        ("/sys", "sysfs", "sysfs", [*safe, "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", [*safe, "relatime", "ro"]),
    )
    return [_mount(*row) for row in table]


def _mount(target: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": options}


def etc_files(options: ContainerOptions) -> dict[str, str]:
    """Names under ``/etc`` that the host provides, with their texts."""
    files = {"hosts": HOSTS, "hostname": f"{options.hostname}\n"}
    if options.network == "host":
        for name in ("hosts", "resolv.conf"):
            text = _host_file(f"/etc/{name}")
            if text is not None:
                files[name] = text
    return files


def write_etc_files(bundle: str, options: ContainerOptions) -> None:
    """Write the files that are mounted below ``/etc`` into the existing folder ``bundle``."""
    for name, text in etc_files(options).items():
        _write(os.path.join(bundle, name), text, 0o644)


def write_config(bundle: str, document: dict[str, Any]) -> None:
    """Write ``config.json`` into the existing folder ``bundle``."""
    _write(os.path.join(bundle, "config.json"), json.dumps(document), 0o600)


def _write(path: str, text: str, mode: int) -> None:
    with open(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", errors="surrogateescape"
    ) as file:
        file.write(text)


def _host_file(path: str) -> str | None:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return None


def _capability(name: str) -> str:
    upper = name.upper()
    full = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    if full not in CAPABILITIES and full != _ALL:
        raise UsageError(
            f"{name!r} is no capability", hint="capabilities(7) lists them, as NET_ADMIN"
        )
    return full


def _refuse_nul(texts: Iterable[str], what: str) -> None:
    if any("\0" in text for text in texts):
        raise FormatError(f"the image configuration has an {what} with a NUL byte in it")
