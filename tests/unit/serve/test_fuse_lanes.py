"""Lanes: each has its share, and nothing that waits is forgotten."""

from __future__ import annotations

from lamina.serve.fuse_lanes import MOST_THREADS, Lanes, share
from lamina.wire import fuse


def request(number: int) -> fuse.Request:
    return fuse.Request(fuse.Opcode.READ, number, number % 2, 0, 0, 0, memoryview(b""))


def test_what_is_too_much_waits_for_its_own_lane() -> None:
    lanes = Lanes(lambda request: request.nodeid, 2)
    requests = [request(number) for number in range(10)]
    entered = [each.unique for each in requests if lanes.enter(each)]
    assert entered == [0, 1, 2, 3]
    following = lanes.leave(requests[0])
    answered = []
    while following is not None:
        answered.append(following.unique)
        following = lanes.leave(following)
    assert answered == [4, 6, 8]
    # One of the even ones is still answered, so there is room for one.
    assert lanes.enter(request(20)) and not lanes.enter(request(22))


def test_what_is_in_no_lane_never_waits() -> None:
    lanes = Lanes(lambda _: None, 1)
    assert all(lanes.enter(request(0)) for _ in range(5))
    assert lanes.leave(request(0)) is None


def test_all_lanes_together_leave_threads() -> None:
    for lanes in (0, 1, 15, 16, 17, 63, 100, 1000):
        threads, of_lane = share(lanes, 16)
        assert 0 < lanes * of_lane < threads <= MOST_THREADS or not lanes
        assert of_lane == 16 or lanes > 60
