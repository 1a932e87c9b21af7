"""How long an HTTP answer asks its receiver to wait: the header `Retry-After` (RFC 9110). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """In seconds; None if it does not ask, or says it in no way that is known.

    `headers` finds a name in whatever case it is asked for. Instead of a number `Retry-After` may
    hold a date. That is read by the clock of who wrote it, which is in `Date`: ours may be another.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    until, now = _date(text), _date(headers.get("Date", ""))
    if until is None or now is None:
        return None
    return max(0.0, (until - now).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)  # always GMT, it says
