"""uvloop where it is installed and nobody says otherwise."""

from __future__ import annotations

import asyncio

import pytest

from participants import event_loop


async def module_of_the_loop() -> str:
    return type(asyncio.get_running_loop()).__module__.split(".", maxsplit=1)[0]


@pytest.mark.parametrize(("wanted", "found"), [("", "uvloop"), ("asyncio", "asyncio")])
def test_uvloop_is_used_unless_asyncio_is_asked_for(
    wanted: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(event_loop.VARIABLE, wanted)
    assert event_loop.run(module_of_the_loop()) == found


def test_without_uvloop_asyncio_serves_and_insisting_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uvloop", None)
    monkeypatch.delenv(event_loop.VARIABLE, raising=False)
    assert event_loop.run(module_of_the_loop()) == "asyncio"
    monkeypatch.setenv(event_loop.VARIABLE, "uvloop")
    with pytest.raises(ImportError):
        event_loop.run(module_of_the_loop())


def test_another_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(event_loop.VARIABLE, "trio")
    with pytest.raises(ValueError, match="'trio' is neither asyncio nor uvloop"):
        event_loop.run(module_of_the_loop())
