"""``--plan`` of ``lamina run``, and ``--complete``: what is fetched when, told before and after."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

from lamina.cli import console
from lamina.cli.output import human_size
from lamina.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from lamina.content.lazy_image import LazyImage
    from lamina.content.start_plan import StartEstimate, StartPlan

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


def follow_plan(name: str, image: LazyImage) -> Callable[[], None]:
    """Decide, tell the prediction, and fetch the image if that is the plan; what is returned tells
    at the end what it came to.
    """
    from lamina.content.residency import all_extents, fetch
    from lamina.content.start_plan import plan_start

    mode = None if name == "auto" else "lazy" if name == "lazy" else "full"
    plan = plan_start(image, image.network_estimate, mode)  # type: ignore[arg-type]
    other = plan.full if plan.mode == "lazy" else plan.lazy
    console.info(
        f"plan: {plan.mode}, {_words(plan.chosen, plan)}; "
        f"{'full' if plan.mode == 'lazy' else 'lazy'} would be {_words(other, plan)}",
        plan=plan.mode,
        lazy=plan.lazy._asdict(),
        full=plan.full._asdict(),
        link=plan.link._asdict(),
    )
    if plan.mode == "full":
        fetch(image, all_extents(image))
    return partial(_tell_outcome, image, plan, time.monotonic())


def _words(estimate: StartEstimate, plan: StartPlan) -> str:
    if not estimate.fetched_bytes:
        return "nothing to fetch"
    size = f"{human_size(estimate.fetched_bytes)} in {estimate.requests} requests"
    return f"about {estimate.seconds:.1f} s for {size}" if plan.link.known else size


def _tell_outcome(image: LazyImage, plan: StartPlan, begin: float) -> None:

    cost = image.statistics
    waited_s = image.waited_s
    took_s = time.monotonic() - begin
    console.info(
        f"plan: {plan.mode} came to {waited_s:.1f} s of waiting for "
        f"{human_size(cost.fetched_bytes)} in {cost.requests} requests, mounted {took_s:.1f} s",
        plan=plan.mode,
        waited_s=round(waited_s, 3),
        fetched_bytes=cost.fetched_bytes,
        requests=cost.requests,
    )
