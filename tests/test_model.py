"""The protocol's small cases hold with the project's own code, and break with each rule broken.

The larger worlds are explored by the command only: `python -m tests.model --large`.
"""

from __future__ import annotations

import pytest

from tests.model.cases import ONE, ONE_PLAIN, SDK, STANDARD, Case
from tests.model.explorer import STUCK, explore
from tests.model.mutants import MUTANTS
from tests.model.parts import Message, State
from tests.model.world import Step, World


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", STANDARD, ids=lambda case: case.name.replace(" ", "-"))
def test_every_interleaving_of_the_case_holds(case: Case) -> None:
    explored = explore(World(case))
    assert explored.complete
    assert explored.fault is None, "\n".join([explored.fault, *explored.steps])
    assert explored.states > 500  # it went somewhere


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_noticed(name: str) -> None:
    mutant = MUTANTS[name]
    explored = mutant.explored()
    assert explored.fault is not None, f"nobody noticed {name}"
    assert explored.fault.startswith(mutant.says), "\n".join([explored.fault, *explored.steps])
    assert explored.steps


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", [ONE, ONE_PLAIN], ids=lambda case: case.name.replace(" ", "-"))
def test_what_is_left_out_because_it_cannot_matter_does_not(case: Case) -> None:
    whole, reduced = explore(World(case, reduced=False)), explore(World(case))
    assert whole.complete
    assert whole.fault is None, "\n".join([whole.fault, *whole.steps])
    assert whole.states > reduced.states


def test_a_broken_rule_is_mended_again_when_its_context_ends() -> None:
    for mutant in MUTANTS.values():
        with mutant.switched_on():
            pass
    assert explore(World(ONE)).fault is None


@pytest.mark.timeout(600)
def test_a_state_from_which_nobody_finishes_is_noticed() -> None:
    """The world in which no leader answers an inquiry: what is prepared may stay so for ever."""

    class Mute(World):
        def _inquiry_arrives(self, state: State, message: Message, found: list[Step]) -> None:
            pass

    explored = explore(Mute(Case("mute", SDK)))
    assert explored.fault == STUCK
    assert explored.steps
