"""A profile is text that says the same when it is read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.build.start_profile import (
    Profile,
    ProfileLine,
    decode_profile,
    encode_profile,
    merged,
    profile_of,
)
from lamina.errors import FormatError

PATHS = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name)


@given(
    st.lists(st.tuples(PATHS.map(lambda name: b"/" + name), st.integers(0, 300)), max_size=40),
    st.lists(st.text(max_size=10), max_size=3),
)
def test_what_was_written_is_read(pages: list[tuple[bytes, int]], command: list[str]) -> None:
    profile = profile_of(pages, command)
    assert decode_profile(encode_profile(profile)) == profile
    found = [
        (line.path, page) for line in profile.lines for span in line.spans for page in range(*span)
    ]
    assert sorted(found) == sorted(set(pages))
    assert merged([profile, profile]) == profile


def test_regions_are_in_the_order_of_first_touch() -> None:
    pages = [(b"/b", 70), (b"/a", 1), (b"/b", 3), (b"/b", 71), (b"/a", 0), (b"/b", 69)]
    assert profile_of(pages).lines == (
        ProfileLine(b"/b", ((69, 72),)),
        ProfileLine(b"/a", ((0, 2),)),
        ProfileLine(b"/b", ((3, 4),)),
    )


def test_runs_are_merged_in_the_order_of_the_first() -> None:
    one = profile_of([(b"/a", 1), (b"/b", 0)], ["x"])
    other = profile_of([(b"/c", 0), (b"/a", 2)], ["y"])
    assert merged([one, other]) == profile_of(
        [(b"/a", 1), (b"/b", 0), (b"/c", 0), (b"/a", 2)], ["x"]
    )


def test_a_person_can_write_it() -> None:
    text = "# lamina start profile 1\n\n# what is this\n* /etc/passwd\n0-3,17 /bin/a b\\\\c\\nd\n"
    assert decode_profile(text) == Profile(
        (ProfileLine(b"/etc/passwd"), ProfileLine(b"/bin/a b\\c\nd", ((0, 4), (17, 18))))
    )


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("0-3 bin/sh", "no absolute path"),
        ("0-3", "no absolute path"),
        ("3-0 /a", "no pages"),
        ("0-5,3 /a", "no pages"),
        ("0-9999999999 /a", "no pages"),
        ("-1 /a", "no pages"),
        ("# command: [1]", "line 2"),
    ],
)
def test_what_makes_no_sense_is_named_by_its_line(row: str, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        decode_profile(f"# lamina start profile 1\n{row}\n")


def test_another_file_is_no_profile() -> None:
    with pytest.raises(FormatError, match="no start profile"):
        decode_profile("0-3 /bin/sh\n")
