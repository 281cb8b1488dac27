"""The highest release of each name that was used on this node: a registry that puts an older image
back in its place is found out, though that image has a good signature.

A record of the node store for each repository, ``{"name": ..., "releases": {TAG: RELEASE}}``.  It
is read and written under a lock, so that two openings at once cannot lower it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina.errors import TrustError
from lamina.store.names import name_digest
from lamina.store.records import RELEASES, RecordError, ReleasesRecord

if TYPE_CHECKING:
    from lamina.oci.reference import Reference
    from lamina.store.node import NodeStore


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
        releases = {name: number for name, number in known.releases.items() if name != tag}
        if release is not None:
            releases[tag] = release
        store.records.write(RELEASES, key, ReleasesRecord(known.name, releases))


def _read(store: NodeStore, reference: Reference) -> tuple[str, ReleasesRecord]:
    name = str(reference.with_version())
    key = name_digest(name)
    try:
        return key, store.records.read(RELEASES, key) or ReleasesRecord(name)
    except RecordError as error:
        raise TrustError(
            f"what is known of the releases of {name} cannot be used: {error}", hint=error.hint
        ) from None
