"""What comes of each message at each participant, once for each input (see `services.py`)."""

from __future__ import annotations

from collections.abc import Iterator

from participants.branch import State as BranchState
from participants.contract import Decision, Failed, Operation
from tests.model.cases import PLAIN
from tests.model.parts import Message, Parts
from tests.model.services import (
    Answer,
    Delivered,
    Service,
    plain_ended,
    plain_prepared,
    sdk_ended,
    sdk_obeyed,
    sdk_prepared,
)


class Deliveries(Parts):
    """What messages do."""

    def _deliveries(
        self, service: int, message: int, late: bool
    ) -> list[tuple[str, int, Answer, int]]:
        """What may come of a call: what, the service after it, the answer, its inquiry to come."""
        key = ("delivered", service, message, late)
        found: list[tuple[str, int, Answer, int]] | None = self._known.get(key)
        if found is None:
            found = self._known[key] = []
            sent = self._messages[message]
            for delivered in self._make_deliveries(self._services[service], sent, late):
                state = self._services[service].state
                what = f"{sent.place} ({state}) gets {sent.kind} and {delivered.what}"
                after, asks = delivered.after, 0
                if after.state is BranchState.PREPARED and self.case.kinds[sent.place] != PLAIN:
                    inquiry = Message("inquiry", sent.place, after.fingerprint or "")
                    asks = 1 << self._messages(inquiry)
                found.append((what, self._services(after), delivered.answer, asks))
        return found

    def _make_deliveries(self, service: Service, sent: Message, late: bool) -> Iterator[Delivered]:
        case, plain = self.case, self.case.kinds[sent.place] == PLAIN
        if sent.kind == "prepare":
            if plain:
                yield from plain_prepared(
                    service,
                    sent.body,
                    case.votes,
                    useless=case.useless_answers,
                    slow=case.slow,
                )
                return
            yield from sdk_prepared(service, sent.body, case.votes, late=late)
            if case.useless_answers:
                yield Delivered("answers 500", service, Failed("answered 500", answered=True))
        elif plain:
            yield plain_ended(service, Operation(sent.kind))
        else:
            yield sdk_ended(service, Operation(sent.kind), sent.body, late=late)

    def _obeyed(self, service: int, answer: int, late: bool) -> int:
        key = ("obeyed", service, answer, late)
        after: int | None = self._known.get(key)
        if after is None:
            sent = self._messages[answer]
            branch_id, decision = str(sent.place + 1), Decision(sent.text)
            after = self._services(
                sdk_obeyed(self._services[service], branch_id, decision, late=late)
            )
            self._known[key] = after
        return after
