"""The configuration of a node's containerd, told of the snapshotter, looked at, and given back.

What containerd makes of a file it says itself (``containerd config dump``); a file that it does not
understand as it is meant is not put in place.  An import of another file would not do: containerd
1.6 takes the plugin of one file for all of it, and forgets what the others say of it.  Sources:
containerd, ``docs/ops.md`` and ``docs/cri/config.md``; ``plugins/transfer/plugin.go``.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from lamina.containerd.toml_text import Setting, Value, parsed, with_settings, without_changes
from lamina.errors import Error, NotFoundError, StoreError, UnsupportedError, os_hint
from lamina.oci.platform import host_platform

NAME: Final = "lamina"
_CRI_1: Final = ("plugins", "io.containerd.grpc.v1.cri", "containerd")
_CRI_2: Final = ("plugins", "io.containerd.cri.v1.images")
_RUNTIMES: Final = (*_CRI_1, "runtimes")
_TRANSFER: Final = ("plugins", "io.containerd.transfer.v1.local")
_NATIVE_TYPES: Final = (
    "application/vnd.oci.image.layer.nydus.blob.v1",
    "application/vnd.oci.image.layer.lamina.sealed.blob.v1",
)
_NO_NATIVE: Final = (
    "echo 'only lamina can read this image: pull it by `lamina ctr-pull IMAGE`' >&2; "
    "sleep 2 2>&- & exit 1"
)
_ASK_S: Final = 60.0


class RefusedConfigError(Error):
    """containerd does not take a configuration, or understands it otherwise."""


class Node(NamedTuple):
    """The file of a containerd, its program, and the snapshotter's socket."""

    config: Path
    program: str
    socket: str


def install(node: Node) -> str:
    """Write the settings into the file, unless it has them, and return containerd's version.

    Raises what reading, changing and writing the file raises, NotFoundError if there is no such
    program, and RefusedConfigError if the file would not have the effect.
    """
    major, version = _version(node.program)
    before = _read(node.config)
    clean = None if before is None else without_changes(before)
    form = _form(clean, major)
    new = with_settings(clean, form, settings(form, major, node.socket, clean))
    with _beside(node.config, new) as draft:
        _require_effect(_dumped(node.program, draft), node.socket, major)
        if new != before:
            _replace(draft, node.config)
    return version


def undo(node: Node) -> bool:
    """Give the file back as it was before; tell whether there was something to undo."""
    before = _read(node.config)
    clean = None if before is None else without_changes(before)
    if clean == before:
        return False
    if clean is None:
        node.config.unlink()
    else:
        with _beside(node.config, clean) as draft:
            _replace(draft, node.config)
    return True


def settings(form: int, major: int, socket: str, text: str | None = None) -> list[Setting]:
    """Return what a file of a form of configuration says to a containerd of a major version."""
    plugin = ("proxy_plugins", NAME)
    found = [Setting(plugin, "type", "snapshot"), Setting(plugin, "address", socket)]
    if major < 2:
        decoder = ("stream_processors", NAME)
        return [
            *found,
            Setting(_CRI_1, "snapshotter", NAME),
            Setting(_CRI_1, "disable_snapshot_annotations", value=False),
            Setting(decoder, "accepts", list(_NATIVE_TYPES)),
            Setting(decoder, "returns", "application/vnd.oci.image.layer.v1.tar"),
            Setting(decoder, "path", "/bin/sh"),
            Setting(decoder, "args", ["-c", _NO_NATIVE]),
        ]
    exports = (*plugin, "exports")
    platform = str(host_platform())
    there = _snapshotters(parsed(text or ""))
    # A list in the file takes the place of containerd's own, which `ctr` by itself asks for.
    names = [] if NAME in there else [NAME] if there else [NAME, "overlayfs"]
    unpacked: list[Value] = [{"platform": platform, "snapshotter": each} for each in names]
    return [
        *found,
        Setting(plugin, "capabilities", ["remap-ids"]),
        Setting(exports, "enable_remote_snapshot_annotations", "true"),
        *_cri_settings(form, parsed(text or "")),
        *([Setting(_TRANSFER, "unpack_config", unpacked, added=True)] if unpacked else []),
    ]


