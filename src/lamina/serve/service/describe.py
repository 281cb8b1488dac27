"""What who mounts has to know of an image that is open elsewhere."""

from __future__ import annotations

import os

from lamina.content.lazy_image import LazyImage
from lamina.serve.device import Held
from lamina.serve.devices import find_device
from lamina.serve.service.messages import Opened
from lamina.serve.service.shared_images import pinned_reference
from lamina.serve.service.spec import MountSpec


def describe_image(image: LazyImage, spec: MountSpec, number: str) -> tuple[Opened, Held | None]:
    """Hold what the kernel is to read by itself for the mount of that number, and return what there
    is to mount: no bootstrap where that is served beside the blobs.  Raises StoreError.
    """
    reference = image.origin.reference if image.origin is not None else None
    device = find_device(spec.device)
    held = device.hold(image, number)
    as_files = device.needs_metadata_file or not (image.is_early or image.metadata_reads)
    blobs = image.blobs if as_files else image.blobs.readable
    opened = Opened(
        number=number,
        image=str(reference) if reference is not None else spec.image.reference,
        digest=(reference.digest or "") if reference is not None else "",
        pinned=pinned_reference(image),
        bootstrap=os.fspath(image.bootstrap_path) if as_files else "",
        blobs=() if held is None else tuple(os.fspath(blob.path) for blob in blobs),
        complete=() if held is None else held.complete,
        note=image.origin.note if image.origin is not None else None,
        blob_ids=image.bootstrap.device_ids,
        runtime=image.config.config,
    )
    return opened, held
