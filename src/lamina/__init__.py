"""Lamina: starts containers before their image has arrived, without trusting who delivers it.

The door for Python programs::

    import lamina

    with lamina.open("registry.example/app:1") as image:
        with image.open("/etc/os-release") as file:
            print(file.read().decode())
        print((image / "etc" / "os-release").read_text())

Importing this package imports nothing heavy; :func:`open` does when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina.errors import Error
from lamina.version import VERSION

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from lamina.api.image import Image
    from lamina.api.path import ImagePath
    from lamina.http.client_options import ClientOptions
    from lamina.image.base import Stat
    from lamina.oci.manifest import Platform
    from lamina.opening.lazy_index import IndexRule
    from lamina.opening.request import IndexUse, OpenRequest, PullUse
    from lamina.store.node import NodeStore

__all__ = ["Error", "Image", "ImagePath", "Stat", "__version__", "open"]

__version__ = VERSION

_LAZY = {
    "Image": "lamina.api.image",
    "ImagePath": "lamina.api.path",
    "Stat": "lamina.image.base",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__


def open(  # noqa: A001
    reference: str | OpenRequest,
    *,
    store: NodeStore | str | os.PathLike[str] | None = None,
    options: ClientOptions | None = None,
    platform: str | Platform | None = None,
    decryption_keys: Sequence[str] | str = (),
    policy: str | os.PathLike[str] | None = None,
    allow_older: bool = False,
    index: IndexUse | IndexRule = "auto",
    pull: PullUse = "newer",
    blob_dirs: Sequence[str | os.PathLike[str]] = (),
    username: str | None = None,
    password: str | None = None,
    authfile: str | os.PathLike[str] | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    plain_http: bool | None = None,
) -> Image:
    """Open a native image, or an ordinary one that has an index, to walk, stat and read it.

    It needs no mount and no root.

    *reference* is written as for skopeo: a bare name means a registry, ``oci:DIR:TAG`` a layout
    folder.  What is read is fetched, verified and kept in the node store (*store*, its directory;
    by default ``$LAMINA_STORE``, ``/var/lib/lamina`` for root, ``~/.cache/lamina`` for others).
    *platform* (``linux/arm64``) chooses from an index of several.

    Credentials are those of ``docker login`` or ``podman login``, of another *authfile*, or
    *username* and *password*.  *ca_file* has certificates (PEM) to trust beside those of the
    system; *plain_http* speaks HTTP with the registry (True) or never (False), by default only with
    one on this machine.  *options* say the same in one value, and more.

    An ordinary image is opened by the index that ``lamina index`` attached to it.  With *index*
    ``"always"`` one that has none is pulled and indexed first, with ``"never"`` none is looked for;
    an :class:`~lamina.opening.lazy_index.IndexRule` can ask a policy before one is used.

    What a tag means the registry is asked for a few seconds, and if it does not answer, what is
    known on this node counts (*pull* ``"newer"``); or it is asked only if nothing is known
    (``"missing"``), until it answers (``"always"``), or not at all (``"never"``).  Data that is
    read and not here comes from the registry in any case.

    *decryption_keys*, or the only one, open a sealed image: each is ``FILE``, ``FILE:file=PATH``
    with a passphrase in another file, or ``provider:NAME``.  *policy* is a ``policy.json`` whose
    demands are proven before anything of the image is read.  An older release than one that was
    used on this node before is refused then, unless *allow_older* is set.

    *blob_dirs* are folders of blobs by digest, such as a content store of containerd or the
    ``blobs`` of an OCI layout: what they have is not asked of the registry.

    Instead of all that, *reference* may be an :class:`~lamina.opening.request.OpenRequest`, which
    says it in one value.

    Raises :class:`lamina.Error`; see :func:`lamina.opening.open_image.open_image` for its kinds.
    """
    from lamina.api.client import client_options
    from lamina.api.hints import python_hints
    from lamina.api.image import Image
    from lamina.opening.open_image import open_image
    from lamina.opening.request import OpenRequest, request_of

    judge = indexer = None
    with python_hints():
        if isinstance(reference, OpenRequest):
            request = reference
        else:
            _check_reference(reference)
            use, judge = (index, None) if isinstance(index, str) else (index.use, index.policy)
            request = request_of(
                reference,
                store=store,
                options=client_options(
                    options,
                    username=username,
                    password=password,
                    authfile=authfile,
                    ca_file=ca_file,
                    plain_http=plain_http,
                ),
                platform=platform,
                decryption_keys=decryption_keys,
                policy=policy,
                allow_older=allow_older,
                index=use,
                pull=pull,
                blob_dirs=blob_dirs,
            )
        if request.index == "always":
            from lamina.build.node_index import index_here

            indexer = index_here
        native = open_image(request, indexer=indexer, judge=judge)
        return Image(native, request, is_picklable=judge is None)


def _check_reference(reference: object) -> None:
    """Refuse what no type checker has seen, before it is taken for something else."""
    if not isinstance(reference, str) and not hasattr(reference, "transport"):
        kind = type(reference).__name__
        raise TypeError(f"an image reference is text like 'oci:DIR:TAG' or 'HOST/NAME', not {kind}")
