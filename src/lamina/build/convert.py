"""Convert an OCI or Docker image into a native one: ``lamina convert``.

What: every manifest that is wanted of the source becomes a manifest of data blobs and a bootstrap
layer that Nydus tools read (RAFS v6 §6); an index becomes an index.  Blobs go to the destination as
they get ready, manifests last, so whatever stops a conversion leaves nothing under a name.
"""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING

from lamina.build.image_build import Phases, built_image
from lamina.build.options import ConvertOptions, ConvertReport, ImageReport
from lamina.errors import NotFoundError, UsageError
from lamina.registry.manifest import (
    NYDUS_MANIFEST_ARTIFACT,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    SEALED_ARTIFACT,
    SEALED_SUITE,
    Descriptor,
    Index,
    Manifest,
    Platform,
    describe,
    encode,
    parse_manifest,
)
from lamina.registry.platform import is_wanted, parse_platform
from lamina.registry.reference import Reference
from lamina.registry.repository import ClientOptions, Repository, open_repository
from lamina.registry.resolve import (
    Found,
    RepositoryDocuments,
    check_layers,
    find_ordinary,
    read_config,
)

if TYPE_CHECKING:
    from lamina.build.assembly import BuiltImage
    from lamina.build.sealing import SealOptions


def convert(
    source: Reference,
    destination: Reference,
    options: ConvertOptions | None = None,
    *,
    source_client: ClientOptions | None = None,
    destination_client: ClientOptions | None = None,
) -> ConvertReport:
    """Convert the image that ``source`` names and push it as ``destination``.

    Call it before the process starts threads: it forks workers.

    Raises:
        UsageError: impossible options, or a source that is native already.
        FormatError, IntegrityError, UnsupportedError: the source is damaged or has something that
        no image can hold.
        FetchError, NotFoundError, StoreError: source, destination or temporary files fail.
    """
    options = options or ConvertOptions()
    options.check()
    with (
        open_repository(source, options=source_client) as origin,
        open_repository(destination, write=True, options=destination_client) as target,
    ):
        return convert_between(origin, target, options, source_client)


def convert_between(
    source: Repository,
    destination: Repository,
    options: ConvertOptions,
    source_client: ClientOptions | None = None,
) -> ConvertReport:
    """Do as :func:`convert` between repositories that are open."""
    start = time.perf_counter()
    conversion = _Conversion(source, source_client, destination, options)
    descriptor, reports = conversion.run()
    return ConvertReport(
        digest=descriptor.digest,
        media_type=descriptor.media_type,
        images=tuple(reports),
        elapsed_s=time.perf_counter() - start,
        phases_s=conversion.phases.seconds,
    )


