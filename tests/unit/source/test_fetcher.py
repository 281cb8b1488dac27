from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.support.asked_once import asked_once
from tests.support.fake_registry import Exchange, FakeRegistry, fake_registry
from tests.support.range_source import RangeSource

from lamina.errors import AuthError, Error, FetchError, IntegrityError, NotFoundError
from lamina.http.client_options import ClientOptions
from lamina.http.transient import TransientError
from lamina.oci.reference import parse_reference
from lamina.registry.client import RegistryRepository
from lamina.registry.repository_source import RepositorySource
from lamina.source.fetcher import Fetcher
from lamina.source.health import FIRST_PENALTY_S, LACKING_S, Health
from lamina.source.retry import ATTEMPT_S, DeadlineError, RetryPolicy

BLOB = bytes(range(256)) * 4096


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def sleep(self, pause: float) -> None:
        self.pauses.append(pause)
        self.now += pause

    def __call__(self) -> float:
        return self.now


class Scripted(RangeSource):
    """Answers what it is told to, and the right bytes when it has been told nothing."""

    def __init__(self, name: str, *answers: bytes | Error, clock: Clock | None = None) -> None:
        self.name = name
        self.answers = list(answers)
        self.asked: list[float] = []
        self.clock = clock

    def read_range_within(self, blob_id: str, offset: int, size: int, timeout_s: float) -> bytes:
        self.asked.append(timeout_s)
        if self.clock is not None:
            self.clock.now += 0.01
        answer = self.answers.pop(0) if self.answers else BLOB[offset : offset + size]
        if isinstance(answer, Error):
            raise answer
        return answer

    def read_range(self, blob_id: str, offset: int, size: int) -> bytes:
        raise AssertionError("a source that can be told the time is told it")


def fetcher(clock: Clock, *sources: Scripted, **policy: float) -> Fetcher:
    options = RetryPolicy(**policy)  # type: ignore[arg-type]
    return Fetcher(sources, policy=options, clock=clock, sleep=clock.sleep)


def test_the_first_source_is_asked() -> None:
    first, second = Scripted("first"), Scripted("second")
    data, source = fetcher(Clock(), first, second).fetch("id", 5, 10)
    assert data == BLOB[5:15]
    assert source is first
    assert second.asked == []


@pytest.mark.parametrize(
    "failure",
    [TransientError("reset"), AuthError("no"), NotFoundError("no"), FetchError("416"), b"short"],
)
def test_a_failure_moves_on_to_the_next_at_once(failure: bytes | Error) -> None:
    clock = Clock()
    first, second = Scripted("first", failure), Scripted("second")
    data, source = fetcher(clock, first, second).fetch("id", 0, 100)
    assert data == BLOB[:100]
    assert source is second
    assert clock.pauses == []


def test_a_source_that_failed_is_passed_over_for_a_while() -> None:
    clock = Clock()
    first, second = Scripted("first", TransientError("reset")), Scripted("second")
    both = fetcher(clock, first, second)
    both.read_range("id", 0, 1)
    both.read_range("id", 1, 1)
    assert (len(first.asked), len(second.asked)) == (1, 2)
    clock.now += 1
    both.read_range("id", 2, 1)
    assert (len(first.asked), len(second.asked)) == (2, 2), "it gets another chance"


def test_a_source_that_lacks_a_blob_is_passed_over_for_that_one_only() -> None:
    clock = Clock()
    first, second = Scripted("peer", NotFoundError("not here")), Scripted("registry")
    both = fetcher(clock, first, second)
    both.read_range("id", 0, 1)
    both.read_range("id", 1, 1)
    assert len(first.asked) == 1
    both.read_range("another", 1, 1)
    assert len(first.asked) == 2
    clock.now += LACKING_S
    both.read_range("id", 2, 1)
    assert len(first.asked) == 3


def test_what_is_known_of_a_host_is_known_to_all_that_ask_it() -> None:
    clock, health = Clock(), Health()
    one, other = Scripted("mirror", TransientError("refused")), Scripted("mirror")
    one.health = other.health = health
    fetcher(clock, one, Scripted("registry")).read_range("id", 0, 1)
    second = fetcher(clock, other, Scripted("registry"))
    second.read_range("id", 0, 1)
    assert not other.asked
    clock.now += FIRST_PENALTY_S
    second.read_range("id", 0, 1)
    assert len(other.asked) == 1


def test_what_may_pass_is_tried_until_the_deadline() -> None:
    clock = Clock()
    only = Scripted("only", *[TransientError("refused")] * 10_000, clock=clock)
    begin = clock.now
    with pytest.raises(DeadlineError, match="only did not deliver in 60 s: refused") as caught:
        fetcher(clock, only).fetch("id", 0, 1)
    assert caught.value.errno == errno.ETIMEDOUT
    assert 50 < clock.now - begin <= 60
    assert all(pause <= 2 for pause in clock.pauses)
    assert clock.pauses[0] <= 0.1


