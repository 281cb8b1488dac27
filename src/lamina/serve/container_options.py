"""What a user asks of a container beyond its image, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from lamina.serve.container_resources import NO_LIMITS, ResourceLimits

Network = Literal["host", "none"]
SHM_BYTES: Final = 64 << 20
STOP_TIMEOUT_S: Final = 10.0
"""How long a container is given to end by itself, as docker does."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A folder or file of the host, seen at ``target`` in the container.

    With ``follows_host`` what the host mounts below it later is seen too (``rslave``).
    """

    source: str
    target: str
    read_only: bool = False
    follows_host: bool = False


@dataclass(frozen=True, slots=True)
class MemoryFolder:
    """An empty folder in memory; ``mode`` None is that of the folder it is mounted on."""

    target: str
    size: str | None = None
    mode: int | None = None
    read_only: bool = False
    executable: bool = False
    more: tuple[tuple[str, str], ...] = ()
    """Further options of tmpfs(5): ``uid``, ``gid``, ``nr_inodes``."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the host, or a folder of them; ``access`` is letters of ``rwm``."""

    source: str
    target: str
    access: str = "rwm"


@dataclass(frozen=True, slots=True, kw_only=True)
class NameResolution:
    """Servers, search domains and options of ``resolv.conf`` (None: the host's), and hosts as
    (name, address).
    """

    servers: tuple[str, ...] | None = None
    search: tuple[str, ...] | None = None
    options: tuple[str, ...] | None = None
    hosts: tuple[tuple[str, str], ...] = ()


THE_HOSTS: Final = NameResolution()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerOptions:
    """What a user asks of a container beyond its image; None and empty mean what the image says.

    ``env`` is in order, later wins; ``entrypoint`` "" drops the image's; ``rlimits`` are (name,
    soft, hard).  ``own_volumes`` are folders that the container gets from nowhere, as it gets those
    that the image calls VOLUME.  ``host_namespaces`` are the kinds that it shares with the host:
    ``pid``, ``ipc``, ``uts``, ``cgroup``.  ``cgroup_path`` is the container's own below
    ``cgroup_parent``, empty where the runtime chooses.  ``stop_timeout_s`` None is
    :data:`STOP_TIMEOUT_S`.
    """

    command: tuple[str, ...] = ()
    entrypoint: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    workdir: str | None = None
    user: str | None = None
    groups_added: tuple[str, ...] = ()
    hostname: str = ""
    domainname: str = ""
    network: Network = "host"
    names: NameResolution = THE_HOSTS
    volumes: tuple[Volume, ...] = ()
    own_volumes: tuple[str, ...] = ()
    tmpfs: tuple[MemoryFolder, ...] = ()
    shm_bytes: int = SHM_BYTES
    devices: tuple[Device, ...] = ()
    device_rules: tuple[str, ...] = ()
    terminal: bool = False
    interactive: bool = False
    init: bool = False
    read_only: bool = False
    capabilities_added: tuple[str, ...] = ()
    capabilities_dropped: tuple[str, ...] = ()
    rlimits: tuple[tuple[str, int, int], ...] = ()
    limits: ResourceLimits = NO_LIMITS
    sysctls: tuple[tuple[str, str], ...] = ()
    oom_score_adjustment: int | None = None
    cgroup_parent: str = ""
    cgroup_path: str = ""
    host_namespaces: frozenset[str] = frozenset()
    seccomp: bool = True
    no_new_privileges: bool = False
    hide_system_paths: bool = True
    labels: tuple[tuple[str, str], ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    stop_signal: str | None = None
    stop_timeout_s: float | None = None
