"""What is remembered of what participants have said of themselves."""

from __future__ import annotations

import pytest

from coordinator.declarations import Declarations
from participants.contract import PLAIN, Declaration

SDK = Declaration(repeatable_prepare=True, inquiry=True, batch_path="/b/batch").header()


def test_a_batch_goes_to_the_declared_path_on_the_participants_host() -> None:
    said = Declarations()
    assert "http://h:1/b" not in said
    assert said.of("http://h:1/b") is PLAIN
    said.heard("http://h:1/b", SDK)
    assert "http://h:1/b" in said
    assert said.batch_url("http://h:1/b", 0.0) == "http://h:1/b/batch"
    said.heard("http://h:1/b", None)
    assert said.of("http://h:1/b") == PLAIN
    assert said.batch_url("http://h:1/b", 0.0) is None


def test_who_refused_a_batch_is_sent_none_for_a_minute_whatever_it_says() -> None:
    said = Declarations()
    said.heard("http://h", SDK)
    said.refused_batch("http://h", 100.0)
    said.heard("http://h", None)  # a page of somebody else's
    said.heard("http://h", SDK)
    assert said.batch_url("http://h", 159.9) is None
    assert said.batch_url("http://h", 160.0) == "http://h/b/batch"


def test_what_is_remembered_is_bounded_refusals_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.declarations._MOST", 2)
    said = Declarations()
    for url in ("http://a", "http://b", "http://a", "http://c"):
        said.heard(url, SDK)
        said.refused_batch(url, 0.0)
    assert ["http://a" in said, "http://b" in said, "http://c" in said] == [True, False, True]
    said.refused_batch("http://b", 0.0)
    assert len(said._said) == 2


def test_repeatable_is_who_says_that_it_may_be_asked_twice_and_that_it_inquires() -> None:
    said = Declarations()
    said.heard("http://sdk", SDK)
    said.heard("http://half", "1; repeatable-prepare")
    said.heard("http://was", SDK)
    said.heard("http://was", None)
    asked = ("http://sdk", "http://half", "http://was", "http://stranger", "http://sdk")
    assert said.repeatable(asked) == (True, False, False, False, True)
