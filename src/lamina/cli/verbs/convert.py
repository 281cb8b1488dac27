"""``lamina convert``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from lamina.cli.broker_options import add_broker_options, broker_provider, brokers
from lamina.cli.help_text import HelpPage
from lamina.cli.key_options import (
    PROVIDER_ENVIRONMENT,
    add_decryption_key_option,
    add_encryption_key_option,
    protect_process,
)
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    add_output_options,
    add_pair_options,
    byte_size,
    pair_options,
)
from lamina.cli.output import human_size, print_json, print_line, print_table
from lamina.cli.parser import Parser
from lamina.cli.progress import Advance, Meter, open_meter
from lamina.errors import UsageError
from lamina.posix.heap import keep_freed_memory

if TYPE_CHECKING:
    from lamina.blob.seal_class import TenantKey
    from lamina.build.options import ConvertOptions, ConvertProgress, ConvertReport
    from lamina.build.sealing import SealOptions
    from lamina.trust.encryption.recipients import DecryptionKeys

HELP: Final = HelpPage(
    """
    Reads an OCI or Docker image and writes a native image of it: one chunked data blob for every
    layer and one layer with the merged file tree, which the kernel mounts as it is. Any registry
    keeps it, and Nydus tools read it. The same source and options always give the same digests.

    Chunks that a lower layer or an earlier file has are not stored again. Files smaller than a
    chunk are packed together up to --pack and compressed and fetched as one piece.

    Of a multi-platform image all platforms are converted, or those given with --platform.

    With --seal the image is sealed: every piece is encrypted and bound to its place, and file tree,
    chunk tables and configuration go into a metadata layer that only the keys of --encryption-key
    open (ocicrypt). Keys and nonces are random, so digests differ from one conversion to the next.
    Sign the result: encryption alone does not tell who made an image.

    A source whose layers are encrypted (ocicrypt) is decrypted by --decryption-key while it is
    read. With --seal as well its files are in clear nowhere but in memory; without, DST is in
    clear.
    """,
    examples=(
        ("lamina convert node:20 localhost:5000/node:20", "From one registry to another."),
        ("lamina convert oci:images:debian oci:native:debian", "Between OCI layout folders."),
        (
            "lamina convert docker-archive:app.tar registry.example/app --prefetch /usr/bin/app",
            "From `docker save`, with a program that is fetched first.",
        ),
        (
            "lamina convert --pack none --compressor lz4 SRC DST",
            "For readers that know no packed chunks (Nydus before 2.3), fast to decompress.",
        ),
        (
            "lamina convert --layers erofs app:1 localhost:5000/app:erofs",
            "The same layers as EROFS file systems, for containerd.",
        ),
        (
            "lamina convert --seal --encryption-key jwe:team.pub app:1 localhost:5000/app:sealed",
            "A sealed image, for whoever has the private key.",
        ),
        (
            (
                "lamina convert --seal --encryption-key jwe:team.pub --decryption-key team.pem "
                "enc:1 localhost:5000/app:sealed"
            ),
            "A lazy image of one that `skopeo copy --encryption-key` encrypted.",
        ),
    ),
    json_keys=(
        ("digest", "digest of the manifest or index that was written"),
        ("reference", "where it was written"),
        ("media_type", "its media type"),
        ("elapsed_s", "seconds of the conversion"),
        ("phases_s", "seconds by phase"),
        (
            "images",
            (
                "list, one a platform: platform, source_digest, manifest_digest, image_bytes, "
                "bootstrap_bytes, bootstrap_layer_bytes, start_bytes and layers: source_digest, "
                "source_bytes, "
                "blob_digest, blob_bytes, entries, plain_bytes, new_bytes, chunks, pieces; with "
                "--layers: platform, source_digest, manifest_digest and layers: source_digest, "
                "blob_digest, blob_bytes, diff_id"
            ),
        ),
    ),
    environment=(
        *REGISTRY_ENVIRONMENT,
        ("TMPDIR", "where blobs are kept until they are pushed (/var/tmp)"),
        PROVIDER_ENVIRONMENT,
    ),
    see_also=("check", "unpack", "run", "sign"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("source", metavar="SRC", help="reference of an OCI or Docker image")
    parser.add_argument("destination", metavar="DST", help="where the native image goes")
    group = parser.add_argument_group("Conversion options")
    add = group.add_argument
    add("--chunk-size", metavar="SIZE", type=byte_size,
        help="largest chunk, a power of two from 4K to 16M (128K)")  # fmt: skip
    add("--pack", metavar="SIZE", type=pack_size,
        help="most bytes of small chunks in a pack, or none for no packs (128K)")  # fmt: skip
    add("--compressor", choices=("zstd", "lz4", "none"), metavar="zstd|lz4|none",
        help="how pieces are compressed (zstd)")  # fmt: skip
    add("--level", metavar="N", type=int, help="level of the compressor (3 for zstd)")
    add("--digester", choices=("blake3", "sha256"), metavar="blake3|sha256",
        help="digest of the chunks (blake3)")  # fmt: skip
    add("--prefetch", metavar="PATH", action="append", default=[],
        help="absolute path of a file that is read at the start; may be repeated")  # fmt: skip
    add("--profile", metavar="FILE",
        help="a start profile, as `lamina profile --output` writes it: its pages become part of "
        "the image, and a start gets them in one request")  # fmt: skip
    add("--profile-name", metavar="NAME", help="what to call it (the name of the program)")
    add(
        "--jobs",
        metavar="N",
        type=int,
        help="threads that compress, and layers read ahead (one a processor)",
    )
    add("--layers", choices=("erofs", "erofs+zstd"), metavar="erofs|erofs+zstd",
        help="make no native image: its layers become EROFS file systems, as containerd's EROFS "
        "snapshotter mounts them; of these options only --work-dir is of such")  # fmt: skip
    add("--work-dir", metavar="DIR", help="where temporary files go")
    add("--replace", action="store_true", help="DST may be SRC, whose tag then means the new image")
    add_sealing_options(parser)
    add_decryption_key_option(parser.add_argument_group("Options of an encrypted source"))
    add_pair_options(parser, many_platforms=True)
    add_output_options(parser)


def add_sealing_options(parser: Parser) -> None:
    """``--seal`` and what belongs to it."""
    group = parser.add_argument_group("Sealing options")
    group.add_argument(
        "--seal", action="store_true", help="encrypt all of the image, piece by piece"
    )
    add_encryption_key_option(group)
    add_broker_options(parser)
    group.add_argument(
        "--padding",
        choices=("none", "padme"),
        default="none",
        metavar="none|padme",
        help="hide the lengths of pieces: not at all, or by up to 12 %% more bytes (none)",
    )
    group.add_argument(
        "--tenant-key",
        metavar="KEY",
        help="equal pieces of all images that are sealed with this key of 32 bytes look the same: "
        "FILE, or kbs:///REPOSITORY/TYPE/TAG of a broker; whoever stores them sees what is equal",
    )
    group.add_argument(
        "--public-layer",
        metavar="N",
        type=int,
        action="append",
        default=[],
        help="leave the data of this layer in clear, though not its names: 0 is the first, -1 the "
        "last; may be repeated",
    )


def pack_size(text: str) -> int:
    """Return a size, or ``none``."""
    return 0 if text == "none" else byte_size(text)


def run(args: Namespace) -> int:
    """Convert, and tell what became of it."""
    from lamina.build.convert import convert
    from lamina.oci.reference import parse_reference

    source, destination = parse_reference(args.source), parse_reference(args.destination)
    if source == destination and not args.replace:
        raise UsageError(
            f"{source} would be replaced by what is made of it",
            hint="choose another DST, or say that it may be: --replace",
        )
    source_client, destination_client = pair_options(args)
    if args.layers is not None:
        from lamina.cli.erofs_conversion import convert_to_erofs

        convert_to_erofs(args, (source, source_client), (destination, destination_client))
        return 0
    # One buffer after the other, and some that are as large as the image has files.
    keep_freed_memory()
    with open_meter() as meter:
        report = convert(
            source,
            destination,
            convert_options(args, progress_bars(meter)),
            source_client=source_client,
            destination_client=destination_client,
        )
    if args.json:
        print_json(report_object(report, args.destination))
    else:
        _print_text(report)
    return 0


def convert_options(
    args: Namespace, progress: Callable[[ConvertProgress], None] | None = None
) -> ConvertOptions:
    """Return the options that were given; the rest keeps its defaults.  Raises UsageError."""
    import os

    from lamina.build.options import ConvertOptions
    from lamina.cli.profile_files import read_profile
    from lamina.codec.compress import Compressor
    from lamina.codec.digest import Digester

    compressors = {"zstd": Compressor.ZSTD, "lz4": Compressor.LZ4_BLOCK, "none": Compressor.NONE}
    digesters = {"blake3": Digester.BLAKE3, "sha256": Digester.SHA256}
    given: dict[str, Any] = {
        "chunk_size": args.chunk_size,
        "pack_size": args.pack,
        "compressor": compressors.get(args.compressor),
        "level": args.level,
        "digester": digesters.get(args.digester),
        "jobs": args.jobs,
        "work_dir": args.work_dir,
        "profile": None if args.profile is None else read_profile(args.profile),
        "profile_name": args.profile_name,
        "progress": progress,
    }
    if args.pack is None and args.chunk_size is not None:
        # A pack is never larger than a chunk.
        given["pack_size"] = min(args.chunk_size, ConvertOptions().pack_size)
    given["prefetch"] = tuple(os.fsencode(path) for path in args.prefetch)
    given["platforms"] = tuple(args.platform)
    given["seal"] = _seal_options(args)
    given["keys"] = _keys(args)
    options = ConvertOptions(**{name: value for name, value in given.items() if value is not None})
    options.check()
    return options


def _seal_options(args: Namespace) -> SealOptions | None:
    if not args.seal:
        given = (args.encryption_key, args.padding != "none", args.tenant_key, args.public_layer)
        if any(given):
            raise UsageError("the sealing options are for sealed images; add --seal")
        return None
    from lamina.blob.seal import Padding
    from lamina.build.sealing import SealOptions
    from lamina.trust.encryption.recipients import parse_recipients

    protect_process()
    known = brokers(args)
    recipients = parse_recipients(args.encryption_key, known)
    if not recipients:
        raise UsageError("nobody could open the image", hint="give --encryption-key jwe:FILE")
    tenant = None if args.tenant_key is None else _tenant_key(args)
    return SealOptions(recipients, Padding(args.padding), tenant, tuple(args.public_layer))


def _keys(args: Namespace) -> DecryptionKeys | None:
    if not args.decryption_key:
        return None
    from lamina.trust.encryption.recipients import parse_decryption_keys

    protect_process()
    return parse_decryption_keys(args.decryption_key, brokers(args))


def _tenant_key(args: Namespace) -> TenantKey:
    from lamina.blob.seal_class import TenantKey
    from lamina.trust.crypto.keys import read_key_file

    text = args.tenant_key
    if not text.startswith("kbs://"):
        return TenantKey.parse(read_key_file(text, private=True), text)
    from lamina.trust.broker.kbs_packet import parse_resource

    provider = broker_provider(args)
    if provider is None:
        raise UsageError(f"{text} is a key of a broker", hint="say which: --kbs URL")
    with provider.client.fetch(parse_resource(text)) as key:
        return TenantKey.parse(key.reveal(), text)


def progress_bars(meter: Meter) -> Callable[[ConvertProgress], None]:
    """Turn what is done so far into three bars, which start when there is something to show.

    How much there is to pack is known when all layers were read, how much to push when all of it is
    packed.
    """
    shown: dict[str, tuple[Advance, int]] = {}

    def update(progress: ConvertProgress) -> None:
        is_read = progress.read_bytes >= progress.total_read_bytes
        is_packed = is_read and progress.packed_bytes >= progress.total_packed_bytes
        rows = (
            ("read", progress.read_bytes, progress.total_read_bytes),
            ("pack", progress.packed_bytes, progress.total_packed_bytes if is_read else None),
            ("push", progress.pushed_bytes, progress.total_pushed_bytes if is_packed else None),
        )
        for label, done, total in rows:
            if done and label not in shown:
                shown[label] = meter.add(label, total), 0
            if label in shown:
                advance, before = shown[label]
                if total is not None:
                    meter.resize(label, total)
                advance(done - before)
                shown[label] = advance, done

    return update


def report_object(report: ConvertReport, reference: str) -> dict[str, Any]:
    """Return the report as JSON; keys as documented."""
    from dataclasses import asdict

    document: dict[str, Any] = {"reference": reference, **asdict(report)}
    for image, source in zip(document["images"], report.images, strict=True):
        image["image_bytes"] = source.image_bytes
    return document


def _print_text(report: ConvertReport) -> None:
    for image in report.images:
        print_line(f"{image.platform or 'image'} {image.manifest_digest}")
        rows = [("", "source", "blob", "of it new", "chunks", "pieces")]
        for number, layer in enumerate(image.layers):
            rows.append(
                (
                    f"  layer {number}",
                    human_size(layer.source_bytes),
                    human_size(layer.blob_bytes),
                    human_size(layer.new_bytes),
                    str(layer.chunks),
                    str(layer.pieces),
                )
            )
        print_table(rows, right=frozenset(range(1, 6)))
        tree = human_size(image.bootstrap_bytes)
        print_line(f"  file tree {tree}, image as pushed {human_size(image.image_bytes)}")
    print_line(f"{report.digest} in {report.elapsed_s:.1f} s")
