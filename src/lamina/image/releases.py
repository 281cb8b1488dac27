"""The highest release of each name that was used on this node: a registry that puts an older image
back in its place is found out, though that image has a good signature.

A record of the node store for each repository, ``{"name": ..., "releases": {TAG: RELEASE}}``.  It
is read and written under a lock, so that two openings at once cannot lower it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from lamina.errors import TrustError
from lamina.store.node import name_digest

if TYPE_CHECKING:
    from lamina.registry.reference import Reference
    from lamina.store.node import NodeStore

RECORD: Final = "releases"


class _Releases(msgspec.Struct):
    name: str
    releases: dict[str, int] = {}


def check_release(
    store: NodeStore, reference: Reference, release: int | None, *, allow_older: bool = False
) -> None:
    """Refuse what its verified signature calls an older release than one that was used under the
    same name, or no release where there was one; remember this one otherwise.

    With *allow_older* it is taken, and is the highest from now on.  An image that is asked for by
    its digest cannot be exchanged, so it is neither refused nor remembered.  Raises TrustError.
    """
    if reference.digest is not None:
        return
    with store.locked():
        key, known = _read(store, reference)
        tag = reference.tag or ""
        highest = known.releases.get(tag)
        is_older = highest is not None and (release is None or release < highest)
        if is_older and not allow_older:
            stated = "no release" if release is None else f"release {release}"
            raise TrustError(
                f"{reference} is signed for {stated}, but release {highest} was used on this node "
                "before",
                hint="somebody may have put an older image in its place; if that was you, take it "
                "once with --allow-older",
            )
        if release == highest:
            return
        known.releases.pop(tag, None)
        if release is not None:
            known.releases[tag] = release
        store.put_record(RECORD, key, msgspec.json.encode(known))


def _read(store: NodeStore, reference: Reference) -> tuple[str, _Releases]:
    name = str(reference.with_version())
    key = name_digest(name)
    data = store.record(RECORD, key)
    if data is not None:
        try:
            return key, msgspec.json.decode(data, type=_Releases)
        except (msgspec.MsgspecError, UnicodeError):
            raise TrustError(
                f"what is known of the releases of {name} is malformed in the store",
                hint=f"remove the record {key} below {store.root / 'records' / RECORD}",
            ) from None
    return key, _Releases(name)
