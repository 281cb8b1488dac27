"""What ``lamina inspect`` finds out about a reference, as JSON-able values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from lamina.cli.output import binary_size, share, shown_text

if TYPE_CHECKING:
    from lamina.content.lazy_image import LazyImage
    from lamina.oci.manifest import Descriptor, ImageConfig, Manifest
    from lamina.registry.resolve import Documents

FACT_KEYS: Final = (
    ("reference", "as given"),
    ("kind", "native, index (of another image, in subject) or oci"),
    ("digest, media_type", "of the manifest; of the index if there is one, in index_digest"),
    ("platform", "of the image, as linux/amd64"),
    (
        "platforms",
        "of a multi-platform image: list of platform, kind (other: no image) and digest",
    ),
    ("created", "time from the configuration"),
    ("size", "bytes of all layers as stored"),
    ("layers", "list of digest, media_type and size, lowest first"),
    ("annotations", "of the manifest"),
    ("subject", "of an index: digest of the image it is of"),
    ("indexed_by", "of an ordinary image: digest of the index that opens it"),
    ("config", "what to run: user, env, entrypoint, cmd, working_dir, labels, …"),
    (
        "tree",
        (
            "of a native or indexed image: bytes, inodes, chunk_size, compressor, digester, "
            "prefetch (inodes)"
        ),
    ),
    (
        "sealed",
        (
            "of a sealed image: suite, recipients by scheme, metadata_bytes, and blobs: digest, "
            "stored_bytes, pieces, root; tree, blobs and config only with a key"
        ),
    ),
    (
        "blobs",
        (
            "of a native or indexed image: list of id, stored_bytes, plain_bytes, chunks, pieces, "
            "packed, read_whole, and ready_chunks, which are in the node store"
        ),
    ),
)


def manifest_facts(
    documents: Documents, named: tuple[Descriptor, bytes], platform: str | None
) -> dict[str, Any]:
    """Return what manifest and configuration say, of what the reference names; nothing else is
    fetched.
    """
    from lamina.oci.manifest import ImageIndex, parse_manifest
    from lamina.registry.resolve import find_image, list_entries

    top, data = named
    index = parse_manifest(data)
    facts: dict[str, Any] = {}
    if isinstance(index, ImageIndex):
        entries = list_entries(index, documents)
        facts = {"index_digest": top.digest, "platforms": list(map(_entry_facts, entries))}
    descriptor, document = find_image(top, index, documents, platform)
    return {
        **_kind(document),
        "digest": descriptor.digest,
        "media_type": descriptor.media_type,
        **_config_facts(documents, document),
        **facts,
        "size": sum(layer.size for layer in document.layers),
        "layers": [
            {"digest": layer.digest, "media_type": layer.media_type, "size": layer.size}
            for layer in document.layers
        ],
        "annotations": dict(document.annotations),
    }


def _kind(manifest: Manifest) -> dict[str, Any]:
    from lamina.opening.lazy_index import is_index_image

    if manifest.subject is not None and is_index_image(manifest):
        return {"kind": "index", "subject": manifest.subject.digest}
    if manifest.is_sealed:
        from lamina.cli.sealed_facts import sealed_facts

        return {"kind": "sealed", "sealed": sealed_facts(manifest)}
    return {"kind": "native" if manifest.is_nydus else "oci"}


def _entry_facts(entry: Descriptor) -> dict[str, Any]:
    from lamina.oci.platform import says_platform

    return {
        "platform": str(entry.platform) if says_platform(entry.platform) else None,
        "kind": _entry_kind(entry),
        "digest": entry.digest,
    }


def _entry_kind(entry: Descriptor) -> str:
    from lamina.oci.manifest import SEALED_ARTIFACT
    from lamina.oci.platform import is_artifact, is_nydus

    if entry.artifact_type == SEALED_ARTIFACT:
        return "sealed"
    if is_nydus(entry):
        return "native"
    return "other" if is_artifact(entry) else "oci"


def _config_facts(documents: Documents, manifest: Manifest) -> dict[str, Any]:
    from lamina.registry.resolve import load_config

    config = load_config(manifest, documents)
    return {
        "platform": str(config.platform) if config.architecture else None,
        **config_facts(config),
    }


def config_facts(config: ImageConfig) -> dict[str, Any]:
    """Return when an image was made and what it runs."""
    import msgspec

    runtime = msgspec.to_builtins(config.config)
    return {
        "created": config.created or None,
        "config": {_snake(name): value for name, value in runtime.items()},
    }


def _snake(name: str) -> str:
    """``WorkingDir`` → ``working_dir``"""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def native_facts(image: LazyImage) -> dict[str, Any]:
    """Return what the metadata layer of a native image says."""
    from lamina.erofs.layout import BlobFeature

    bootstrap = image.bootstrap
    blobs = [
        {
            "id": entry.blob_id,
            "stored_bytes": entry.compressed_size,
            "plain_bytes": entry.uncompressed_size,
            "chunks": entry.chunk_count,
            "pieces": blob.table.piece_count,
            "packed": bool(entry.features & BlobFeature.BATCH),
            "read_whole": entry.is_read_whole,
            "ready_chunks": blob.ready_count,
        }
        for entry, blob in zip(bootstrap.blobs, image.blobs, strict=True)
    ]
    tree = {
        "bytes": bootstrap.size_bytes,
        "inodes": bootstrap.inode_count,
        "chunk_size": bootstrap.chunk_size,
        "compressor": bootstrap.compressor.name.lower(),
        "digester": bootstrap.digester.name.lower(),
        "prefetch": len(bootstrap.prefetch_nids),
    }
    return {"tree": tree, "blobs": blobs}


Lines = Callable[[str], None]


def print_facts(facts: dict[str, Any], print_line: Lines, size: Callable[[int], str]) -> None:
    """Print the facts for people; what an image says of itself cannot steer their terminal."""

    def line(text: str) -> None:
        print_line(shown_text(text))

    line(f"{facts['reference']}")
    line(f"  kind       {facts['kind']}")
    line(f"  digest     {facts['digest']}")
    for label, key in (("image", "subject"), ("indexed by", "indexed_by")):
        if key in facts:
            line(f"  {label:<10} {facts[key]}")
    if "index_digest" in facts:
        line(f"  index      {facts['index_digest']}")
        for entry in facts["platforms"]:
            line(f"             {entry['platform'] or 'no platform'} ({entry['kind']})")
    line(f"  platform   {facts['platform'] or 'not said'}")
    line(f"  created    {facts['created'] or 'not said'}")
    _print_config(facts["config"], line)
    line(f"  layers     {len(facts['layers'])}, {size(facts['size'])}")
    for layer in facts["layers"]:
        line(f"             {layer['digest']} {size(layer['size'])}")
    if "sealed" in facts:
        from lamina.cli.sealed_facts import print_sealed

        print_sealed(facts["sealed"], line)
    if "tree" in facts:
        _print_tree(facts, line, size)


def _print_config(config: dict[str, Any], line: Lines) -> None:
    command = [*config.get("entrypoint", ()), *config.get("cmd", ())]
    line(f"  command    {' '.join(_word(word) for word in command) or 'none'}")
    for label, key in (("user", "user"), ("folder", "working_dir"), ("stop", "stop_signal")):
        if config.get(key):
            line(f"  {label:<10} {config[key]}")
    for number, variable in enumerate(config.get("env", ())):
        line(f"  {'' if number else 'env':<10} {variable}")


def _word(word: str) -> str:
    import shlex

    return shlex.quote(word)


def _print_tree(facts: dict[str, Any], line: Lines, size: Callable[[int], str]) -> None:
    tree = facts["tree"]
    line(f"  tree       {tree['inodes']} inodes in {size(tree['bytes'])}")
    kind = f"{tree['compressor']}, {tree['digester']}, {tree['prefetch']} inodes to prefetch"
    line(f"  chunks     {binary_size(tree['chunk_size'])}, {kind}")
    for number, blob in enumerate(facts["blobs"]):
        packed = " (packed)" if blob["packed"] else ""
        if blob["read_whole"]:
            packed = ", one stream that is decompressed from its begin at the first read"
        here = share(blob["ready_chunks"], blob["chunks"])
        line(f"  blob {number:<6}{blob['id']}")
        line(
            f"             {size(blob['stored_bytes'])} for {size(blob['plain_bytes'])}, "
            f"{blob['chunks']} chunks in {blob['pieces']} pieces{packed}, {here} here"
        )
