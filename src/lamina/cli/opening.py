"""From what a user wrote to an opened image: a folder, a native image, or an OCI image as it is."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lamina.cli import console
from lamina.cli.options import client_options, pair_options
from lamina.errors import NotFoundError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lamina.content.lazy_image import LazyImage
    from lamina.image.base import Image
    from lamina.image.errors import NoIndexError
    from lamina.oci.start_manifest import StartRule
    from lamina.opening.open_image import Opening
    from lamina.opening.place import Place
    from lamina.opening.request import OpenRequest
    from lamina.opening.version import Version
    from lamina.registry.repository import Repository
    from lamina.store.node import NodeStore


def node_store(args: argparse.Namespace) -> NodeStore:
    """Return the store that ``--store`` and ``--store-budget`` say.  Raises StoreError,
    UsageError.
    """
    from pathlib import Path

    from lamina.store.node import NodeStore

    root = Path(args.store) if args.store is not None else None
    return NodeStore(root, budget=args.store_budget)


def open_request(
    args: argparse.Namespace,
    image: str,
    *,
    refresh: bool = False,
    start: StartRule | None = None,
) -> OpenRequest:
    """Return what the command line and the environment say of *image*, with nothing to ask later.

    Raises UsageError.
    """
    from lamina.cli.broker_options import key_broker
    from lamina.opening.request import OpenRequest
    from lamina.trust import providers_file

    return OpenRequest(
        reference=image,
        platform=args.platform,
        index=args.index,
        pull=args.pull,
        refresh=refresh or args.pull == "always",
        decryption_keys=tuple(args.decryption_key),
        key_providers=providers_file(),
        key_broker=key_broker(args),
        policy=args.policy,
        allow_older=args.allow_older,
        client=client_options(args),
        store=args.store,
        store_budget=args.store_budget,
        blob_dirs=tuple(args.blob_dir),
        start=start,
    )


def is_folder(text: str) -> bool:
    """Tell whether what a user wrote is a path, which no reference without a transport can be."""
    return text in (".", "..") or text.startswith(("/", "./", "../"))


def open_native(args: argparse.Namespace, image: str) -> LazyImage:
    """Open a native image, or an ordinary one by its index, as ``--index`` says.

    Raises NoIndexError with a hint for an ordinary image without an index.
    """
    with begin_opening(open_request(args, image)) as opening:
        return opening.open(opening.version())


def begin_opening(request: OpenRequest) -> AbstractContextManager[Opening]:
    """Begin to open an image, for a verb that does something between the steps.

    With keys this process is protected from being looked into.
    """
    from lamina.opening.open_image import begin

    if request.has_keys:
        from lamina.cli.key_options import protect_process

        protect_process()
    return begin(request, indexer=index_and_tell)


def index_and_tell(place: Place, request: OpenRequest, version: Version) -> None:
    """Index an image on this node, and show how far that is: an
    :class:`~lamina.opening.open_image.Indexer`.
    """
    from lamina.build.node_index import index_here
    from lamina.cli.progress import open_meter, phase_bars

    with open_meter() as meter:
        index_here(place, request, version, phase_bars(meter))


@contextmanager
def open_pair(args: argparse.Namespace) -> Iterator[tuple[Repository, Repository]]:
    """SRC for reading and DST for writing.  Raises what opening them raises."""
    from lamina.oci.reference import parse_reference
    from lamina.registry.open_repository import open_repository

    source_options, destination_options = pair_options(args)
    source, destination = parse_reference(args.source), parse_reference(args.destination)
    with (
        open_repository(source, options=source_options) as origin,
        open_repository(destination, write=True, options=destination_options) as target,
    ):
        yield origin, target


def open_any(args: argparse.Namespace, text: str) -> Image:
    """Open a folder, a native image or an ordinary OCI image, whatever the text names.

    An ordinary image without an index is unpacked for it, in the version that was looked at.
    """
    if is_folder(text):
        return open_folder(text)
    from lamina.image.errors import NoIndexError

    with begin_opening(open_request(args, text)) as opening:
        version = opening.version()
        try:
            return opening.open(version)
        except NoIndexError as error:
            from lamina.build.source_image import open_source_image

            tell_unusable(error)
            client, platform = opening.request.client, opening.request.platform
            return open_source_image(version.reference, options=client, platform=platform)


def tell_unusable(error: NoIndexError) -> None:
    """Warn of an index that was passed over, where the image is used without one."""
    from lamina.image.errors import UnusableIndexError

    if isinstance(error, UnusableIndexError):
        console.warning(str(error))


def open_folder(path: str) -> Image:
    """Open a folder of the machine as an image."""
    from lamina.image.folder import FolderImage

    if not os.path.isdir(path):
        raise NotFoundError(
            f"there is no folder {path}", hint="an OCI layout is written oci:DIR:TAG"
        )
    return FolderImage(path)
