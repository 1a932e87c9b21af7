"""How long an answer asks its receiver to wait."""

from __future__ import annotations

import pytest

from participants.retry_after import retry_after_s

SAID_AT = "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    ("retry_after", "date", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:51:07 GMT", SAID_AT, 90.0),
        ("Sunday, 06-Nov-94 08:51:07 GMT", SAID_AT, 90.0),
        ("Sun Nov  6 08:51:07 1994", SAID_AT, 90.0),
        ("Sun, 06 Nov 1994 08:49:00 GMT", SAID_AT, 0.0),
        ("Sun, 06 Nov 1994 08:51:07 GMT", "", None),
        ("Sun, 99 Nov 1994 08:51:07 GMT", SAID_AT, None),
        ("Sun, 06 Nov 1994 08:51:07 +99999999999999999999", SAID_AT, None),
        ("\u0663", SAID_AT, None),
        ("", SAID_AT, None),
    ],
)
def test_a_pause_may_be_a_date_by_the_clock_of_who_wrote_it(
    retry_after: str, date: str, seconds: float | None
) -> None:
    assert retry_after_s({"Retry-After": retry_after, "Date": date}) == seconds