def test_a_registry_that_comes_back_is_used() -> None:
    clock = Clock()
    only = Scripted("only", *[TransientError("refused")] * 20)
    assert fetcher(clock, only).read_range("id", 0, 4) == BLOB[:4]


class SlowDownError(FetchError):
    """What a source that is no registry may raise, such as a bucket's 503."""

    transient = True


def test_a_source_of_any_kind_says_by_its_error_that_time_may_cure_it() -> None:
    clock = Clock()
    busy = SlowDownError("slow down")
    busy.retry_after_s = 3.0
    only = Scripted("bucket", *[busy] * 9)
    assert fetcher(clock, only).read_range("id", 0, 4) == BLOB[:4]
    assert clock.pauses == [3.0] * 9


def test_what_may_not_pass_is_tried_a_few_times() -> None:
    clock = Clock()
    only = Scripted("only", *[FetchError("416")] * 9)
    with pytest.raises(FetchError, match="416"):
        fetcher(clock, only, attempts=3).fetch("id", 0, 1)
    assert len(only.asked) == 3


@pytest.mark.parametrize("error", [AuthError("no"), NotFoundError("no")])
def test_what_cannot_pass_is_not_tried_again(error: Error) -> None:
    clock = Clock()
    with pytest.raises(type(error)):
        fetcher(clock, Scripted("only", *[error] * 9)).fetch("id", 0, 1)
    assert clock.pauses == []


def test_who_only_lacks_a_blob_is_not_why_it_does_not_come() -> None:
    clock = Clock()
    folder = Scripted("folder", *[NotFoundError("not in the folder")] * 9999)
    refusing = Scripted("registry", *[AuthError("log in")] * 9)
    with pytest.raises(AuthError, match="log in"):
        fetcher(clock, folder, refusing).fetch("id", 0, 1)
    down = Scripted("registry", *[TransientError("down")] * 9999)
    with pytest.raises(DeadlineError, match="down"):
        fetcher(clock, folder, down).fetch("id", 0, 1)
    lacking = Scripted("registry", *[NotFoundError("not in the registry")] * 9)
    with pytest.raises(NotFoundError, match="not in the registry"):
        fetcher(clock, folder, lacking).fetch("id", 0, 1)


def test_a_wish_to_be_left_alone_is_respected() -> None:
    clock = Clock()
    only = Scripted("only", TransientError("429", retry_after_s=7))
    fetcher(clock, only).fetch("id", 0, 1)
    assert clock.pauses == [7]


def test_a_wish_beyond_the_deadline_ends_at_once() -> None:
    clock = Clock()
    only = Scripted("only", TransientError("429", retry_after_s=30))
    with pytest.raises(DeadlineError):
        fetcher(clock, only, deadline_s=20).fetch("id", 0, 1)
    assert clock.pauses == []


def test_an_attempt_gets_no_more_than_what_is_left() -> None:
    clock = Clock()
    only = Scripted("only", clock=clock)
    fetcher(clock, only).fetch("id", 0, 1)
    fetcher(clock, only).fetch("id", 0, 1, deadline=clock.now + 3)
    assert only.asked[0] == pytest.approx(ATTEMPT_S, abs=0.01)
    assert only.asked[1] == pytest.approx(3)
    with pytest.raises(DeadlineError):
        fetcher(clock, only).fetch("id", 0, 1, deadline=clock.now - 1)


def test_wrong_bytes_are_asked_for_elsewhere_and_then_once_more() -> None:
    one, two, three = Scripted("1"), Scripted("2", TransientError("gone")), Scripted("3")
    clock = Clock()
    found = list(
        fetcher(clock, one, two, three).refetch_elsewhere(
            "id", 0, 4, than=one, deadline=clock.now + 9
        )
    )
    assert [source for _, source in found] == [three, one]


def test_who_does_not_help_out_is_asked_last_afterwards() -> None:
    clock = Clock()
    one, two, three = Scripted("1"), Scripted("2", FetchError("down")), Scripted("3")
    sources = fetcher(clock, one, two, three)
    list(sources.refetch_elsewhere("id", 0, 4, than=one, deadline=clock.now + 9))
    one.answers = [FetchError("down")]
    assert sources.fetch("id", 0, 4).source is three
    assert len(two.asked) == 1


def test_asking_elsewhere_does_not_begin_the_readers_wait_anew() -> None:
    clock = Clock()
    one, two = Scripted("1", clock=clock), Scripted("2", clock=clock)
    found = fetcher(clock, one, two).refetch_elsewhere(
        "id", 0, 4, than=one, deadline=clock.now + 0.005
    )
    assert [source for _, source in found] == [two]
    assert one.asked == []
    assert two.asked == [pytest.approx(0.005)]


