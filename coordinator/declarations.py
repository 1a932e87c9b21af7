"""What participants have said of themselves, as far as it is remembered. Pure.

Rules
- The last word counts. Who answers and says nothing is a plain one.
- As many are remembered as were heard last; one that is forgotten is a stranger again.
- Who refused a batch is sent none for a while, whatever it says of itself: something between us and
  it takes none, and does not say so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from participants.contract import PLAIN, Declaration, read_declaration

_MOST = 10_000
"""Participants that are remembered."""

_SINGLY_S = 60.0
"""For how long no batch is sent after one was refused."""


@dataclass(slots=True, eq=False)
class _Said:
    header: str | None = None
    declaration: Declaration = PLAIN
    repeatable: bool = False
    batch_url: str | None = None
    singly_until_s: float = 0.0


class Declarations:
    """By participant. Times are seconds of any clock that only grows."""

    def __init__(self) -> None:
        self._said: OrderedDict[str, _Said] = OrderedDict()

    def __contains__(self, participant: str) -> bool:
        """Whether it has answered, as far as is remembered."""
        return participant in self._said

    def of(self, participant: str) -> Declaration:
        """PLAIN until it has answered."""
        said = self._said.get(participant)
        return PLAIN if said is None else said.declaration

    def repeatable(self, participants: Iterable[str]) -> tuple[bool, ...]:
        """Of each, whether it may be asked for its vote twice, and inquires when it is in doubt."""
        said = self._said
        return tuple([each in said and said[each].repeatable for each in participants])

    def batch_url(self, participant: str, now_s: float) -> str | None:
        """Where it takes many messages at once; None if it does not, or is sent none for now."""
        said = self._said.get(participant)
        if said is None or now_s < said.singly_until_s:
            return None
        return said.batch_url

    def heard(self, participant: str, header: str | None) -> None:
        """It has answered, with this header; None: without one."""
        said = self._said.get(participant)
        if said is None:
            said = self._said[participant] = _Said()
        if said.header != header:
            said.header = header
            said.declaration = read_declaration(header)
            said.repeatable = not said.declaration.is_plain
            said.batch_url = _at_path(participant, said.declaration.batch_path)
        self._said.move_to_end(participant)
        if len(self._said) > _MOST:
            self._said.popitem(last=False)

    def refused_batch(self, participant: str, now_s: float) -> None:
        """Send it none for a while."""
        said = self._said.get(participant)
        if said is not None:
            said.singly_until_s = now_s + _SINGLY_S


def _at_path(url: str, path: str | None) -> str | None:
    """`path` on the scheme, host and port of `url`; None if there is no path."""
    if path is None:
        return None
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{path}"
