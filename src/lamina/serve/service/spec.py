"""What is to be mounted, as plain values: a worker opens the image anew from them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from lamina.errors import UsageError
from lamina.linux.memory import forbid_core_dumps

if TYPE_CHECKING:
    from lamina.image.native import NativeImage
    from lamina.trust.key_provider import KeyProvider

DEFAULT_OPENER: Final = "lamina.serve.service.spec:open_reference"


class MountSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One mount: all that a serving process needs, as JSON.

    ``client`` are fields of :class:`lamina.registry.repository.ClientOptions`, credentials
    included, so a spec is kept in memory only. ``key_providers`` is the configuration file of
    ocicrypt's key providers, ``key_broker`` are arguments of
    :func:`lamina.trust.kbs.provider.make_provider`. ``pinned`` is the reference with the digest
    that was opened first, or that the policy accepted then. ``opener`` names the function, as
    ``module:function``, that makes an image of a spec; ``extra`` is what it alone understands.
    """

    reference: str
    mountpoint: str
    store: str
    store_budget: str | None = None
    device: str = "auto"
    options: tuple[str, ...] = ()
    platform: str | None = None
    index: str = "auto"
    decryption_keys: tuple[str, ...] = ()
    key_providers: str | None = None
    key_broker: dict[str, str | None] | None = None
    policy: str | None = None
    allow_older: bool = False
    client: dict[str, Any] = {}
    complete: bool = False
    limit_rate: float | None = None
    pinned: str | None = None
    opener: str = DEFAULT_OPENER
    extra: dict[str, Any] = {}

    @property
    def has_secrets(self) -> bool:
        """Whether a process that knows it must not be looked into."""
        keys = self.decryption_keys or self.key_providers or self.key_broker
        return bool(keys) or self.client.get("password") is not None

    def to_json(self) -> dict[str, Any]:
        """Return it as an object of JSON."""
        return msgspec.structs.asdict(self)

    @classmethod
    def from_json(cls, fields: object) -> MountSpec:
        """Return what :meth:`to_json` made.  Raises UsageError."""
        try:
            return msgspec.convert(fields, cls)
        except msgspec.ValidationError as error:
            raise UsageError(f"this is no request to mount: {error}") from error


def open_spec(spec: MountSpec) -> NativeImage:
    """Open the image.  Raises UsageError for an opener that does not exist, and what that does."""
    module, _, function = spec.opener.partition(":")
    try:
        opener = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"there is no way {spec.opener!r} to open an image: {error}") from error
    if spec.has_secrets:
        forbid_core_dumps()
    image: NativeImage = opener(spec)
    if spec.complete:
        from lamina.image.residency import BackgroundFill

        image.close_with(BackgroundFill(image, bytes_per_s=spec.limit_rate))
    return image


def _key_sources(spec: MountSpec) -> dict[str, KeyProvider]:
    """The key providers and the broker of a spec; the environment is that of another process."""
    found: dict[str, KeyProvider] = {}
    if spec.key_providers is not None:
        from lamina.trust.key_provider import load_providers

        found |= load_providers(spec.key_providers)
    if spec.key_broker is not None:
        from lamina.trust.kbs.provider import PROVIDER_NAME, make_provider

        found[PROVIDER_NAME] = make_provider(**spec.key_broker)  # type: ignore[arg-type]
    return found


def open_reference(spec: MountSpec) -> NativeImage:
    """Open by reference; once it is pinned by its digest, no registry is asked for what is in the
    store, and the signatures that are kept there are what the policy is asked about.
    """
    from lamina.image.access import read_access
    from lamina.image.open import open_image
    from lamina.registry.repository import ClientOptions
    from lamina.store.node import NodeStore

    store = NodeStore(Path(spec.store), budget=spec.store_budget)
    options = ClientOptions(**spec.client)
    access = read_access(
        spec.decryption_keys,
        spec.policy,
        _key_sources(spec),
        allow_older=spec.allow_older,
        reopens=spec.pinned is not None,
    )
    if spec.index == "always" and spec.pinned is None:
        from lamina.build.node_index import open_always

        return open_always(
            spec.reference, store=store, options=options, platform=spec.platform, access=access
        )
    return open_image(
        spec.pinned or spec.reference,
        store=store,
        options=options,
        platform=spec.platform,
        index="never" if spec.index == "never" else "auto",
        access=access,
    )
