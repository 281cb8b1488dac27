"""What is to be opened, by what trust, from where and into which store: one value for every door.

:func:`lamina.open`, fsspec, the verbs of the command line, ``run``, ``mount`` and the mount service
say it with an :class:`OpenRequest` and nothing else, so that a process which never saw the command
line opens exactly the same.  It has plain values only, and what it names is read when it is opened.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import msgspec

from lamina.errors import UsageError
from lamina.http.client_options import ClientOptions
from lamina.oci.reference import parse_reference
from lamina.oci.start_manifest import StartRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamina.oci.manifest import Platform
    from lamina.oci.reference import Reference
    from lamina.store.node import NodeStore

IndexUse: TypeAlias = Literal["never", "auto", "always"]
"""Whether an ordinary image is opened by an index: never, by one that is attached to it or was
built here, or by one that is built here if there is no other.
"""


PullUse: TypeAlias = Literal["newer", "missing", "always", "never"]
"""Whether a registry is asked what a tag means: for a little while, and then what is known on this
node counts; only if nothing is known; until it answers; or not at all.
"""

ASK_S: Final = 3.0
"""For how long ``newer`` asks."""


class KeyBroker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key broker and how this machine attests itself to it: the arguments of
    :func:`lamina.trust.broker.provider.make_provider`.
    """

    url: str
    ca_file: str | None = None
    evidence: str = "sample"
    measurement: str = "abcde"
    init_data_file: str | None = None


class OpenRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """See the module.  It may have secrets (:attr:`has_secrets`), so it is kept in memory only.

    ``reference`` is what the user calls the image, ``pinned`` the same with the digest that it was
    opened by before, or that the policy accepted then: what is in the store is not asked for again.
    ``platform`` (``OS/ARCHITECTURE[/VARIANT]``) chooses from an index, None means this machine's.
    ``pull`` says whether the registry is asked what a tag means, ``refresh`` that it is asked also
    for that of a resident image.

    ``decryption_keys`` are those of
    :func:`lamina.trust.encryption.recipients.parse_decryption_keys`, ``key_providers`` is the
    configuration file of ocicrypt's key providers, ``policy`` a ``policy.json`` whose demands are
    proven before anything of the image is read.  ``allow_older`` takes an older release than one
    that was used on this node.

    ``store`` is the folder of the node store, None the default one of who opens it;
    ``store_budget`` is in bytes or as :func:`lamina.store.space.parse_budget` takes it.
    ``sources`` are references of other places that may have the same blobs; they are asked in their
    order before the image's own place.  ``blob_dirs`` are folders of blobs, as
    :class:`lamina.source.folder_source.FolderSource` reads them: asked before all others for what
    has a digest, so that an image whose reference has one needs nothing else if they have all of
    it.  With ``start`` the pages of a start artifact that is
    attached to the image begin to arrive at once.  With ``proven_layers`` an image is refused whose
    configuration names other layers than it is made of.
    """

    reference: str
    pinned: str | None = None
    platform: str | None = None
    index: IndexUse = "auto"
    pull: PullUse = "newer"
    refresh: bool = False
    decryption_keys: tuple[str, ...] = ()
    key_providers: str | None = None
    key_broker: KeyBroker | None = None
    policy: str | None = None
    allow_older: bool = False
    client: ClientOptions = ClientOptions()
    store: str | None = None
    store_budget: int | str | None = None
    sources: tuple[str, ...] = ()
    blob_dirs: tuple[str, ...] = ()
    start: StartRule | None = None
    proven_layers: bool = False

    def __repr__(self) -> str:
        """Without what a log must not have."""
        return f"{type(self).__name__}({self.pinned or self.reference!r})"

    @property
    def where(self) -> Reference:
        """What is opened.  Raises UsageError for a malformed reference."""
        return parse_reference(self.pinned or self.reference)

    @property
    def has_keys(self) -> bool:
        """Whether it opens what not everybody may see."""
        return bool(self.decryption_keys or self.key_providers or self.key_broker)

    @property
    def has_secrets(self) -> bool:
        """Whether a process that knows it must not be looked into."""
        client = self.client
        return self.has_keys or client.password is not None or client.login_socket is not None

    def to_json(self) -> dict[str, Any]:
        """Return it as an object of JSON, without what is as ever: an older process knows less."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    @classmethod
    def from_json(cls, fields: object) -> OpenRequest:
        """Return what :meth:`to_json` made.

        Raises UsageError for anything else, also for what only a later version asks: to open
        without it would be to open by less trust than was wanted.
        """
        try:
            return msgspec.convert(fields, cls)
        except msgspec.ValidationError as error:
            raise UsageError(f"this is no request to open an image: {error}") from error


def request_of(
    reference: str | Reference,
    *,
    store: NodeStore | str | os.PathLike[str] | None = None,
    options: ClientOptions | None = None,
    platform: str | Platform | None = None,
    decryption_keys: Sequence[str] | str = (),
    policy: str | os.PathLike[str] | None = None,
    allow_older: bool = False,
    index: IndexUse = "auto",
    pull: PullUse = "newer",
    blob_dirs: Sequence[str | os.PathLike[str]] = (),
) -> OpenRequest:
    """Return the request that the keywords of :func:`lamina.open` make; key providers are those
    that the environment names.  Raises UsageError for a use of indexes or registries that there is
    not.
    """
    from lamina.trust import providers_file

    if index not in get_args(IndexUse):
        raise UsageError(
            f"{index!r} is no use of an index", hint="write index='auto', 'always' or 'never'"
        )
    if pull not in get_args(PullUse):
        raise UsageError(
            f"{pull!r} is no way to pull", hint="write pull='newer', 'missing', 'always' or 'never'"
        )
    keys = (decryption_keys,) if isinstance(decryption_keys, str) else decryption_keys
    budget: int | None = None
    if store is None or isinstance(store, (str, os.PathLike)):
        root = None if store is None else os.fspath(store)
    else:
        root, budget = str(store.root), store.space.budget_bytes
    return OpenRequest(
        reference=str(reference),
        platform=None if platform is None else str(platform),
        index=index,
        pull=pull,
        refresh=pull == "always",
        decryption_keys=tuple(keys),
        key_providers=providers_file(),
        policy=None if policy is None else os.fspath(policy),
        allow_older=allow_older,
        client=options or ClientOptions(),
        store=root,
        store_budget=budget,
        blob_dirs=tuple(os.fspath(each) for each in blob_dirs),
    )


def for_another_process(request: OpenRequest) -> OpenRequest:
    """Free a request from this process's folder, environment and descriptors.

    Paths become absolute, store and budget are named, and a passphrase from a file descriptor is in
    the text as others are that were.  Raises UsageError for a malformed reference, and what
    reading a passphrase raises.
    """
    from lamina.registry.open_repository import configured_dirs
    from lamina.store.node import default_root
    from lamina.store.space import BUDGET_VARIABLE

    keys, broker, client = request.decryption_keys, request.key_broker, request.client
    if keys:
        from lamina.trust.encryption.recipients import portable_key

        keys = tuple(map(portable_key, keys))
    if broker is not None:
        ca_file, init_data_file = _absolute(broker.ca_file), _absolute(broker.init_data_file)
        broker = msgspec.structs.replace(broker, ca_file=ca_file, init_data_file=init_data_file)
    ca_file, authfile = _absolute(client.ca_file), _absolute(client.authfile)
    hosts_dirs = tuple(map(os.path.abspath, configured_dirs(client.hosts_dirs)))
    return msgspec.structs.replace(
        request,
        reference=_absolute_reference(request.reference),
        pinned=request.pinned and _absolute_reference(request.pinned),
        decryption_keys=keys,
        key_providers=_absolute(request.key_providers),
        key_broker=broker,
        policy=_absolute(request.policy),
        client=replace(client, ca_file=ca_file, authfile=authfile, hosts_dirs=hosts_dirs),
        store=os.path.abspath(request.store or default_root()),
        store_budget=request.store_budget or os.environ.get(BUDGET_VARIABLE) or None,
        sources=tuple(map(_absolute_reference, request.sources)),
        blob_dirs=tuple(map(os.path.abspath, request.blob_dirs)),
    )


def _absolute(path: str | None) -> str | None:
    return os.path.abspath(path) if path else path


def _absolute_reference(text: str) -> str:
    reference = parse_reference(text)
    if reference.is_remote:
        return text
    return str(replace(reference, path=os.path.abspath(reference.path)))
