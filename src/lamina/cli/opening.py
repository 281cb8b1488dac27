"""From what a user wrote to an opened image: a folder, a native image, or an OCI image as it is."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from lamina.cli.options import client_options
from lamina.errors import NotFoundError, UnsupportedError

if TYPE_CHECKING:
    from lamina.image.base import Image
    from lamina.image.native import NativeImage
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


def open_native(args: argparse.Namespace, reference: str) -> NativeImage:
    """Open a native image by its reference.  Raises UnsupportedError with a hint if it is not
    native.
    """
    from lamina.image.open import open_image

    return open_image(
        reference,
        store=node_store(args),
        options=client_options(args),
        platform=args.platform,
    )


def open_any(args: argparse.Namespace, text: str) -> Image:
    """Open a folder, a native image or an ordinary OCI image, whatever the text names."""
    if is_folder(text):
        return open_folder(text)
    try:
        return open_native(args, text)
    except UnsupportedError:
        from lamina.build.source_image import open_source_image

        return open_source_image(text, options=client_options(args), platform=args.platform)


def open_folder(path: str) -> Image:
    """Open a folder of the machine as an image."""
    from lamina.image.folder import FolderImage

    if not os.path.isdir(path):
        raise NotFoundError(
            f"there is no folder {path}", hint="an OCI layout is written oci:DIR:TAG"
        )
    return FolderImage(path)
