"""Lamina: starts containers before their image has arrived, without trusting who delivers it.

The door for Python programs::

    import lamina

    with lamina.open("registry.example/app:1") as image:
        with image.open("/etc/os-release") as file:
            print(file.read().decode())

Importing this package imports nothing heavy; :func:`open` does when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina.errors import Error, UsageError
from lamina.version import VERSION

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Literal

    from lamina.image.indexed import IndexRule, IndexUse
    from lamina.image.native import NativeImage
    from lamina.registry.manifest import Platform
    from lamina.registry.repository import ClientOptions
    from lamina.store.node import NodeStore

__all__ = ["Error", "__version__", "open"]

__version__ = VERSION


def open(  # noqa: A001
    reference: str,
    *,
    store: NodeStore | str | os.PathLike[str] | None = None,
    options: ClientOptions | None = None,
    platform: str | Platform | None = None,
    decryption_keys: Sequence[str] | str = (),
    policy: str | os.PathLike[str] | None = None,
    allow_older: bool = False,
    index: IndexUse | IndexRule | Literal["always"] = "auto",
) -> NativeImage:
    """Open a native image, or an ordinary one that has an index, to walk, stat and read it.

    It needs no mount and no root.

    *reference* is written as for skopeo: a bare name means a registry, ``oci:DIR:TAG`` a layout
    folder.  What is read is fetched, verified and kept in the node store (*store*, its directory;
    by default ``$LAMINA_STORE``, ``/var/lib/lamina`` for root, ``~/.cache/lamina`` for others).
    *options* say how to talk to registries; *platform* (``linux/arm64``) chooses from an index.

    An ordinary image is opened by the index that ``lamina index`` attached to it.  With *index*
    ``"always"`` one that has none is pulled and indexed first, with ``"never"`` none is looked for;
    an :class:`~lamina.image.indexed.IndexRule` can ask a policy before one is used.

    *decryption_keys*, or the only one, open a sealed image: each is ``FILE``, ``FILE:file=PATH``
    with a passphrase in another file, or ``provider:NAME``.  *policy* is a ``policy.json`` whose
    demands are proven before anything of the image is read.  An older release than one that was
    used on this node before is refused then, unless *allow_older* is set.

    Raises :class:`lamina.Error`; see :func:`lamina.image.open.open_image` for its kinds.
    """
    _check_arguments(reference, index)
    from lamina.image.access import read_access

    access = read_access(decryption_keys, policy, allow_older=allow_older)
    if index == "always":
        from lamina.build.node_index import open_always

        return open_always(
            reference, store=store, options=options, platform=platform, access=access
        )
    from lamina.image.open import open_image

    return open_image(
        reference, store=store, options=options, platform=platform, index=index, access=access
    )


def _check_arguments(reference: object, index: object) -> None:
    """Refuse what no type checker has seen, before it is taken for something else."""
    if not isinstance(reference, str) and not hasattr(reference, "transport"):
        kind = type(reference).__name__
        raise TypeError(f"an image reference is text like 'oci:DIR:TAG' or 'HOST/NAME', not {kind}")
    if isinstance(index, str) and index not in ("auto", "always", "never"):
        raise UsageError(
            f"{index!r} is no use of an index", hint="write index='auto', 'always' or 'never'"
        )