class _Conversion:
    def __init__(
        self,
        source: Repository,
        client: ClientOptions | None,
        destination: Repository,
        options: ConvertOptions,
    ) -> None:
        self._source = source
        self._client = client
        self._destination = destination
        self._options = options
        self._wanted = [parse_platform(text) for text in options.platforms]
        self.phases = Phases()

    def run(self) -> tuple[Descriptor, list[ImageReport]]:
        tag = self._destination.reference.tag
        with self.phases("open source"):
            descriptor, data = self._source.manifest()
            document = parse_manifest(data, f"manifest of {self._source.reference}")
        if isinstance(document, Manifest):
            pushed, report = self._convert(descriptor, document, None, tag)
            return pushed, [report]
        with self.phases("open source"):
            chosen = find_ordinary(
                document,
                RepositoryDocuments(self._source),
                self._wanted,
                str(self._source.reference),
            )
        if len(chosen) == 1:
            found = chosen[0]
            pushed, report = self._convert(
                found.descriptor, found.manifest, found.descriptor.platform, tag
            )
            return pushed, [report]
        return self._convert_index(document, chosen, tag)

    def _convert_index(
        self, source: Index, chosen: list[Found], tag: str | None
    ) -> tuple[Descriptor, list[ImageReport]]:
        entries, reports = [], []
        plain = self._options.seal is None
        for descriptor, manifest in chosen:
            pushed, report = self._convert(descriptor, manifest, descriptor.platform, None)
            reports.append(report)
            entries.append(
                Descriptor(
                    media_type=pushed.media_type,
                    digest=pushed.digest,
                    size=pushed.size,
                    platform=descriptor.platform,
                    artifact_type=NYDUS_MANIFEST_ARTIFACT if plain else SEALED_ARTIFACT,
                )
            )
        annotations = source.annotations
        if not plain:
            from lamina.blob.seal import SUITE

            annotations = {SEALED_SUITE: SUITE}
        index = Index(
            schema_version=2,
            media_type=OCI_INDEX,
            manifests=tuple(entries),
            annotations=annotations,
        )
        with self.phases("push manifest"):
            pushed = self._destination.push_manifest(tag, OCI_INDEX, encode(index))
        return pushed, reports

    def _convert(
        self,
        descriptor: Descriptor,
        manifest: Manifest,
        platform: Platform | None,
        tag: str | None,
    ) -> tuple[Descriptor, ImageReport]:
        if manifest.is_nydus or manifest.is_sealed:
            kind = "sealed" if manifest.is_sealed else "native"
            raise UsageError(
                f"{self._source.reference} is a {kind} image already.",
                hint="Use `lamina copy` to copy it.",
            )
        config = read_config(self._source, manifest)
        check_layers(manifest, config, str(self._source.reference))
        platform = platform or config.platform
        if not is_wanted(platform, self._wanted):
            raise NotFoundError(f"{self._source.reference} is an image for {platform}.")
        with built_image(
            self._source,
            self._client,
            self._destination,
            manifest.layers,
            self._options,
            self.phases,
            config.rootfs.diff_ids,
        ) as built:
            pushed, bootstrap_layer_bytes = self._push_image(
                (descriptor.digest, manifest, config.raw), built, tag
            )
        report = ImageReport(
            platform=str(platform),
            source_digest=descriptor.digest,
            manifest_digest=pushed.digest,
            layers=tuple(built.layers),
            bootstrap_bytes=len(built.bootstrap),
            bootstrap_layer_bytes=bootstrap_layer_bytes,
        )
        return pushed, report

    def _push_image(
        self, source: tuple[str, Manifest, bytes], built: BuiltImage, tag: str | None
    ) -> tuple[Descriptor, int]:
        """Push all that follows the blobs; return (manifest, bytes of the bootstrap layer)."""
        digest, manifest, config = source
        if self._options.seal is not None:
            return self._push_sealed(config, built, tag, self._options.seal)
        # Loaded this late, it does not keep the workers from starting.
        from lamina.build.package import bootstrap_layer, converted_config, converted_manifest

        with self.phases("pack bootstrap"):
            last = bootstrap_layer(built.bootstrap, built.metas)
        with self.phases("push manifest"):
            new_config = converted_config(config, built.descriptors, last.diff_id)
            self._push(last.descriptor, last.data)
            self._push(describe(OCI_CONFIG, new_config), new_config)
            layers = [*built.descriptors, last.descriptor]
            data = converted_manifest(manifest, digest, new_config, layers)
            pushed = self._destination.push_manifest(tag, OCI_MANIFEST, data)
        return pushed, len(last.data)

    def _push_sealed(
        self, config: bytes, built: BuiltImage, tag: str | None, seal: SealOptions
    ) -> tuple[Descriptor, int]:
        from lamina.build.sealed_package import sealed_package

        with self.phases("pack bootstrap"):
            package = sealed_package(built, config, seal.recipients)
        with self.phases("push manifest"):
            for descriptor, data in package.blobs:
                self._push(descriptor, data)
            pushed = self._destination.push_manifest(tag, OCI_MANIFEST, package.manifest)
        return pushed, package.metadata_bytes

    def _push(self, descriptor: Descriptor, data: bytes) -> None:
        if not self._destination.has_blob(descriptor.digest, descriptor.size):
            self._destination.push_blob(descriptor, io.BytesIO(data))
