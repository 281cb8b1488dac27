"""``--plan`` of ``lamina run``, and ``--complete``: what is fetched when, told before and after."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from lamina.cli import story
from lamina.cli.output import human_size
from lamina.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from lamina.image.native import NativeImage
    from lamina.image.plan import Estimate, Plan
    from lamina.serve.run import Unmountable

PLANS: Final = ("auto", "lazy", "full")


def add_plan_option(parser: argparse.ArgumentParser) -> None:
    """``--plan``."""
    parser.add_argument(
        "--plan",
        choices=PLANS,
        metavar="auto|lazy|full",
        help="lazy starts at once and fetches what is read, as without this option; full fetches "
        "the whole image first; auto takes what promises to be faster. Prints what it expects, and "
        "at the end what it came to",
    )


def add_complete_options(parser: argparse.ArgumentParser) -> None:
    """``--complete`` and ``--limit-rate``."""
    from lamina.cli.options import byte_size

    parser.add_argument(
        "--complete",
        action="store_true",
        help="fetch the rest of the image in the background, when nobody waits for other bytes",
    )
    parser.add_argument(
        "--limit-rate",
        metavar="SIZE",
        type=byte_size,
        help="with --complete, fetch no more than this a second in the background, as 512K or 2M",
    )


def check_complete_options(args: argparse.Namespace) -> None:
    """Raise UsageError for a limit of what is not done: reads themselves are never slowed down."""
    if args.limit_rate is not None and not args.complete:
        raise UsageError("--limit-rate limits what --complete fetches", hint="add --complete")


def complete_in_background(args: argparse.Namespace, image: NativeImage) -> None:
    """Do what ``--complete`` says, until the image is closed."""
    if args.complete:
        from lamina.image.residency import BackgroundFill

        image.close_with(BackgroundFill(image, bytes_per_s=args.limit_rate))


def follow_plan(name: str, image: NativeImage) -> Plan:
    """Decide, tell the prediction, and fetch the image if that is the plan."""
    from lamina.image.blob_set import BlobSet
    from lamina.image.plan import make_plan
    from lamina.image.residency import fetch, whole_image

    assert isinstance(image.blobs, BlobSet)
    mode = None if name == "auto" else "lazy" if name == "lazy" else "full"
    plan = make_plan(image, image.blobs.fetcher.link, mode)  # type: ignore[arg-type]
    other = plan.full if plan.mode == "lazy" else plan.lazy
    story.tell(
        f"plan: {plan.mode}, {_words(plan.chosen, plan)}; "
        f"{'full' if plan.mode == 'lazy' else 'lazy'} would be {_words(other, plan)}",
        plan=plan.mode,
        lazy=plan.lazy._asdict(),
        full=plan.full._asdict(),
        link=plan.link._asdict(),
    )
    if plan.mode == "full":
        fetch(image, whole_image(image))
    return plan


def _words(estimate: Estimate, plan: Plan) -> str:
    if not estimate.fetched_bytes:
        return "nothing to fetch"
    size = f"{human_size(estimate.fetched_bytes)} in {estimate.requests} requests"
    return f"about {estimate.seconds:.1f} s for {size}" if plan.link.known else size


class PlannedMount:
    """A mount that tells at its end what the plan came to."""

    def __init__(self, image: NativeImage, plan: Plan, inner: Unmountable) -> None:
        self._image = image
        self._plan = plan
        self._inner = inner
        self._begin = time.monotonic()

    def close(self) -> None:
        """Unmount, and tell."""
        from lamina.image.blob_set import BlobSet

        cost = self._image.statistics
        assert isinstance(self._image.blobs, BlobSet)
        waited_s = self._image.blobs.fetcher.traffic.waited_s
        took_s = time.monotonic() - self._begin
        self._inner.close()
        story.tell(
            f"plan: {self._plan.mode} came to {waited_s:.1f} s of waiting for "
            f"{human_size(cost.fetched_bytes)} in {cost.requests} requests, mounted {took_s:.1f} s",
            plan=self._plan.mode,
            waited_s=round(waited_s, 3),
            fetched_bytes=cost.fetched_bytes,
            requests=cost.requests,
        )
