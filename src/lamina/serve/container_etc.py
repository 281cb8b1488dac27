"""The files below ``/etc`` that a container gets from the host: names of hosts, and its own."""

from __future__ import annotations

import os
from typing import Final

from lamina.serve.container_options import ContainerOptions, NameResolution

HOSTS: Final = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def etc_files(options: ContainerOptions) -> dict[str, str]:
    """Return names under ``/etc`` that the host provides, with their texts."""
    files = {"hosts": HOSTS, "hostname": f"{options.hostname}\n"}
    names = options.names
    if options.network == "host":
        for name in ("hosts", "resolv.conf"):
            text = _host_file(f"/etc/{name}")
            if text is not None:
                files[name] = text
    files["hosts"] += "".join(f"{address}\t{host}\n" for host, address in names.hosts)
    if (names.servers, names.search, names.options) != (None, None, None):
        files["resolv.conf"] = _resolver(files.get("resolv.conf", ""), names)
    return files


def write_etc_files(bundle: str, options: ContainerOptions) -> None:
    """Write the files that are mounted below ``/etc`` into the existing folder ``bundle``."""
    for name, text in etc_files(options).items():
        write_file(os.path.join(bundle, name), text, 0o644)


def write_file(path: str, text: str, mode: int) -> None:
    """Write a text file of that mode, whatever the caller's umask: it is for others to read."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(fd, "w", errors="surrogateescape") as file:
        os.fchmod(fd, mode)
        file.write(text)


def _resolver(text: str, names: NameResolution) -> str:
    """Return resolv.conf(5) with what is given in the place of what it has of the same kind."""
    given = {"nameserver": names.servers, "search": names.search, "options": names.options}
    kept = []
    for line in text.splitlines():
        kind = line.split(maxsplit=1)[0] if line.strip() else ""
        if given.get("search" if kind == "domain" else kind) is None:
            kept.append(line)
    kept += [f"nameserver {server}" for server in names.servers or ()]
    if names.search is not None and names.search != (".",):
        kept.append(f"search {' '.join(names.search)}")
    if names.options:
        kept.append(f"options {' '.join(names.options)}")
    return "".join(f"{line}\n" for line in kept)


def _host_file(path: str) -> str | None:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return None
