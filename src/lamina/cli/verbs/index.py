"""``lamina index``."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any, Final

from lamina.cli.help_text import HelpPage
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    add_attaching_registry_options,
    add_output_options,
    byte_size,
    client_options,
)
from lamina.cli.output import human_size, print_json, print_line
from lamina.cli.parser import Parser
from lamina.cli.progress import open_meter
from lamina.posix.heap import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from lamina.build.index import IndexReport

HELP: Final = HelpPage(
    """
    Reads an ordinary OCI or Docker image once and attaches an index to it: the merged file tree,
    a digest of every chunk, and the points from which its layers can be decompressed. The image
    stays as it is and where it is; nothing of its data is stored again. From then on `lamina run`,
    `mount` and the others start it lazily by its own name.

    The index is pushed to the repository of the image, or into its layout folder. A registry with
    the referrers API lists it with the image; elsewhere the tag sha256-HEX, made of the image's
    digest, does. Of a multi-platform image all platforms are indexed, or those given.

    Layers of eStargz and zstd:chunked have tables of contents. Where the manifest pins all of them
    by digest and files are cut evenly, they are enough and the layers are not read; chunks are then
    those of the tables, of up to 4 MiB. With --scan, --chunk-size or --spacing the layers are read.

    With --layers the tree of each layer is attached as well, so that the layers can be served each
    by itself (`lamina serve content-cache`) or written out (`lamina export --layer`).

    An index vouches for nothing: whoever may push to the repository can attach one. It is bound to
    the image by digest, and `lamina check --data IMAGE` proves that it tells the truth.
    """,
    examples=(
        ("lamina index localhost:5000/node:20", "Index an image where it is."),
        ("lamina run localhost:5000/node:20 node -v", "Then start it before it has arrived."),
        ("lamina index --tag node-index oci:images:node", "Also give the index a name."),
        ("lamina index --spacing 1M IMAGE", "Smaller index, more bytes for each small file."),
    ),
    json_note="One object a line for every platform.",
    json_keys=(
        ("digest", "digest of the index"),
        ("source_digest", "digest of the image's manifest"),
        ("platform", "which platform it is for"),
        ("layer_bytes", "size of the image's layers"),
        ("index_bytes", "size of the index"),
        ("table_bytes", "list of the sizes of its tables, one a layer with data"),
        ("bootstrap_layer_bytes", "size of its file tree"),
        ("layer_trees_bytes", "with --layers: size of the trees of the layers, else 0"),
        ("by_table", "whether the layers' own tables of contents were enough"),
        ("table_problem", "why not, if there are some; else empty"),
        ("elapsed_s", "seconds it took"),
    ),
    environment=REGISTRY_ENVIRONMENT,
    see_also=("run", "mount", "check", "convert"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of an OCI or Docker image")
    group = parser.add_argument_group("Index options")
    add = group.add_argument
    add("--tag", metavar="TAG", help="tag to give the index, in the repository of the image")
    add("--chunk-size", metavar="SIZE", type=byte_size,
        help="largest chunk, a power of two from 4K to 8M (128K)")  # fmt: skip
    add("--spacing", metavar="SIZE", type=byte_size,
        help="least distance of two access points in a compressed layer (128K)")  # fmt: skip
    add("--scan", action="store_true",
        help="read the layers even where their tables of contents would do")  # fmt: skip
    add("--layers", action="store_true",
        help="attach the tree of each layer too, for `lamina serve content-cache`")  # fmt: skip
    add("--jobs", metavar="N", type=int, help="processes to use (one a processor)")
    add_attaching_registry_options(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Index the image, and tell what became of it."""
    from lamina.build.index import index_image
    from lamina.build.index_build import IndexOptions
    from lamina.oci.reference import parse_reference

    given = {"chunk_size": args.chunk_size, "spacing_bytes": args.spacing, "jobs": args.jobs}
    known: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    known["by_table"] = not (args.scan or args.chunk_size or args.spacing)
    keep_freed_memory()
    with open_meter() as meter:
        total: list[int] = []
        options = IndexOptions(
            platforms=tuple(args.platform),
            layer_trees=args.layers,
            progress=_late(lambda: meter.add("read", sum(total))),
            sized=total.append,
            **known,
        )
        reports = index_image(
            parse_reference(args.image), options, client=client_options(args), tag=args.tag
        )
    for report in reports:
        if args.json:
            print_json(report_object(report))
        else:
            _print_text(report)
    return 0


def _late(start: Callable[[], Callable[[int], None]]) -> Callable[[int], None]:
    """Start a bar when there is something to show in it."""
    started: list[Callable[[int], None]] = []

    def advance(moved: int) -> None:
        if not started:
            started.append(start())
        started[0](moved)

    return advance


def report_object(report: IndexReport) -> dict[str, Any]:
    """Return the report as JSON; keys as documented."""
    from dataclasses import asdict

    return {**asdict(report), "index_bytes": report.index_bytes}


def _print_text(report: IndexReport) -> None:
    share = 100 * report.index_bytes / max(report.layer_bytes, 1)
    print_line(f"{report.platform or 'image'} {report.source_digest}")
    print_line(
        f"  index {human_size(report.index_bytes)} ({share:.1f} %) for layers of "
        f"{human_size(report.layer_bytes)}, in {report.elapsed_s:.1f} s"
    )
    if report.by_table:
        print_line("  from the tables of contents of the layers, which were not read")
    elif report.table_problem:
        print_line(f"  the layers were read: {report.table_problem}")
    print_line(f"  {report.digest}")
