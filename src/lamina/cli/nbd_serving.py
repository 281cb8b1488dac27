"""``lamina serve nbd``: an image as a disk over NBD."""

from __future__ import annotations

import contextlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.cli import console
from lamina.cli.end_signals import held_end_signals
from lamina.cli.output import print_json, print_line
from lamina.cli.start_options import start_rule
from lamina.errors import TrustError, UsageError

if TYPE_CHECKING:
    import socket
    import ssl

    from lamina.block.base import Disk
    from lamina.block.hash_area import VerityDisk
    from lamina.content.lazy_image import LazyImage
    from lamina.registry.repository import Repository
    from lamina.serve.nbd.server import NbdServer


def serve_nbd(args: Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    _check(args)
    if args.print_command is not None:
        print_line(_machine_commands(args))
        return 0
    tls = _tls(args)
    activated = _activated(args)
    with (
        held_end_signals() as wait_for_end,
        _opened(args) as (image, repository, root),
        _server(args, _disk(args, image, repository, root), tls, activated) as server,
    ):
        end_record = _begin_record(args, image)
        server.start()
        # Afterwards a second signal ends it: a registry that is silent is not waited for twice.
        wait_for_end()
        if args.socket is not None:
            with contextlib.suppress(OSError):
                os.unlink(args.socket)
        end_record()
    return 0


def _begin_record(args: Namespace, image: LazyImage) -> Callable[[], None]:
    if args.record is None:
        return lambda: None
    from lamina.cli.recording import record_into

    return record_into(image, args.record)


def _check(args: Namespace) -> None:
    if args.socket is not None and args.listen is not None:
        raise UsageError("--socket and --listen exclude each other")
    if args.verity and args.hash_file is not None:
        raise UsageError("--verity and --hash-file exclude each other")
    if (args.verity or args.hash_file is not None) and args.layout != "plain":
        raise UsageError("a hash tree is served with the plain layout only")
    if args.file is not None and (
        args.verity or args.hash_file is not None or args.layout != "plain"
    ):
        raise UsageError("a --file is served as it is, without a hash tree or a layout")
    if args.root_hash is not None and not args.verity and args.hash_file is None:
        raise UsageError("--root-hash goes with --verity or --hash-file")
    if args.tls_verify_peer and args.tls_certificates is None:
        raise UsageError("--tls-verify-peer goes with --tls-certificates")
    if args.tls_certificates is not None and args.tls_psk is not None:
        raise UsageError("--tls-certificates and --tls-psk exclude each other")


def _machine_commands(args: Namespace) -> str:
    from lamina.cli.broker_serving import listen_address
    from lamina.serve.nbd.commands import DiskAddress, machine_commands

    folder = args.tls_certificates or ""
    if args.listen is not None:
        host, port = listen_address(args.listen)
        address = DiskAddress(host=host, port=port, name=args.name, tls_folder=folder)
    elif args.socket is not None or args.print_command == "firecracker":
        path = os.path.abspath(args.socket or "")
        address = DiskAddress(path=path, name=args.name, tls_folder=folder)
    else:
        raise UsageError("one of --socket and --listen says where the disk is served")
    return machine_commands(args.print_command, address, args.served[0])


@contextmanager
def _opened(args: Namespace) -> Iterator[tuple[LazyImage, Repository, bytes | None]]:
    """Open the image, by its place, and say which root hash its tree must have."""
    from lamina.cli.opening import begin_opening, open_request

    with begin_opening(open_request(args, args.served[0], start=start_rule(args))) as opening:
        version = opening.version()
        root = _root_hash(args, version.disk_root)
        with closing(opening.open(version)) as image:
            yield image, opening.place.repository, root


def _root_hash(args: Namespace, signed: str | None) -> bytes | None:
    """Return the root hash that is given or signed; raises TrustError if these are two."""
    from lamina.oci.verity_manifest import ROOT_HASH

    given: str | None = args.root_hash
    if given is not None and not ROOT_HASH.fullmatch(given):
        raise UsageError("--root-hash is the 64 or 128 digits that `lamina export` printed")
    if given is not None and signed is not None and given != signed:
        raise TrustError(f"the signature of the image states the root hash {signed}, not {given}")
    chosen = given or signed
    return None if chosen is None else bytes.fromhex(chosen)


def _disk(
    args: Namespace, image: LazyImage, repository: Repository, root: bytes | None
) -> tuple[Disk, VerityDisk | None]:
    """Return the disk, with its hash tree if that is wanted: all of the tree is here then."""
    from lamina.block.disk import DiskView
    from lamina.block.hash_area import read_hash_file
    from lamina.erofs.flatten import Layout
    from lamina.opening.hash_tree import find_hash_tree

    if args.file is not None:
        from lamina.block.file_view import FileView

        file = FileView(image, args.file)
        file.open_blobs()
        return file, None
    view = DiskView(image, Layout(args.layout))
    view.open_blobs()
    if args.hash_file is not None:
        area = read_hash_file(Path(args.hash_file), root)
    elif args.verity:
        area = find_hash_tree(repository, image, root)
    else:
        return view, None
    return area.behind(view)


def _server(
    args: Namespace,
    disk: tuple[Disk, VerityDisk | None],
    tls: ssl.SSLContext | None,
    activated: socket.socket | None,
) -> NbdServer:
    """Return the server, with its socket, and announced."""
    from lamina.serve.nbd.connection import Served
    from lamina.serve.nbd.listening import disk_uri
    from lamina.serve.nbd.negotiation import Export
    from lamina.serve.nbd.server import NbdServer

    served, verity = disk
    export = Export(os.fsencode(args.name), served.size_bytes)
    listening = activated or _listen(args)
    server = NbdServer(listening, Served(served, export, args.give_up_after, tls))
    uri = disk_uri(listening, args.name, tls=tls is not None)
    if args.json:
        told = {"uri": uri, "size": served.size_bytes}
        print_json(told if verity is None else told | verity.facts("DISK", "DISK"))
        sys.stdout.flush()
    console.info(f"serving {args.served[0]} as a disk on {uri}")
    if verity is not None:
        console.info(f"dmsetup table: {verity.table('DISK', 'DISK')}")
    return server


def _tls(args: Namespace) -> ssl.SSLContext | None:
    if args.tls_certificates is not None:
        from lamina.serve.nbd.tls import certificate_context

        return certificate_context(Path(args.tls_certificates), verify_client=args.tls_verify_peer)
    if args.tls_psk is not None:
        from lamina.serve.nbd.tls import key_context

        return key_context(Path(args.tls_psk))
    return None


def _activated(args: Namespace) -> socket.socket | None:
    from lamina.serve.nbd.listening import take_activated

    if args.socket is not None or args.listen is not None:
        return None
    activated = take_activated(is_guarded=_is_guarded(args))
    if activated is None:
        raise UsageError(
            "nothing says where to serve", hint="--socket, --listen, or a socket unit of systemd"
        )
    return activated


def _listen(args: Namespace) -> socket.socket:
    from lamina.cli.broker_serving import listen_address
    from lamina.serve.nbd.listening import listen_tcp, listen_unix

    if args.socket is not None:
        return listen_unix(args.socket)
    return listen_tcp(*listen_address(args.listen), is_guarded=_is_guarded(args))


def _is_guarded(args: Namespace) -> bool:
    """Tell whether clients prove who they are."""
    return args.tls_verify_peer or args.tls_psk is not None
