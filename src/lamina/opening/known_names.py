"""What a name meant when it was last opened on this node: what counts while no registry answers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from lamina.errors import Error
from lamina.store.names import name_digest
from lamina.store.records import IMAGE, NAME, NameRecord

if TYPE_CHECKING:
    from lamina.opening.place import Place
    from lamina.opening.request import OpenRequest
    from lamina.store.node import NodeStore

LOG: Final = logging.getLogger("lamina")


def known_name(place: Place) -> NameRecord | None:
    """Return what is known of the name of a place, if its manifest is in the store.

    None for places that are asked at any time, because they are on this machine.
    """
    where, store = place.reference, place.store
    record = store.records.read(NAME, name_digest(str(where))) if where.is_remote else None
    return record if record is not None and store.metadata_path(record.digest) else None


def known_digest(store: NodeStore, record: NameRecord, request: OpenRequest) -> str:
    """Return what is opened of a known name: the manifest that was, by an index perhaps, if it is
    in the store, else what the name meant.
    """
    opened = record.opened.get(request.platform or "")
    if opened is None or request.index == "never" or store.metadata_path(opened) is None:
        return record.digest
    return opened


def remember_name(
    place: Place, request: OpenRequest, is_asked: bool, digests: tuple[str, str]
) -> None:
    """Note that an image was used now and, if whoever may say it *is_asked*, what the name of its
    place means; failing to is no error.

    The *digests* are that of what the name means, and of the manifest that was opened.
    """
    store, name = place.store, str(place.reference)
    named, opened = digests
    try:
        store.records.touch(IMAGE, opened)
        if request.pinned is not None or not is_asked:
            return
        before = store.records.read(NAME, name_digest(name))
        same = before is not None and before.digest == named
        known = before.opened if before is not None and same else {}
        record = NameRecord(name, named, {**known, request.platform or "": opened})
        if record != before:
            store.records.write(NAME, name_digest(name), record)
    except Error as error:
        LOG.debug("what %s means is not remembered: %s", name, error)
