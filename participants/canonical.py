"""JSON in its one form, as it is stored and digested: sorted keys, no spaces, ASCII only. Pure."""

from __future__ import annotations

import json
import json.encoder
from collections.abc import Callable
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def _made_once() -> Callable[[Any], str]:
    """`_ENCODER.encode`; where the interpreter has its encoder in C, made once and for all.

    `encode` makes one for each value: 1.6 us of the 2.1 that a small payload costs, and a
    transaction has several. Without the memory against circles, which JSON that was decoded cannot
    have: one ends in a RecursionError.
    """
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return _ENCODER.encode
    quote = json.encoder.encode_basestring_ascii
    chunks = make(None, _ENCODER.default, quote, None, ":", ",", True, False, False)
    return lambda value: "".join(chunks(value, 0))


encode = _made_once()
"""The text of a value. Raises ValueError on NaN and infinities, RecursionError on what is nested
too deeply."""
