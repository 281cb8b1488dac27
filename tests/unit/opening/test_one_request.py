"""Only an OpenRequest carries a reference into opening: the signatures of the source are walked."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import lamina

SOURCE = Path(lamina.__file__).parent

NAMERS = ("lamina.oci", "lamina.registry", "lamina.trust")
"""Documents, repositories and signatures, which are about references."""

ALLOWED = {
    # Doors whose keywords are public: they make a request of them.
    "lamina.open",
    "lamina._check_reference",
    "lamina.fsspec.filesystem.LaminaFileSystem.__init__",
    "lamina.opening.request.request_of",
    "lamina.guest.agent.guest_request",
    # What builds images reads and writes ordinary ones.
    "lamina.build.convert.convert",
    "lamina.build.index._check_tag",
    "lamina.build.index.index_image",
    "lamina.build.source_image.open_source_image",
    "lamina.build.unpack.unpack_to_image",
    "lamina.cli.verbs.convert.report_object",
    "lamina.cli.erofs_conversion.convert_to_erofs",
    "lamina.cli.erofs_conversion._print_json",
    "lamina.guest.disk_image.push_layout",
    # What is attached to an image is listed, and the image is not opened.
    "lamina.build.start_show.attached_profiles",
    "lamina.cli.verbs.profile._show",
    # A mirror passes on what repositories have, and opens no image.
    "lamina.serve.cache.upstream.UpstreamRepository.__init__",
    # containerd keeps documents of images itself.
    "lamina.containerd.pull._documents",
    "lamina.containerd.pull._labels",
    # Between the steps: a version, which step 1 makes.
    "lamina.opening.lazy_index.unusable",
    "lamina.opening.manifest.find_platform",
    "lamina.opening.manifest.offered_index",
    "lamina.opening.place.Place.named",
    "lamina.opening.sealed.no_key_error",
    "lamina.opening.version._proven_again",
    "lamina.opening.version.resident_version",
    # What is remembered under a name.
    "lamina.opening.network_record.place_key",
    "lamina.opening.node.Node.estimator",
    "lamina.opening.network_record.known_estimate",
    "lamina.opening.network_record.remember_estimate",
    "lamina.opening.rollback_protection._read",
    "lamina.opening.rollback_protection.check_release",
}

FIELDS = {
    "lamina.opening.request.OpenRequest.reference",
    "lamina.opening.version.Version.reference",
    # What containerd calls an image, which is none of ours.
    "lamina.containerd.claim.Claim.reference",
    "lamina.containerd.lazy_image.LazyImage.reference",
    # Where an opened image came from.
    "lamina.content.lazy_image.Origin.reference",
    "lamina.content.lazy_image.Origin.accepted",
}


class Found(NamedTuple):
    """A function or a field, and what it is annotated with."""

    name: str
    parameters: dict[str, str]
    is_field: bool = False


def _inside(node: ast.AST, prefix: str) -> Iterator[Found]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            for field in child.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    name = field.target.id
                    kind = ast.unparse(field.annotation)
                    yield Found(f"{prefix}.{child.name}.{name}", {name: kind}, is_field=True)
            yield from _inside(child, f"{prefix}.{child.name}")
        elif isinstance(child, ast.FunctionDef):
            arguments = child.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            kinds = {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in every}
            yield Found(f"{prefix}.{child.name}", kinds)
            yield from _inside(child, f"{prefix}.{child.name}")
        else:
            yield from _inside(child, prefix)


def everything() -> Iterator[Found]:
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        tree = ast.parse(path.read_text())
        yield from _inside(tree, module.removesuffix(".__init__"))


def _has(found: Found, kind: str) -> bool:
    words = " ".join(found.parameters.values()).replace("|", " ").replace("'", " ")
    return kind in words.replace("[", " ").replace("]", " ").replace(",", " ").split()


def _names_an_image(found: Found) -> bool:
    return not found.name.startswith(NAMERS) and (
        "reference" in found.parameters or _has(found, "Reference")
    )


def test_only_a_request_carries_a_reference() -> None:
    carrying = {each.name for each in everything() if _names_an_image(each) and not each.is_field}
    # That of a chunk.
    carrying.discard("lamina.build.known_chunks.KnownChunks.find_or_add")
    assert carrying == ALLOWED


def test_only_a_request_has_a_reference() -> None:
    assert {each.name for each in everything() if _names_an_image(each) and each.is_field} == FIELDS


def test_the_command_line_ends_in_its_folder() -> None:
    outside = [each for each in everything() if not each.name.startswith("lamina.cli")]
    names = ("Namespace", "argparse.Namespace")
    assert not [each.name for each in outside if any(_has(each, name) for name in names)]


def test_what_opens_takes_a_request() -> None:
    """No function of serving or opening takes the parts of a request one by one."""
    parts = {"decryption_keys", "allow_older", "key_broker", "key_providers"}
    found = {each.name for each in everything() if parts & set(each.parameters)}
    fields = {name for name in found if name.startswith("lamina.opening.request.OpenRequest.")}
    assert found - fields == {
        "lamina.open",
        "lamina.fsspec.filesystem.LaminaFileSystem.__init__",
        "lamina.opening.request.request_of",
        # A keyword of remembering, which reads no image.
        "lamina.opening.rollback_protection.check_release",
    }
