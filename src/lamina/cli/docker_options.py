"""The options of ``docker run`` (28.2) in ``lamina run``: all of them, as they are or refused with
what to use instead.

``python -m lamina.cli.docker_options [--check] FILE`` writes the table of the documentation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

_NETWORK: Final = "--network host, where a server is one of this machine, or none"
_POD: Final = "containerd, with `lamina snapshotter`, has networks of containers"
_HEALTH: Final = "nobody asks for health; `lamina exec NAME COMMAND` does, from a timer or a script"
_WINDOWS: Final = "it is of Windows only"
_DISKS: Final = "--blkio-weight, or io.max of the control group by --cgroup-parent"
_LOG: Final = "`lamina logs` shows what it wrote, in CRI's form in the store"

REFUSED: Final = {
    "--attach": "the streams are those of lamina, and -i gives standard input; redirect the rest",
    "--blkio-weight-device": _DISKS,
    "--cpu-count": _WINDOWS,
    "--cpu-percent": _WINDOWS,
    "--cpu-rt-period": "--cpu-shares, or `chrt` in the container with --cap-add SYS_NICE",
    "--cpu-rt-runtime": "--cpu-shares, or `chrt` in the container with --cap-add SYS_NICE",
    "--detach-keys": "a terminal is never left; -d starts detached, and `lamina exec -it` enters",
    "--device-read-bps": _DISKS,
    "--device-read-iops": _DISKS,
    "--device-write-bps": _DISKS,
    "--device-write-iops": _DISKS,
    "--disable-content-trust": "digests are always proven, signatures with --policy FILE",
    "--gpus": "--device /dev/nvidia0 and -v for the driver's files, or --runtime with NVIDIA's",
    "--health-cmd": _HEALTH,
    "--health-interval": _HEALTH,
    "--health-retries": _HEALTH,
    "--health-start-interval": _HEALTH,
    "--health-start-period": _HEALTH,
    "--health-timeout": _HEALTH,
    "--io-maxbandwidth": _WINDOWS,
    "--io-maxiops": _WINDOWS,
    "--ip": _POD,
    "--ip6": _POD,
    "--isolation": _WINDOWS,
    "--kernel-memory": "--memory counts the kernel's memory too",
    "--link": f"--add-host NAME:127.0.0.1 on the host's network; {_POD}",
    "--link-local-ip": _POD,
    "--log-driver": _LOG,
    "--log-opt": _LOG,
    "--mac-address": _POD,
    "--memory-swappiness": "--memory-swap, the same size as --memory for no swap",
    "--network-alias": "--add-host NAME:127.0.0.1 on the host's network",
    "--oom-kill-disable": "--oom-score-adj",
    "--privileged": "what is needed: --cap-add ALL, --device /dev/NAME, --security-opt "
    "seccomp=unconfined, --security-opt systempaths=unconfined",
    "--publish": f"{_NETWORK}; its ports are this machine's, so none is published",
    "--publish-all": f"{_NETWORK}; its ports are this machine's, so none is published",
    "--restart": "a unit of systemd with Restart=, and `lamina run --rm` as its ExecStart=",
    "--sig-proxy": "signals are passed on without it; -d starts detached",
    "--storage-opt": "a quota of the file system that the store is on",
    "--use-api-socket": "there is no socket of a daemon",
    "--userns": "containerd has user namespaces, with `lamina snapshotter`",
    "--volume-driver": "mount it on the host, and show it with -v FOLDER:PATH",
    "--volumes-from": "-v FOLDER:PATH in both containers",
}
"""What to use instead of an option that there is not."""

SHORT: Final = {"-a": "--attach", "-p": "--publish", "-P": "--publish-all"}

SUPPORTED: Final = {
    "--add-host": "host-gateway is 127.0.0.1",
    "--annotation": "",
    "--blkio-weight": "",
    "--cap-add": "",
    "--cap-drop": "",
    "--cgroup-parent": "",
    "--cgroupns": "host or private",
    "--cidfile": "the name, which is the id",
    "--cpu-period": "",
    "--cpu-quota": "",
    "--cpu-shares": "also -c",
    "--cpus": "",
    "--cpuset-cpus": "",
    "--cpuset-mems": "",
    "--detach": "also -d",
    "--device": "a path; a word is how the kernel gets at the image",
    "--device-cgroup-rule": "",
    "--dns": "",
    "--dns-option": "",
    "--dns-search": "",
    "--domainname": "",
    "--entrypoint": "",
    "--env": "also -e",
    "--env-file": "",
    "--expose": "says nothing to anybody, as with docker's host network",
    "--group-add": "",
    "--help": "",
    "--hostname": "also -h",
    "--init": "with docker-init, tini-static or catatonit of this machine",
    "--interactive": "also -i",
    "--ipc": "host or private",
    "--label": "also -l",
    "--label-file": "",
    "--memory": "also -m",
    "--memory-reservation": "",
    "--memory-swap": "",
    "--mount": "type bind, tmpfs, or volume without a source",
    "--name": "",
    "--network": "host (what docker has to be told) or none; also --net",
    "--no-healthcheck": "there is none anyway",
    "--oom-score-adj": "",
    "--pid": "host or private",
    "--pids-limit": "",
    "--platform": "",
    "--pull": "also newer, which is the default",
    "--quiet": "also -q",
    "--read-only": "",
    "--rm": "",
    "--runtime": "a program, by name or path",
    "--security-opt": "no-new-privileges, seccomp=unconfined, systempaths=unconfined; without "
    "meaning apparmor=unconfined, label=disable",
    "--shm-size": "",
    "--stop-signal": "",
    "--stop-timeout": "",
    "--sysctl": "",
    "--tmpfs": "",
    "--tty": "also -t",
    "--ulimit": "",
    "--user": "also -u",
    "--uts": "host or private",
    "--volume": "also -v; a source is a path that exists, and there are no named volumes",
    "--workdir": "also -w",
}
"""What there is to say of an option that there is."""

_HEAD: Final = """\
# The options of docker run

<!-- Generated by `python -m lamina.cli.docker_options`; do not edit. -->

All options of `docker run` (28.2). What `lamina run` has, it means as docker does, but for what is
said here. What it has not, it refuses with the words of this table; no option is taken and ignored
that would matter.

| option | in `lamina run` | |
|---|---|---|
"""


def refused_options() -> dict[str, str]:
    """Return what to say of each spelling of an option that is refused."""
    return {**REFUSED, **{short: REFUSED[name] for short, name in SHORT.items()}}


def table() -> str:
    """Return the page of the documentation."""
    rows = []
    for name in sorted({*REFUSED, *SUPPORTED}):
        short = next((key for key, value in SHORT.items() if value == name), "")
        spelling = f"`{name}`" + (f", `{short}`" if short else "")
        if name in REFUSED:
            rows.append(f"| {spelling} | refused | {REFUSED[name]} |")
        else:
            rows.append(f"| {spelling} | yes | {SUPPORTED[name]} |")
    return _HEAD + "".join(f"{row}\n" for row in rows)


def main(arguments: Sequence[str]) -> int:
    """Write or check the file; return the exit code."""
    from lamina.cli.reference import write_or_check

    return write_or_check("lamina.cli.docker_options", table(), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
