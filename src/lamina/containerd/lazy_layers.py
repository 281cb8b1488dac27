"""Layers that need not be downloaded, because the tree of their image is mounted.

containerd asks layer by layer, the lowest first, and downloads every layer above the first that is
not here.  So an image is looked at when its first layer is asked for, and mounted whole then; each
of its layers becomes a committed snapshot without a folder, and the last one shows the tree.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

import msgspec

from lamina.containerd.calls import Call, CallEndedError, Flights
from lamina.containerd.claim import Claim, is_native, namespace_of, read_claim
from lamina.containerd.layer_folders import LayerFolders
from lamina.containerd.lazy_image import Finding, LazyImage, look_up
from lamina.containerd.pull_logins import PullLogins, place_of
from lamina.containerd.records import NewSnapshot, SnapshotRecords
from lamina.containerd.snapshot import REF_LABEL, Kind, Snapshot, TreeLayer
from lamina.containerd.trees import Trees
from lamina.errors import (
    FetchError,
    FormatError,
    IntegrityError,
    KernelError,
    NotFoundError,
    TrustError,
    UnsupportedError,
)
from lamina.opening.request import OpenRequest

LOG: Final = logging.getLogger("lamina")

_KEPT_FINDINGS: Final = 64
_OTHERWISE: Final = (
    "pull it by `lamina ctr-pull`, or by CRI with disable_snapshot_annotations = false"
)


class Trust(NamedTuple):
    """How images are opened, which policy decides about those of a namespace, the scopes whose
    indexes are believed, and the logins of pulls.
    """

    template: OpenRequest
    policies: Mapping[str, str]
    indexes_from: Collection[str] = ()
    logins: PullLogins | None = None

    def of(self, namespace: str) -> OpenRequest:
        """Return what the images of a namespace are opened by."""
        policy = self.policies.get(namespace, self.template.policy)
        return msgspec.structs.replace(self.template, policy=policy)

    def logged_in(self, request: OpenRequest, image: str) -> OpenRequest:
        """Return a request with the login that an image is pulled with, if one is known."""
        if self.logins is None:
            return request
        client = self.logins.client(request.client, place_of(image))
        return msgspec.structs.replace(request, client=client)


class LazyLayers:
    """Answers for the layers of lazy images.  Threads share it."""

    def __init__(
        self, records: SnapshotRecords, folders: LayerFolders, trees: Trees, trust: Trust
    ) -> None:
        self._records = records
        self._folders = folders
        self._trees = trees
        self._trust = trust
        self._flights = Flights()
        self._lock = threading.Lock()
        self._findings: OrderedDict[tuple[Claim, str | None], Finding] = OrderedDict()

    def take(self, key: str, parent: str, labels: Mapping[str, str], call: Call) -> bool:
        """Return whether a layer that is to be unpacked under ``key`` on ``parent`` is there, as a
        committed snapshot with its chain identifier for a label.

        Raises TrustError for what a policy does not let be unpacked either, UnsupportedError for
        what containerd cannot unpack and nobody named, CallEndedError, and what opening and
        mounting the image raises.
        """
        template = self._trust.of(namespace_of(key))
        claim = read_claim(labels)
        if claim is None:
            _require_unpackable(key, labels, template.policy)
            return False
        below = self._records.get(parent) if parent else None
        if template.policy is None:
            if below is not None and (below.lazy is None or below.whole):
                return False
            if self._take_known(claim.chain, parent, None):
                return True
        try:
            finding = self._finding(claim, template, call, is_first=below is None)
        except (FetchError, NotFoundError) as error:
            if isinstance(error, CallEndedError) or template.policy or is_native(labels):
                raise
            # containerd may have credentials for that registry, or know a mirror of it.
            LOG.warning("%s is unpacked: %s", claim.reference, error)
            return False
        if claim.chain not in finding.chain:
            if template.policy is not None:
                raise TrustError(f"{claim.chain} is no layer of {claim.reference}, as it claims")
            LOG.warning("%s is no layer of %s, as it claims", claim.chain, claim.reference)
            return False
        if finding.lazy is None or not self._fits(finding.chain, claim.chain, below):
            return False
        if not self._take_known(claim.chain, parent, template.policy):
            self._add(finding.lazy, claim.chain, parent)
        return True

    def _fits(self, chain: tuple[str, ...], wanted: str, below: Snapshot | None) -> bool:
        """Tell whether all layers below one are lazy, and the ones that the image has there."""
        layer = chain.index(wanted)
        if below is None:
            return layer == 0
        if below.lazy is None or below.whole:
            return False
        return layer > 0 and self._chain(below.lazy) == chain[layer - 1]

    def _chain(self, place: TreeLayer) -> str:
        return self.image(place.tree).chain[place.layer]

    def image(self, tree: int) -> LazyImage:
        """Return the image of a tree."""
        return LazyImage.decode(self._records.tree(tree))

    def _take_known(self, chain: str, parent: str, policy: str | None) -> bool:
        """Tell whether there is such a lazy snapshot, and make it the first that is found."""
        for each in self._records.all():
            if each.lazy is None or each.labels.get(REF_LABEL) != chain or each.parent != parent:
                continue
            if self.image(each.lazy.tree).policy == policy:
                self._records.touch(each.name)
                return True
        return False

    def _finding(
        self, claim: Claim, template: OpenRequest, call: Call, *, is_first: bool
    ) -> Finding:
        """Return what a claimed image is; one that cannot be lazy is looked at again with the first
        layer of the next pull.
        """
        image = (claim._replace(chain=""), template.policy)
        with self._lock:
            known = self._findings.get(image)
        if known is not None and (self._is_mounted(known) or not (known.lazy or is_first)):
            return known
        found = self._flights.wait(image, lambda: self._open(claim, template), call)
        with self._lock:
            self._findings[image] = found
            self._findings.move_to_end(image)
            if len(self._findings) > _KEPT_FINDINGS:
                self._findings.popitem(last=False)
        return found

    def _is_mounted(self, finding: Finding) -> bool:
        if finding.lazy is None:
            return False
        wanted = finding.lazy.encode()
        numbers = (number for number, image in self._records.trees().items() if image == wanted)
        return any(map(self._trees.is_mounted, numbers))

    def _open(self, claim: Claim, template: OpenRequest) -> Finding:
        """Look an image up and mount it; one whose index is not good is unpacked."""
        request = self._trust.logged_in(template, str(claim.reference))
        finding = look_up(claim, request, self._trust.indexes_from)
        if finding.lazy is None:
            return finding
        try:
            with self._records.claimed_tree(finding.lazy.encode()) as number:
                self.mount(number)
        except (NotFoundError, FormatError, IntegrityError) as error:
            if finding.lazy.ordinary is None:
                raise
            LOG.warning("the index of %s cannot be used: %s", claim.reference, error)
            return Finding(finding.chain)
        return finding

    def _add(self, image: LazyImage, chain: str, parent: str) -> None:
        with self._records.claimed_tree(image.encode()) as number:
            self.mount(number)
            place = TreeLayer(number, image.chain.index(chain))
            name = f"lamina/{number}/{place.layer}/{chain}"
            new = NewSnapshot(name, parent, Kind.COMMITTED, {REF_LABEL: chain}, place)
            self._records.add(new, lambda _: None)

    def mount(self, tree: int) -> None:
        """Mount a tree, unless it is mounted and not broken.  Raises what mounting raises."""

        def request() -> OpenRequest:
            wanted = self.image(tree).request(self._trust.template)
            return self._trust.logged_in(wanted, wanted.reference)

        self._trees.mount(tree, request)

    def make_readable(self, snapshot: Snapshot, call: Call) -> None:
        """Make sure that the files of a lazy snapshot can be read: mounted, or, of a layer in the
        middle of an ordinary image, unpacked with those below it.

        Raises UnsupportedError for a layer in the middle of another one, CallEndedError, and what
        mounting and unpacking raise.
        """
        assert snapshot.lazy is not None
        tree = snapshot.lazy.tree
        image = self.image(tree)
        if snapshot.lazy.layer == len(image.chain) - 1:
            if not self._trees.is_served(tree):
                self._flights.wait(("mount", tree), lambda: self.mount(tree), call)
            self._trees.wait_for_start(tree)
            return
        if image.ordinary is None:
            raise UnsupportedError(
                f"{snapshot.name} is a part of {image.reference}, which can be read only as a whole"
            )
        self._flights.wait(("unpack", snapshot.number), lambda: self._unpack(image, snapshot), call)

    def _unpack(self, image: LazyImage, snapshot: Snapshot) -> None:
        from lamina.build.source_image import open_source_image
        from lamina.build.unpack import unpack_to_folder

        if self._records.get(snapshot.name).whole:
            return
        assert image.ordinary is not None
        assert snapshot.lazy is not None
        reference, count = image.ordinary, snapshot.lazy.layer + 1

        def unpack(folder: str, work: str) -> None:
            client = self._trust.logged_in(self._trust.template, reference).client
            opened = open_source_image(reference, options=client, work_dir=work, layers=count)
            with contextlib.closing(opened):
                unpack_to_folder(opened, folder)

        self._folders.fill(snapshot.number, unpack)
        self._records.note_whole(snapshot)

    def drop_broken(self) -> None:
        """Take the trees away that nobody answers for any more; they are mounted anew when they are
        needed.
        """
        try:
            for number in self._trees.broken():
                LOG.warning("nobody answers for tree %d; it is mounted anew", number)
                self._trees.unmount(number)
        except KernelError as error:
            # One that is broken shows when it is read; nobody else should wait for that.
            LOG.warning("the trees that are mounted cannot be looked at: %s", error)


def _require_unpackable(key: str, labels: Mapping[str, str], policy: str | None) -> None:
    """Raise TrustError or UnsupportedError for a layer of an unknown image that must not, or cannot
    be unpacked.
    """
    if policy is not None:
        raise TrustError(
            f"the policy {policy} decides about images of namespace {namespace_of(key)}, and this "
            "client does not say which image the layer is of",
            hint=_OTHERWISE,
        )
    if is_native(labels):
        raise UnsupportedError(
            "only lamina can read this image, and this client does not say which image the layer "
            "is of",
            hint=_OTHERWISE,
        )
