"""Convert an OCI or Docker image into a native one: ``lamina convert``.

What: every manifest that is wanted of the source becomes a manifest of data blobs and a bootstrap
layer that Nydus tools read (RAFS v6 §6); an index becomes an index.  Blobs go to the destination as
they get ready, manifests last, so whatever stops a conversion leaves nothing under a name.
"""

from __future__ import annotations

import io
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from lamina.build.image_build import Job, Phases, built_image
from lamina.build.options import ConvertOptions, ConvertReport, ImageReport
from lamina.errors import NotFoundError, UsageError
from lamina.http.client_options import ClientOptions
from lamina.oci.manifest import (
    NYDUS_MANIFEST_ARTIFACT,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    SEALED_ARTIFACT,
    SEALED_SUITE,
    Descriptor,
    ImageIndex,
    Manifest,
    Platform,
    describe,
    encode,
)
from lamina.oci.platform import is_wanted, parse_platform
from lamina.oci.reference import Reference
from lamina.registry.open_repository import open_repository
from lamina.registry.repository import Repository
from lamina.registry.resolve import (
    Found,
    check_layers,
    read_config,
    read_ordinary,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamina.build.assembly import BuiltImage
    from lamina.build.own_start import OwnStart
    from lamina.build.package import BootstrapLayer
    from lamina.build.sealing import SealedPart, SealOptions


def convert(
    source: Reference,
    destination: Reference,
    options: ConvertOptions | None = None,
    *,
    source_client: ClientOptions | None = None,
    destination_client: ClientOptions | None = None,
) -> ConvertReport:
    """Convert the image that ``source`` names and push it as ``destination``.

    Call it before the process starts threads: it forks one.

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
        return convert_between(origin, target, options)


def convert_between(
    source: Repository, destination: Repository, options: ConvertOptions
) -> ConvertReport:
    """Do as :func:`convert` between repositories that are open."""
    start = time.perf_counter()
    conversion = _Conversion(source, destination, options)
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
        destination: Repository,
        options: ConvertOptions,
    ) -> None:
        self._source = source
        self._destination = destination
        self._options = options
        self._wanted = [parse_platform(text) for text in options.platforms]
        self.phases = Phases()

    def run(self) -> tuple[Descriptor, list[ImageReport]]:
        tag = self._destination.reference.tag
        with self.phases("open source"):
            index, chosen = read_ordinary(self._source, self._wanted)
        if index is not None and len(chosen) > 1:
            return self._convert_index(index, chosen, tag)
        (found,) = chosen
        platform = None if index is None else found.descriptor.platform
        pushed, report = self._convert(found.descriptor, found.manifest, platform, tag)
        return pushed, [report]

    def _convert_index(
        self, source: ImageIndex, chosen: list[Found], tag: str | None
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
        index = ImageIndex(
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
                f"{self._source.reference} is a {kind} image already",
                hint="use `lamina copy` to copy it",
            )
        config = read_config(self._source, manifest)
        check_layers(manifest, config, str(self._source.reference))
        platform = platform or config.platform
        if not is_wanted(platform, self._wanted):
            raise NotFoundError(f"{self._source.reference} is an image for {platform}")
        diff_ids = config.rootfs.diff_ids
        with ExitStack() as stack:
            source: Repository = self._source
            layers: Sequence[Descriptor] = manifest.layers
            if manifest.is_encrypted:
                source, layers = self._decrypted(descriptor.digest, manifest, diff_ids, stack)
            job = Job(source, self._destination, layers, self._options, diff_ids)
            built = stack.enter_context(built_image(job, self.phases))
            pushed, bootstrap_layer_bytes, start_bytes = self._push_image(
                (descriptor.digest, manifest, config.raw), built, tag
            )
        report = ImageReport(
            platform=str(platform),
            source_digest=descriptor.digest,
            manifest_digest=pushed.digest,
            layers=tuple(built.layers),
            bootstrap_bytes=len(built.bootstrap),
            bootstrap_layer_bytes=bootstrap_layer_bytes,
            start_bytes=start_bytes,
        )
        return pushed, report

    def _decrypted(
        self, digest: str, manifest: Manifest, diff_ids: Sequence[str], stack: ExitStack
    ) -> tuple[Repository, Sequence[Descriptor]]:
        from lamina.trust.encryption.decrypted_repository import decrypted

        keys = self._options.keys
        keys = None if keys is None else keys.for_image(digest)
        return decrypted(self._source, manifest, diff_ids, keys, stack)

    def _push_image(
        self, source: tuple[str, Manifest, bytes], built: BuiltImage, tag: str | None
    ) -> tuple[Descriptor, int, int]:
        """Push all that follows the blobs; return (manifest, bytes of the bootstrap layer, of the
        start artifact).
        """
        digest, manifest, config = source
        if self._options.seal is not None:
            return self._push_sealed(config, built, tag, self._options.seal)
        # Loaded this late, it does not keep the workers from starting.
        from lamina.build.package import bootstrap_layer, converted_config, converted_manifest

        with self.phases("pack bootstrap"):
            last = bootstrap_layer(built.bootstrap, built.metas)
        with self.phases("make start artifact"):
            own = self._own_start(last, last.descriptor.digest)
        with self.phases("push manifest"):
            blobs = [*built.descriptors, *(start.layer for start in own)]
            new_config = converted_config(config, blobs, last.diff_id)
            for start in own:
                self._push(*start)
            self._push(last.descriptor, last.data)
            self._push(describe(OCI_CONFIG, new_config), new_config)
            layers = [*blobs, last.descriptor]
            data = converted_manifest(manifest, digest, new_config, layers)
            pushed = self._destination.push_manifest(tag, OCI_MANIFEST, data)
        return pushed, len(last.data), sum(len(start.data) for start in own)

    def _push_sealed(
        self, config: bytes, built: BuiltImage, tag: str | None, seal: SealOptions
    ) -> tuple[Descriptor, int, int]:
        from lamina.build.sealed_package import sealed_package

        with self.phases("pack bootstrap"):
            package = sealed_package(built, config, seal.recipients, self._own_start)
        with self.phases("push manifest"):
            for descriptor, data in package.blobs:
                self._push(descriptor, data)
            pushed = self._destination.push_manifest(tag, OCI_MANIFEST, package.manifest)
        return pushed, package.metadata_bytes, package.start_bytes

    def _own_start(
        self, last: BootstrapLayer, digest: str, sealed: Sequence[SealedPart] = ()
    ) -> list[OwnStart]:
        """Return the start artifact that is part of the image, if one is wanted."""
        if self._options.profile is None:
            return []
        from lamina.build.own_start import make_own_start

        return [make_own_start(self._destination, self._options, last, digest, sealed)]

    def _push(self, descriptor: Descriptor, data: bytes) -> None:
        if not self._destination.has_blob(descriptor.digest, descriptor.size):
            self._destination.push_blob(descriptor, io.BytesIO(data))