def _cri_settings(form: int, there: Mapping[str, Any]) -> list[Setting]:
    """Return what CRI's plugins of containerd 2 are told."""
    if form >= 3:
        return [Setting(_CRI_2, "snapshotter", NAME)]
    found = [Setting(_CRI_1, "snapshotter", NAME)]
    if not _at(there, _RUNTIMES):
        # Without a table of runtimes containerd 2.4 does not move this setting to where it is now.
        found.append(Setting((*_RUNTIMES, "runc"), "runtime_type", "io.containerd.runc.v2"))
    return found


def _form(text: str | None, major: int) -> int:
    """Return the ``version`` of a configuration.  Raises UnsupportedError for the oldest."""
    if text is None or not parsed(text):
        return 2 if major < 2 else 3
    form = parsed(text).get("version", 1)
    if not isinstance(form, int) or form < 2:
        raise UnsupportedError(
            "the configuration is of version 1, whose plugins have other names",
            hint="`containerd config migrate` writes it anew, with version = 2 or later",
        )
    return form


def _require_effect(dump: Mapping[str, Any], socket: str, major: int) -> None:
    """Raise RefusedConfigError if containerd would not use the snapshotter by CRI."""
    cri = _CRI_1 if dump.get("version") == 2 else _CRI_2
    wanted: list[tuple[tuple[str, ...], object]] = [
        (("proxy_plugins", NAME, "type"), "snapshot"),
        (("proxy_plugins", NAME, "address"), socket),
        ((*cri, "snapshotter"), NAME),
    ]
    if major < 2:
        wanted.append(((*cri, "disable_snapshot_annotations"), False))
    for path, value in wanted:
        if _at(dump, path) != value:
            raise RefusedConfigError(
                f"containerd understands {'.'.join(path)} as {_at(dump, path)!r}, not {value!r}",
                hint="see whether another file is imported that has this plugin too",
            )
    if major >= 2 and NAME not in _snapshotters(dump):
        raise RefusedConfigError(
            "containerd's transfer service does not have lamina in its unpack_config",
            hint="see whether another file is imported that has this plugin too",
        )


def _snapshotters(data: Mapping[str, Any]) -> list[Any]:
    """Return which snapshotters the transfer service unpacks for, that a configuration names."""
    found = _at(data, (*_TRANSFER, "unpack_config"))
    tables = found if isinstance(found, list) else []
    return [each.get("snapshotter") for each in tables if isinstance(each, Mapping)]


def _at(data: Any, path: Sequence[str]) -> Any:
    for name in path:
        data = data.get(name) if isinstance(data, Mapping) else None
    return data


def _version(program: str) -> tuple[int, str]:
    """Return the major version of containerd, and the whole one."""
    said = _ask([program, "--version"])
    # "containerd github.com/containerd/containerd/v2 v2.4.2 REVISION", "... 1.6.20~ds1 ..."
    match = re.search(r"\sv?((\d+)\.\d+\.\S+)", said)
    if match is None:
        raise UnsupportedError(f"{program} does not say which version of containerd it is")
    return int(match[2]), match[1]


def _dumped(program: str, config: Path) -> dict[str, Any]:
    return parsed(_ask([program, "--config", str(config), "config", "dump"]))


def _ask(command: Sequence[str]) -> str:
    """Return what a program prints.  Raises NotFoundError and RefusedConfigError."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_S,
            text=True,
            check=False,
        )
    except OSError as error:
        raise NotFoundError(
            f"cannot start {command[0]}: {error.strerror}",
            hint="name containerd's program with --containerd-program",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise RefusedConfigError(f"{command[0]} does not end") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RefusedConfigError(f"containerd does not take the configuration: {lines[-1]:.500}")
    return done.stdout


def _read(path: Path) -> str | None:
    try:
        # As bytes, or ends of lines would change.
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise RefusedConfigError(f"{path} is not UTF-8, as TOML is") from error
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}", hint=os_hint(error)) from error


@contextlib.contextmanager
def _beside(path: Path, text: str) -> Iterator[Path]:
    """Have a file with a text in the folder of another one, where its imports lead to the same."""
    path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(number, "wb") as file:
            file.write(text.encode())
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}", hint=os_hint(error)) from error
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _replace(draft: Path, path: Path) -> None:
    """Put a draft in place, with owner and mode of what was there."""
    try:
        target = Path(os.path.realpath(path))
        os.chmod(draft, 0o644)
        with contextlib.suppress(FileNotFoundError):
            status = target.stat()
            os.chown(draft, status.st_uid, status.st_gid)
            os.chmod(draft, status.st_mode & 0o7777)
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, target)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}", hint=os_hint(error)) from error
