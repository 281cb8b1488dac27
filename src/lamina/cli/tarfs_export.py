"""``lamina export --layout tarfs``: a layer as metadata over its archive."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from lamina.cli import console
from lamina.cli.options import client_options
from lamina.cli.output import human_size, print_json


def export_tarfs(args: Namespace, path: Path) -> None:
    """Write them, and tell how they are mounted."""
    from lamina.build.tar_disk import write_tar_disk
    from lamina.oci.reference import parse_reference
    from lamina.registry.open_repository import open_repository

    tar = None if args.tar_file is None else Path(args.tar_file)
    where = parse_reference(args.image)
    with open_repository(where, options=client_options(args)) as repository:
        made = write_tar_disk(repository, args.platform, args.layer, path, tar)
    if args.json:
        facts = {"size": made.index_bytes, "tar_size": made.tar_bytes, "diff_id": made.diff_id}
        print_json({"disk": args.disk, "tar_file": args.tar_file or args.disk, **facts})
        return
    sizes = f"{human_size(made.index_bytes)} over {human_size(made.tar_bytes)}"
    console.info(f"{args.disk}: {sizes}, the archive {made.diff_id}")
