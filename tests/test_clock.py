"""Times as people write them."""

from __future__ import annotations

import pytest

from aks.clock import format_time, parse_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("75.25", 75.25), ("1:15.25", 75.25), ("1:01:15", 3675), ("100:00:00", 360000), ("00:09", 9)],
)
def test_a_time_is_read(text, seconds):
    assert parse_time(text) == seconds
    assert parse_time(format_time(seconds)) == seconds


@pytest.mark.parametrize(
    "text", ["", "1:75", "1:60:00", "-3", "1:2:3:4", "nan", "1e3", ":30", "1:", "1 s", "\u0663"]
)
def test_another_text_is_refused(text):
    with pytest.raises(ValueError, match="use seconds or h:mm:ss"):
        parse_time(text)


def test_a_time_is_rounded_to_milliseconds_before_it_is_divided():
    assert [format_time(s) for s in (59.9996, 3599.9999, 0.0004)] == [
        "0:01:00.000",
        "1:00:00.000",
        "0:00:00.000",
    ]
