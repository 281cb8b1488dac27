from __future__ import annotations

import threading

from lamina.errors import FetchError
from lamina.source.single_flight import SingleFlight


def test_one_claims_and_others_wait() -> None:
    flights: SingleFlight[int] = SingleFlight()
    mine, others = flights.claim([1, 2])
    assert [flight.key for flight in mine] == [1, 2]
    assert others == []
    more, waited = flights.claim([2, 3])
    assert [flight.key for flight in more] == [3]
    assert waited == [mine[1]]


def test_waiting_ends_when_the_flight_lands() -> None:
    flights: SingleFlight[int] = SingleFlight()
    (flight,), _ = flights.claim([1])
    seen: list[object] = []
    threads = [threading.Thread(target=lambda: seen.append(flight.wait())) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert seen == []
    flights.land(flight)
    for thread in threads:
        thread.join(60)
    assert seen == [None] * 5


def test_a_failure_reaches_all_who_wait_and_is_forgotten() -> None:
    flights: SingleFlight[int] = SingleFlight()
    (flight,), _ = flights.claim([1])
    _, (waited,) = flights.claim([1])
    error = FetchError("gone")
    flights.land(flight, error)
    assert waited.wait() is error
    (again,), others = flights.claim([1])
    assert others == []
    assert again.error is None


def test_landing_twice_does_nothing() -> None:
    flights: SingleFlight[int] = SingleFlight()
    (flight,), _ = flights.claim([1])
    flights.land(flight)
    (newer,), _ = flights.claim([1])
    flights.land(flight, FetchError("late"))
    assert flight.wait() is None
    assert flights.claim([1])[1] == [newer]
