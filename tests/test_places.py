"""Who has a place, who waits for one, and whose turn it is."""

from __future__ import annotations

from random import Random

from coordinator.places import Places


def filled(most: int, **taken: int) -> Places[str, str]:
    places: Places[str, str] = Places(most)
    for origin, count in taken.items():
        assert all(places.take(origin) for _ in range(count))
    return places


def test_one_origin_has_a_fourth_at_most_and_all_together_no_more_than_there_are() -> None:
    places = filled(8, a=2, b=2, c=2, d=1)
    assert not places.take("a")
    assert places.take("e")
    assert not places.take("f")
    assert places.leave("e") is None
    assert places.take("f")


def test_however_few_there_are_everybody_may_have_one() -> None:
    assert filled(0, a=1).taken == 1
    assert filled(3, a=1, b=1, c=1).taken == 3


def test_a_place_that_is_left_goes_to_who_waits_first_and_may_have_it() -> None:
    places = filled(8, a=2, b=2, c=2, d=2)
    for origin, waiter in (("a", "a1"), ("e", "e1"), ("e", "e2"), ("f", "f1")):
        places.wait(origin, waiter)
    assert places.leave("d") == "e1", "a has its share"
    assert places.leave("d") == "f1", "it was e's turn before"
    assert places.leave("a") == "a1"
    places.withdraw("e", "e2")
    places.withdraw("e", "e2")
    assert places.leave("b") is None
    assert places.taken == 7


def test_who_is_given_what_got_free_waits_no_more() -> None:
    places = filled(4, a=1)
    places.wait("a", "a1")
    places.wait("a", "a2")
    assert [places.next_of("a"), places.next_of("a"), places.next_of("a")] == ["a1", "a2", None]
    assert places.leave("a") is None


def test_nobody_waits_for_a_place_that_is_free() -> None:
    random = Random(5)
    places: Places[str, int] = Places(12)
    held: list[str] = []
    waiting: dict[int, str] = {}
    for step in range(5_000):
        if held and random.random() < 0.5:
            given = places.leave(held.pop(random.randrange(len(held))))
            if given is not None:
                held.append(waiting.pop(given))
        elif waiting and random.random() < 0.2:
            gone = random.choice(list(waiting))
            places.withdraw(waiting.pop(gone), gone)
        else:
            origin = random.choice("abcdef")
            if places.take(origin):
                held.append(origin)
            else:
                places.wait(origin, step)
                waiting[step] = origin
        assert places.taken == len(held) <= 12
        assert all(held.count(origin) <= 3 for origin in "abcdef")
        assert set(places._taken_by) == set(held), "nothing is kept of an origin that has none"
        for origin in waiting.values():
            assert len(held) == 12 or held.count(origin) == 3
