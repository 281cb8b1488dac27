"""The options of ``lamina run`` that docker users know, and what they mean."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from lamina.cli import container_values as values
from lamina.cli.docker_options import refused_options
from lamina.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from lamina.cli.parser import Parser
    from lamina.serve.container_options import ContainerOptions, MemoryFolder, Volume
    from lamina.serve.container_resources import ResourceLimits

NETWORKS: Final = ("host", "none")


def add_container_options(parser: Parser) -> None:
    """Declare them."""
    _add_process_options(parser)
    _add_file_options(parser)
    _add_machine_options(parser)
    parser.set_defaults(devices=[], mounts=[], label=[], label_file=[], cidfile=None)
    parser.refused = refused_options()


def add_run_options(parser: Parser) -> None:
    """Declare those of ``lamina run`` alone: of containers that last, and with names that mean
    something else elsewhere.
    """
    add = parser.add_argument_group("More options of containers").add_argument
    add("-d", "--detach", action="store_true", help="leave the container to itself; see above")
    add("--cidfile", metavar="FILE", help="write the container's name into a new file")
    add("--label", "-l", action="append", default=[], metavar="KEY[=VALUE]",
        help="a label that `lamina ps` shows and filters by; may be repeated")  # fmt: skip
    add("--label-file", action="append", default=[], metavar="FILE",
        help="read labels from a file of KEY=VALUE lines; may be repeated")  # fmt: skip
    add("--mount", action="append", default=[], dest="mounts", metavar="type=TYPE,…",
        help="the same in docker's long form, with type bind, tmpfs or volume; may be "
        "repeated")  # fmt: skip
    add(
        "--device",
        action=DeviceAction,
        default="auto",
        metavar="DEVICE",
        help="a path, as /dev/fuse[:/dev/OTHER][:rwm]: give the container that device of the host; "
        "may be repeated. A word: how the kernel gets at the bytes: fuse-blob (Linux 6.12), "
        "fanotify (Linux 6.14), fuse, or auto: fuse-blob where it works, else fuse",
    )


def _add_process_options(parser: Parser) -> None:
    group = parser.add_argument_group("Container options")
    add = group.add_argument
    add("-i", "--interactive", action="store_true", help="give the command the standard input")
    add("-t", "--tty", action="store_true", help="give the command the terminal")
    add("--rm", action="store_true", help="keep nothing of what the container writes")
    add("--name", metavar="NAME", help="name of the container (a random one)")
    add("--annotation", action="append", default=[], metavar="KEY=VALUE",
        help="an annotation for the runtime; may be repeated")  # fmt: skip
    add("--entrypoint", metavar="COMMAND", help="replace the image's entrypoint; '' drops it")
    add("--init", action="store_true",
        help="have process 1 be an init of this machine that reaps and passes signals on"
        )  # fmt: skip
    add_process_options(group)
    add("--group-add", action="append", default=[], metavar="GROUP",
        help="one more group of the command, by name or number; may be repeated")  # fmt: skip
    add("--stop-signal", metavar="SIGNAL",
        help="what `lamina stop` sends (the image's, else TERM)")  # fmt: skip
    add("--stop-timeout", metavar="SECONDS",
        help="how long after that signal the container is killed, -1 for never (10); given to a "
        "run in the foreground, it counts from the SIGTERM that lamina gets")  # fmt: skip


def add_process_options(group: argparse._ArgumentGroup) -> None:
    """Declare what says how a command in a container runs, its first or another one."""
    add = group.add_argument
    add("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]",
        help="set a variable, or pass on the one of this environment; may be repeated")  # fmt: skip
    add("--env-file", action="append", default=[], metavar="FILE",
        help="read variables from a file of NAME[=VALUE] lines; may be repeated")  # fmt: skip
    add("-w", "--workdir", metavar="PATH", help="where the command starts")
    add("-u", "--user", metavar="USER[:GROUP]", help="who the command runs as, by name or number")


def _add_file_options(parser: Parser) -> None:
    add = parser.add_argument_group("Files of the container").add_argument
    add("-v", "--volume", action="append", default=[], metavar="SRC:DST[:OPTIONS]",
        help="show a folder or file of the host in the container; OPTIONS are ro, rw, z, Z, and "
        "rslave for what the host mounts there later; DST alone is a folder of its own, as those "
        "that the image calls VOLUME; may be repeated")  # fmt: skip
    add("--tmpfs", action="append", default=[], metavar="PATH[:OPTIONS]",
        help="an empty folder in memory, as /run:size=64m,mode=755,exec; may be repeated"
        )  # fmt: skip
    add("--shm-size", metavar="SIZE", help="size of /dev/shm (64m)")
    add("--read-only", action="store_true", help="let the container write nowhere but to volumes")
    add("--device-cgroup-rule", action="append", default=[], metavar="RULE",
        help="let it use devices that it makes itself, as 'c 13:* rwm'; may be repeated"
        )  # fmt: skip


class HostnameAction(argparse.Action):
    """``-h NAME`` is docker's host name, ``-h`` alone the help page."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        """Keep the name, or show the page and leave the process."""
        if values is None:
            parser.print_help()
            parser.exit()
        setattr(namespace, self.dest, values)


