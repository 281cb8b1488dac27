"""From what a user wrote to an opened image: a folder, a native image, or an OCI image as it is."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lamina.cli import story
from lamina.cli.options import client_options, pair_options
from lamina.errors import NotFoundError

if TYPE_CHECKING:
    from lamina.image.access import Access
    from lamina.image.base import Image
    from lamina.image.errors import NoIndexError
    from lamina.image.native import NativeImage
    from lamina.registry.reference import Reference
    from lamina.registry.repository import ClientOptions, Repository
    from lamina.store.node import NodeStore


def node_store(args: argparse.Namespace) -> NodeStore:
    """The store that ``--store`` and ``--store-budget`` say.  Raises StoreError, UsageError."""
    from pathlib import Path

    from lamina.store.node import NodeStore

    root = Path(args.store) if args.store is not None else None
    return NodeStore(root, budget=args.store_budget)


def is_folder(text: str) -> bool:
    """Whether what a user wrote is a path, which no reference without a transport can be."""
    return text in (".", "..") or text.startswith(("/", "./", "../"))


def open_native(
    args: argparse.Namespace,
    reference: str | Reference,
    access: Access | None = None,
    *,
    refresh: bool = False,
) -> NativeImage:
    """Open a native image, or an ordinary one by its index, as ``--index`` says.

    *access* is what :func:`proven` returned with the reference; without it keys and policy are read
    here.  Raises NoIndexError with a hint for an ordinary image without an index.
    """
    store, options, access = node_store(args), client_options(args), access or image_access(args)
    if args.index == "always":
        return _open_always(args, (reference, refresh), store, options, access)
    from lamina.image.open import open_image

    return open_image(
        reference,
        store=store,
        options=options,
        platform=args.platform,
        index=args.index,
        refresh=refresh,
        access=access,
    )


def image_access(args: argparse.Namespace) -> Access | None:
    """The keys and the policy that the command line and the environment give.

    With keys this process is protected from being looked into.  Raises what reading them raises.
    """
    from lamina.cli.broker_options import brokers
    from lamina.image.access import read_access

    access = read_access(
        args.decryption_key, args.policy, brokers(args), allow_older=args.allow_older
    )
    if access is not None and access.keys:
        from lamina.cli.key_options import protect_process

        protect_process()
    return access


def proven(
    args: argparse.Namespace, text: str, *, refresh: bool = False
) -> tuple[Reference, Access | None]:
    """What *text* names, by the digest that ``--policy`` accepts if there is one, and the keys for
    it: whoever reads it reads what was proven, whatever the registry answers next.

    Raises TrustError, and what reading keys, policy, manifest and signatures raises.
    """
    from lamina.registry.reference import parse_reference

    where, access = parse_reference(text), image_access(args)
    if access is None or access.policy is None:
        return where, access
    from lamina.image.access import prove
    from lamina.registry.repository import open_repository

    with open_repository(where, options=client_options(args)) as repository:
        return prove(access, repository, node_store(args), where, refresh=refresh)


@contextmanager
def open_pair(args: argparse.Namespace) -> Iterator[tuple[Repository, Repository]]:
    """SRC for reading and DST for writing.  Raises what opening them raises."""
    from lamina.registry.reference import parse_reference
    from lamina.registry.repository import open_repository

    source_options, destination_options = pair_options(args)
    source, destination = parse_reference(args.source), parse_reference(args.destination)
    with (
        open_repository(source, options=source_options) as origin,
        open_repository(destination, write=True, options=destination_options) as target,
    ):
        yield origin, target


def _open_always(
    args: argparse.Namespace,
    wanted: tuple[str | Reference, bool],
    store: NodeStore,
    options: ClientOptions,
    access: Access | None,
) -> NativeImage:
    from lamina.build.node_index import open_always
    from lamina.cli.progress import Advance, open_meter

    with open_meter() as meter:
        steps: dict[str, Advance] = {}

        def show(step: str, total_bytes: int, done_bytes: int) -> None:
            if step not in steps:
                steps[step] = meter.add(step, total_bytes)
            steps[step](done_bytes)

        return open_always(
            wanted[0],
            store=store,
            options=options,
            platform=args.platform,
            refresh=wanted[1],
            access=access,
            progress=show,
        )


def open_any(args: argparse.Namespace, text: str) -> Image:
    """Open a folder, a native image or an ordinary OCI image, whatever the text names.

    An ordinary image without an index is unpacked for it.
    """
    if is_folder(text):
        return open_folder(text)
    from lamina.image.errors import NoIndexError

    where, access = proven(args, text)
    try:
        return open_native(args, where, access)
    except NoIndexError as error:
        from lamina.build.source_image import open_source_image

        tell_unusable(error)

        return open_source_image(where, options=client_options(args), platform=args.platform)


def tell_unusable(error: NoIndexError) -> None:
    """Warn of an index that was passed over, where the image is used without one."""
    from lamina.image.errors import UnusableIndexError

    if isinstance(error, UnusableIndexError):
        story.warn(str(error))


def open_folder(path: str) -> Image:
    """Open a folder of the machine as an image."""
    from lamina.image.folder import FolderImage

    if not os.path.isdir(path):
        raise NotFoundError(
            f"there is no folder {path}", hint="an OCI layout is written oci:DIR:TAG"
        )
    return FolderImage(path)
