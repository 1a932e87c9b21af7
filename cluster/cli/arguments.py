"""Arguments of commands out of what was typed: a mistake in one is told before anybody is asked."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from coordinator.facts import State
from coordinator.ids import ID_RULE, is_valid_id


def transaction_id(text: str) -> str:
    if not is_valid_id(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no transaction's id: it {ID_RULE}")
    return text


def states(text: str) -> str:
    """One or more, separated by commas."""
    for name in text.split(","):
        if name not in list(State):
            known = ", ".join(State)
            raise argparse.ArgumentTypeError(f"{name!r} is no state; there are {known}")
    return text


def whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def at_least_one(text: str) -> int:
    """How much is too much, a cluster's settings say."""
    number = whole_number(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


def seconds(text: str) -> float:
    return _above_nothing(text, "a number of seconds")


def more_than_nothing(text: str) -> float:
    return _above_nothing(text, "a number")


def not_negative(text: str) -> float:
    number = number_in(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return number


def share(text: str) -> float:
    number = number_in(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return number


def directory(text: str) -> str:
    """One that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a directory")
    return text


def file_to_write(text: str) -> Path:
    """What takes long to find out must not be lost for want of a place."""
    file = Path(text)
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{file} is a directory; name a file in it")
    if not file.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{file.parent} is not a directory")
    return file


def _above_nothing(text: str, what: str) -> float:
    number = number_in(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} above 0")
    return number


def number_in(text: str) -> float:
    """NaN, which lies in no range, of what is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan
