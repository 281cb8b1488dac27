"""The OCI runtime bundle of a container: ``config.json`` from an image configuration and the wishes
of a user.

What: pure functions from values to values; nothing is mounted, started or written but
``config.json``.  Defaults are those
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
from typing import Any, Final

from lamina.errors import FormatError, UsageError
from lamina.linux.capabilities import CAPABILITIES, bounding_set
from lamina.oci.manifest import RuntimeConfig
from lamina.serve.container_devices import device_nodes, device_rule
from lamina.serve.container_etc import write_file
from lamina.serve.container_options import ContainerOptions
from lamina.serve.container_resources import check_controllers, resources
from lamina.serve.container_user import ContainerUser
from lamina.serve.seccomp import seccomp_profile

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
INIT_TARGET: Final = "/sbin/docker-init"
"""Where the program of ``--init`` is in a container, as with docker."""


def process_arguments(config: RuntimeConfig, options: ContainerOptions) -> list[str]:
    """Return the command line of the container: entrypoint and command, each from the image unless
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
    """Return the environment: defaults, then the image's, then the user's; later wins, first keeps
    its place.
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
    """Return where the command starts, as it is written; links in it are for the container's
    tree.
    """
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
    """Return the ``config.json`` of a bundle, whose root file system is its folder ``rootfs``, with
    the kernel's own mounts; :mod:`lamina.serve.container_mounts` places the others.

    Raises UsageError for impossible wishes, FormatError for an image configuration that no kernel
    could run.
    """
    check_controllers(options.limits)
    nodes, rules = device_nodes(options.devices)
    rules += [device_rule(text) for text in options.device_rules]
    hidden = options.hide_system_paths
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in _namespaces(options)],
        "resources": {
            "devices": [{"allow": False, "access": "rwm"}, *rules],
            **resources(options.limits),
        },
        "devices": nodes,
        "sysctl": _sysctls(options),
        "maskedPaths": list(MASKED_PATHS) if hidden else [],
        "readonlyPaths": list(READONLY_PATHS) if hidden else [],
    }
    if options.cgroup_path:
        linux["cgroupsPath"] = options.cgroup_path
    if options.seccomp:
        linux["seccomp"] = seccomp_profile()
    if any(volume.follows_host for volume in options.volumes):
        linux["rootfsPropagation"] = "rslave"
    return {
        "ociVersion": "1.0.2",
        "process": _process(config, user, options),
        "root": {"path": "rootfs", "readonly": options.read_only},
        "hostname": "" if "uts" in options.host_namespaces else options.hostname,
        "mounts": _system_mounts(options),
        "annotations": dict(options.annotations),
        "linux": linux,
    }


def _namespaces(options: ContainerOptions) -> list[str]:
    kinds = ["pid", "ipc", "uts", "mount", "cgroup"]
    if options.network == "none":
        kinds.append("network")
    return [kind for kind in kinds if kind not in options.host_namespaces]


def _sysctls(options: ContainerOptions) -> dict[str, str]:
    given = dict(options.sysctls)
    if options.domainname:
        given["kernel.domainname"] = options.domainname
    for name in given:
        if name.startswith("net.") and options.network == "host":
            raise UsageError(
                f"--sysctl {name} would change the host's network",
                hint="set it with sysctl(8) on the host, or use --network none",
            )
    return given


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
    arguments = process_arguments(config, options)
    if options.init:
        arguments = [INIT_TARGET, "--", *arguments]
    process: dict[str, Any] = {
        "terminal": options.terminal,
        "user": {
            "uid": user.uid,
            "gid": user.gid,
            "additionalGids": groups,
            "umask": 0o022,
        },
        "args": arguments,
        "env": process_environment(config, options, user.home),
        "cwd": working_directory(config, options),
        "capabilities": {"bounding": capabilities, "effective": own, "permitted": own},
        "rlimits": [
            {"type": name, "soft": soft, "hard": hard} for name, (soft, hard) in limits.items()
        ],
        "noNewPrivileges": options.no_new_privileges,
    }
    if options.oom_score_adjustment is not None:
        process["oomScoreAdj"] = options.oom_score_adjustment
    return process


def _open_files() -> tuple[int, int]:
    """systemd's limits, or less where this process may not give that much (CAP_SYS_RESOURCE)."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    ceiling = OPEN_FILES[1] if hard == resource.RLIM_INFINITY else hard
    return min(OPEN_FILES[0], ceiling), min(OPEN_FILES[1], ceiling)


def _system_mounts(options: ContainerOptions) -> list[dict[str, Any]]:
    safe = ["nosuid", "noexec", "nodev"]
    shm = [*safe, "mode=1777", f"size={options.shm_bytes}"]
    table: tuple[tuple[str, str, str, list[str]], ...] = (
        ("/proc", "proc", "proc", safe),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/dev/shm", "tmpfs", "shm", shm),  # noqa: S108
        ("/dev/mqueue", "mqueue", "mqueue", safe),
        ("/sys", "sysfs", "sysfs", [*safe, "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", [*safe, "relatime", "ro"]),
    )
    if "ipc" in options.host_namespaces:
        table = tuple(_of_host(*row) for row in table)
    return [_mount(*row) for row in table]


def _of_host(
    target: str, kind: str, source: str, options: list[str]
) -> tuple[str, str, str, list[str]]:
    """Return the host's own in the place of what belongs to a namespace of IPC."""
    if target in ("/dev/shm", "/dev/mqueue") and os.path.isdir(target):  # noqa: S108
        return target, "bind", target, ["rbind"]
    return target, kind, source, options


def _mount(target: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": options}


def write_config(bundle: str, document: dict[str, Any]) -> None:
    """Write ``config.json`` into the existing folder ``bundle``."""
    write_file(os.path.join(bundle, "config.json"), json.dumps(document), 0o600)


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