def test_the_link_is_measured() -> None:
    clock = Clock()

    class Slow(Scripted):
        def read_range_within(
            self, blob_id: str, offset: int, size: int, timeout_s: float
        ) -> bytes:
            clock.now += 0.02 + size / 1e6
            return BLOB[offset : offset + size]

    slow = fetcher(clock, Slow("slow"))
    for number in range(1, 20):
        slow.read_range("id", 0, number * 50_000)
    assert slow.estimate.round_trip_s == pytest.approx(0.02, rel=0.05)
    assert slow.estimate.bytes_per_s == pytest.approx(1e6, rel=0.05)


def test_a_plain_source_is_asked_once() -> None:
    class Plain(RangeSource):
        calls = 0

        def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
            self.calls += 1
            raise TransientError("x")

    plain = Plain()
    with pytest.raises(TransientError):
        asked_once(plain).read_range("id", 0, 1)
    assert plain.calls == 1
    with pytest.raises(ValueError, match="needs a source"):
        Fetcher([])


@contextmanager
def registry_fetcher(
    registry: FakeRegistry, *, deadline_s: float = 60.0
) -> Iterator[tuple[Fetcher, str]]:
    digest = registry.add_blob(BLOB)
    reference = parse_reference(f"docker://{registry.host}/app")
    with RegistryRepository(reference, ClientOptions(timeout_s=30.0)) as repository:
        policy = RetryPolicy(first_pause_s=0.01, max_pause_s=0.05, deadline_s=deadline_s)
        yield Fetcher([RepositorySource(repository)], policy=policy), digest.removeprefix("sha256:")


def status(code: int, **headers: str) -> object:
    lines = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda exchange: exchange.answer(code, b"{}", lines)


def cut(exchange: Exchange) -> bool:
    return exchange.raw(
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 100\r\n"
        b"Content-Range: bytes 0-99/1048576\r\n\r\n" + BLOB[:50]
    )


def long_answer(exchange: Exchange) -> bool:
    return exchange.answer(206, BLOB[:200], {"Content-Range": "bytes 0-199/1048576"})


def other_range(exchange: Exchange) -> bool:
    return exchange.answer(206, BLOB[1:101], {"Content-Range": "bytes 1-100/1048576"})


def whole(exchange: Exchange) -> bool:
    return exchange.answer(200, BLOB)


FAULTS = {
    "connection lost": lambda exchange: exchange.reset(),
    "429 with Retry-After": status(429, Retry_After="0"),
    "500": status(500),
    "502": status(502),
    "503 with a date": status(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "504": status(504),
    "short body": cut,
    "long body": long_answer,
    "another range": other_range,
    "no HTTP": lambda exchange: exchange.raw(b"\0" * 40),
    "200 instead of 206": whole,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("times", [1, 4])
def test_what_registries_do(fault: str, times: int) -> None:
    with fake_registry() as registry, registry_fetcher(registry) as (source, blob_id):
        registry.rule("GET", "/blobs/", FAULTS[fault], times=times)  # type: ignore[arg-type]
        assert source.read_range(blob_id, 0, 100) == BLOB[:100]


def test_a_token_that_ends_in_the_middle_is_renewed_once_for_all() -> None:
    with fake_registry() as registry, registry_fetcher(registry) as (source, blob_id):
        registry.token = "first"
        assert source.read_range(blob_id, 0, 10) == BLOB[:10]
        given = registry.tokens_given
        registry.token = "second"
        results: list[bytes] = []
        threads = [
            threading.Thread(
                target=lambda at=at: results.append(bytes(source.read_range(blob_id, at, 9)))
            )
            for at in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(results) == sorted(BLOB[at : at + 9] for at in range(8))
        assert registry.tokens_given == given + 1


def test_an_address_that_expired_is_resolved_again() -> None:
    with (
        fake_registry() as store,
        fake_registry() as registry,
        registry_fetcher(registry) as (source, blob_id),
    ):
        store.add_blob(BLOB)
        registry.redirect_blobs_to = store.host
        assert source.read_range(blob_id, 0, 10) == BLOB[:10]
        for code in (403, 404):
            store.rule("GET", "", status(code))  # type: ignore[arg-type]
            before = registry.count("GET", "/blobs/")
            assert source.read_range(blob_id, 0, 10) == BLOB[:10]
            assert registry.count("GET", "/blobs/") == before + 1


def test_silence_ends_at_the_deadline() -> None:
    heard = threading.Event()

    def silent(exchange: Exchange) -> bool:
        heard.wait(60)
        return exchange.reset()

    with fake_registry() as registry, registry_fetcher(registry, deadline_s=0.6) as (source, blob):
        registry.rule("GET", "/blobs/", silent, times=99)
        with pytest.raises(FetchError) as caught:
            source.read_range(blob, 0, 10)
        assert not heard.is_set(), "it ended while nobody had answered"
        heard.set()
        assert caught.value.errno == errno.ETIMEDOUT


def test_integrity_is_not_the_business_of_a_source() -> None:
    only = Scripted("only", IntegrityError("impossible"))
    with pytest.raises(IntegrityError):
        fetcher(Clock(), only).fetch("id", 0, 1)
