"""``lamina convert --layers``: the same layers as EROFS file systems."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli.output import human_size, print_json, print_line, print_table
from lamina.errors import UsageError

if TYPE_CHECKING:
    from lamina.build.erofs_layers import ErofsImage
    from lamina.http.client_options import ClientOptions
    from lamina.oci.manifest import Descriptor
    from lamina.oci.reference import Reference

_OF_NATIVE_IMAGES: Final = (
    *("chunk_size", "pack", "compressor", "level", "digester", "prefetch", "profile"),
    *("profile_name", "jobs", "seal", "encryption_key", "tenant_key", "public_layer"),
    "decryption_key",
)


def convert_to_erofs(
    args: Namespace,
    source: tuple[Reference, ClientOptions],
    destination: tuple[Reference, ClientOptions],
) -> None:
    """Convert, and tell what became of it.  Raises UsageError for options of native images."""
    from lamina.build.erofs_layers import ErofsOptions, convert_layers
    from lamina.registry.open_repository import open_repository

    for option in _OF_NATIVE_IMAGES:
        if getattr(args, option):
            raise UsageError(f"--{option.replace('_', '-')} is of native images, not of --layers")
    options = ErofsOptions(args.layers == "erofs+zstd", tuple(args.platform), args.work_dir)
    with (
        open_repository(source[0], options=source[1]) as origin,
        open_repository(destination[0], write=True, options=destination[1]) as target,
    ):
        pushed, images = convert_layers(origin, target, options)
    if args.json:
        _print_json(args.destination, pushed, images)
    else:
        _print_text(pushed, images)


def _print_json(reference: str, pushed: Descriptor, images: list[ErofsImage]) -> None:
    shown = [
        {
            "platform": image.platform,
            "source_digest": image.source_digest,
            "manifest_digest": image.manifest.digest,
            "layers": [
                {
                    "source_digest": layer.source_digest,
                    "blob_digest": layer.descriptor.digest,
                    "blob_bytes": layer.descriptor.size,
                    "diff_id": layer.diff_id,
                }
                for layer in image.layers
            ],
        }
        for image in images
    ]
    document = {"reference": reference, "digest": pushed.digest, "media_type": pushed.media_type}
    print_json({**document, "images": shown})


def _print_text(pushed: Descriptor, images: list[ErofsImage]) -> None:
    for image in images:
        print_line(f"{image.platform or 'image'} {image.manifest.digest}")
        rows = [("", "blob")]
        for number, layer in enumerate(image.layers):
            rows.append((f"  layer {number}", human_size(layer.descriptor.size)))
        print_table(rows, right=frozenset((1,)))
    print_line(pushed.digest)
