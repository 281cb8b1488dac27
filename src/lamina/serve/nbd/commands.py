"""Command lines by which virtual machines take a disk over NBD, as a shell reads them.

QEMU retries nothing by itself: without ``reconnect-delay`` a server that is replaced is an I/O
error in the guest, and without ``read-only`` the export is refused.  What cannot speak NBD takes
the disk by vhost-user from ``qemu-storage-daemon``, or as a file.  That daemon has one queue, and
a machine with more processors asks for more unless it is told.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Final, NamedTuple

RECONNECT_S: Final = 60


class DiskAddress(NamedTuple):
    """Where a disk is served: on a unix socket, or on ``host`` and ``port``."""

    path: str = ""
    host: str = ""
    port: int = 0
    name: str = ""
    tls_folder: str = ""
    """Where the client has its certificates, if the disk is served with TLS."""


def machine_commands(machine: str, address: DiskAddress, image: str) -> str:
    """Return the lines for one of :data:`MACHINES`."""
    return MACHINES[machine](address, image)


def _qemu(address: DiskAddress, _image: str) -> str:
    node = _blockdev(address)
    words = ["qemu-system-x86_64", *_tls(address), "-blockdev", node]
    return _shown([*words, "-device", "virtio-blk-pci,drive=image"])


def _storage_daemon(address: DiskAddress, _image: str) -> str:
    words = ["qemu-storage-daemon", *_tls(address, "--"), "--blockdev", _blockdev(address)]
    export = "type=vhost-user-blk,id=image,node-name=image,addr.type=unix,addr.path=vhost.sock"
    return _shown([*words, "--export", export])


def _vhost_qemu(address: DiskAddress, image: str) -> str:
    words = ["qemu-system-x86_64", "-object", "memory-backend-memfd,id=memory,size=1G,share=on"]
    words += ["-m", "1G", "-numa", "node,memdev=memory"]
    words += ["-chardev", "socket,id=image,path=vhost.sock"]
    words += ["-device", "vhost-user-blk-pci,chardev=image,num-queues=1"]
    return f"{_storage_daemon(address, image)}\n{_shown(words)}"


def _cloud_hypervisor(address: DiskAddress, image: str) -> str:
    words = ["cloud-hypervisor", "--memory", "size=1G,shared=on"]
    words += ["--disk", "vhost_user=on,socket=vhost.sock,num_queues=1"]
    return f"{_storage_daemon(address, image)}\n{_shown(words)}"


def _firecracker(_address: DiskAddress, image: str) -> str:
    drive = (
        '{"drive_id":"image","path_on_host":"image.img","is_root_device":false,"is_read_only":true}'
    )
    words = ["curl", "--unix-socket", "firecracker.sock", "-X", "PUT", "-d", drive]
    words += ["http://localhost/drives/image"]
    return f"{_shown(['lamina', 'export', image, 'image.img'])}\n{_shown(words)}"


def _blockdev(address: DiskAddress) -> str:
    server = [("type", "inet"), ("host", address.host), ("port", str(address.port))]
    if address.path:
        server = [("type", "unix"), ("path", address.path)]
    options = [("driver", "nbd"), ("node-name", "image")]
    options += [(f"server.{key}", value) for key, value in server]
    if address.name:
        options.append(("export", address.name))
    if address.tls_folder:
        options.append(("tls-creds", "tls"))
        if address.path:
            # The name that must be in the certificate, which a path does not say.
            options.append(("tls-hostname", "localhost"))
    options += [("read-only", "on"), ("reconnect-delay", str(RECONNECT_S))]
    # A comma ends a value of QEMU's unless it is doubled.
    return ",".join(f"{key}={value.replace(',', ',,')}" for key, value in options)


def _tls(address: DiskAddress, dashes: str = "-") -> list[str]:
    if not address.tls_folder:
        return []
    folder = address.tls_folder.replace(",", ",,")
    return [f"{dashes}object", f"tls-creds-x509,id=tls,endpoint=client,dir={folder}"]


def _shown(words: list[str]) -> str:
    return shlex.join(words)


MACHINES: Final[dict[str, Callable[[DiskAddress, str], str]]] = {
    "qemu": _qemu,
    "qemu-vhost-user": _vhost_qemu,
    "qemu-storage-daemon": _storage_daemon,
    "cloud-hypervisor": _cloud_hypervisor,
    "firecracker": _firecracker,
}
"""How each virtual machine takes the disk."""