class DeviceAction(argparse.Action):
    """``--device``: a path is docker's, a device of the host; a word is how the kernel gets at the
    bytes of the image.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        """Keep the value where it belongs.  Raises UsageError for a word that is none."""
        from lamina.serve.devices import AUTO, device_names

        words = (AUTO, *device_names())
        if values.startswith("/"):
            namespace.devices = [*namespace.devices, values]
        elif values in words:
            setattr(namespace, self.dest, values)
        else:
            raise UsageError(
                f"there is no device {values!r}",
                hint=f"{', '.join(words)}; or a path, for a device of the host",
            )


def _add_machine_options(parser: Parser) -> None:
    add = parser.add_argument_group("The machine that the container sees").add_argument
    add(
        "--expose", action="append", metavar="PORT", help="says nothing to anybody; may be repeated"
    )
    add("--no-healthcheck", action="store_true", help="nobody asks for health anyway")
    add("--network", "--net", type=_network, choices=NETWORKS, default="host", metavar="host|none",
        help="the network that the container sees (%(default)s)")  # fmt: skip
    add("-h", "--hostname", action=HostnameAction, nargs="?", default="", metavar="NAME",
        help="host name in the container; -h alone shows this page")  # fmt: skip
    add("--domainname", default="", metavar="NAME", help="NIS domain name in the container")
    add("--add-host", action="append", default=[], metavar="NAME:ADDRESS",
        help="a line more in /etc/hosts; may be repeated")  # fmt: skip
    for name, what in (
        ("dns", "server"),
        ("dns-search", "search domain"),
        ("dns-option", "option"),
    ):
        add(f"--{name}", action="append", metavar=what.split()[-1].upper(),
            help=f"{what} in /etc/resolv.conf instead of the host's; may be repeated")  # fmt: skip
    for kind in ("pid", "ipc", "uts", "cgroupns"):
        add(f"--{kind}", default="private", metavar="host|private",
            help=f"share the {kind.removesuffix('ns')} namespace of the host")  # fmt: skip
    add("--cap-add", action="append", default=[], metavar="CAPABILITY",
        help="add to docker's default capabilities, or ALL; may be repeated")  # fmt: skip
    add("--cap-drop", action="append", default=[], metavar="CAPABILITY",
        help="take away a capability, or ALL; may be repeated")  # fmt: skip
    add("--security-opt", action="append", default=[], metavar="OPTION",
        help="no-new-privileges, seccomp=unconfined, systempaths=unconfined; may be "
        "repeated")  # fmt: skip
    add("--sysctl", action="append", default=[], metavar="NAME=VALUE",
        help="set a parameter of the container's namespaces; may be repeated")  # fmt: skip
    add("--ulimit", action="append", default=[], metavar="NAME=SOFT[:HARD]",
        help="set a resource limit, as nofile=1024:4096; may be repeated")  # fmt: skip
    _add_limit_options(parser)
    add("--runtime", metavar="FILE", help="the container runtime (runc, else crun)")


def _add_limit_options(parser: Parser) -> None:
    add = parser.add_argument_group("Limits of the container").add_argument
    add("-m", "--memory", metavar="SIZE", help="how much memory it may have, as 512m")
    add("--memory-reservation", metavar="SIZE", help="how much it keeps when memory is scarce")
    add("--memory-swap", metavar="SIZE",
        help="memory and swap together, -1 for all there is (twice the memory)")  # fmt: skip
    add("--cpus", metavar="NUMBER", help="how many processors' time it may use, as 1.5")
    add("-c", "--cpu-shares", metavar="NUMBER", help="its weight beside others (1024)")
    add("--cpu-period", metavar="MICROSECONDS", help="the period of --cpu-quota")
    add("--cpu-quota", metavar="MICROSECONDS", help="what it may run of each period")
    add("--cpuset-cpus", metavar="LIST", help="which processors, as 0-3,5")
    add("--cpuset-mems", metavar="LIST", help="which nodes of memory, as 0,1")
    add("--pids-limit", metavar="NUMBER", help="how many processes it may have, -1 for any")
    add("--blkio-weight", metavar="NUMBER", help="its weight at disks, 10 to 1000")
    add("--oom-score-adj", metavar="NUMBER", help="how soon it is killed when memory is out")
    add("--cgroup-parent", default="", metavar="PATH", help="control group above the container's")


def container_options(args: argparse.Namespace) -> ContainerOptions:
    """Return what the arguments ask of the container.  Raises UsageError, NotFoundError,
    UnsupportedError.
    """
    from lamina.containers.signals import signal_name
    from lamina.serve.container_options import ContainerOptions, Volume

    mounts = [values.mount(text) for text in args.mounts]
    binds = [text for text in args.volume if ":" in text]
    volumes = [values.volume(text) for text in binds]
    volumes += [each for each in mounts if isinstance(each, Volume)]
    own = [values.container_path(text) for text in args.volume if ":" not in text]
    own += [each for each in mounts if isinstance(each, str)]
    timeout = args.stop_timeout
    return ContainerOptions(
        command=tuple(args.command),
        entrypoint=args.entrypoint,
        env=environment(args),
        workdir=args.workdir,
        user=args.user,
        groups_added=tuple(args.group_add),
        hostname=args.hostname,
        domainname=args.domainname,
        network=args.network,
        volumes=tuple(volumes),
        own_volumes=tuple(own),
        tmpfs=tuple(_memory_folders(args, mounts)),
        devices=tuple(values.device(text) for text in args.devices),
        device_rules=tuple(args.device_cgroup_rule),
        terminal=args.tty,
        interactive=args.interactive,
        init=args.init,
        read_only=args.read_only,
        rlimits=tuple(values.limit(text) for text in args.ulimit),
        limits=_limits(args),
        capabilities_added=tuple(args.cap_add),
        capabilities_dropped=tuple(args.cap_drop),
        sysctls=tuple(values.pair(text) for text in args.sysctl),
        cgroup_parent=args.cgroup_parent,
        host_namespaces=_host_namespaces(args),
        labels=_labels(args),
        annotations=tuple(values.pair(text) for text in args.annotation),
        stop_signal=None if args.stop_signal is None else signal_name(args.stop_signal),
        stop_timeout_s=None if timeout is None else values.seconds(timeout),
        **_names_and_sizes(args),
        **_security(args.security_opt),
    )


def environment(args: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """Return the variables that ``--env`` and ``--env-file`` say."""
    pairs = [pair for path in args.env_file for pair in values.read_env_file(path)]
    return tuple(pairs + [pair for text in args.env for pair in values.variable(text)])


def _memory_folders(
    args: argparse.Namespace, mounts: list[Volume | MemoryFolder | str]
) -> list[MemoryFolder]:
    from lamina.serve.container_options import MemoryFolder

    folders = [values.memory_folder(text) for text in args.tmpfs]
    return folders + [each for each in mounts if isinstance(each, MemoryFolder)]


def _labels(args: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    read = [each for path in args.label_file for each in values.read_label_file(path)]
    return tuple(read + [values.label(text) for text in args.label])


def _network(name: str) -> Any:
    if name not in NETWORKS:
        raise UnsupportedError(
            f"there is no network {name!r}, only host and none",
            hint="with --network host a server in the container is one of this machine; "
            "for networks of containers use containerd with `lamina snapshotter`",
        )
    return name


def _host_namespaces(args: argparse.Namespace) -> frozenset[str]:
    found = set()
    for option, kind in (("pid", "pid"), ("ipc", "ipc"), ("uts", "uts"), ("cgroupns", "cgroup")):
        wanted = getattr(args, option)
        if wanted == "host":
            found.add(kind)
        elif wanted not in ("private", ""):
            raise UnsupportedError(
                f"--{option} {wanted} is not supported",
                hint="host or private; containers that share namespaces are a pod of "
                "containerd, with `lamina snapshotter`",
            )
    return frozenset(found)


def _names_and_sizes(args: argparse.Namespace) -> dict[str, Any]:
    from lamina.serve.container_options import SHM_BYTES, NameResolution

    def given(texts: list[str] | None) -> tuple[str, ...] | None:
        return None if texts is None else tuple(texts)

    adjustment = args.oom_score_adj
    return {
        "names": NameResolution(
            servers=given(args.dns),
            search=given(args.dns_search),
            options=given(args.dns_option),
            hosts=tuple(values.host(text) for text in args.add_host),
        ),
        "shm_bytes": SHM_BYTES if args.shm_size is None else values.byte_count(args.shm_size),
        "oom_score_adjustment": None if adjustment is None else values.count(adjustment),
    }


def _limits(args: argparse.Namespace) -> ResourceLimits:
    from lamina.serve.container_resources import CPU_PERIOD_US, ResourceLimits

    def number(text: str | None) -> int | None:
        return None if text is None else values.count(text)

    def size(text: str | None) -> int | None:
        return None if text is None else values.byte_count_or_all(text)

    quota, period = number(args.cpu_quota), number(args.cpu_period)
    if args.cpus is not None:
        if quota is not None or period is not None:
            raise UsageError("--cpus goes without --cpu-quota and --cpu-period")
        quota, period = values.cpu_quota_us(args.cpus), CPU_PERIOD_US
    memory, swap = size(args.memory), size(args.memory_swap)
    if swap is not None and swap != -1 and (memory is None or swap < memory):
        raise UsageError(
            "--memory-swap is memory and swap together, and no less than --memory",
            hint="write --memory 1g --memory-swap 2g",
        )
    return ResourceLimits(
        memory_bytes=memory,
        reservation_bytes=size(args.memory_reservation),
        swap_bytes=swap,
        pids=number(args.pids_limit),
        cpu_quota_us=quota,
        cpu_period_us=period,
        cpu_shares=number(args.cpu_shares),
        cpus=args.cpuset_cpus,
        memory_nodes=args.cpuset_mems,
        io_weight=number(args.blkio_weight),
    )


def _security(texts: list[str]) -> dict[str, Any]:
    """Return the fields of ContainerOptions that ``--security-opt`` says."""
    found: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.replace(":", "=", 1).partition("=")
        if name == "no-new-privileges" and value in ("", "true", "false"):
            found["no_new_privileges"] = value != "false"
        elif (name, value) == ("seccomp", "unconfined"):
            found["seccomp"] = False
        elif (name, value) == ("systempaths", "unconfined"):
            found["hide_system_paths"] = False
        elif (name, value) not in (("apparmor", "unconfined"), ("label", "disable")):
            raise UnsupportedError(
                f"--security-opt {text} is not supported",
                hint="no-new-privileges, seccomp=unconfined and systempaths=unconfined are; "
                "profiles of one's own go with containerd and `lamina snapshotter`",
            )
    return found
