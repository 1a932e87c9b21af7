"""docs/pysyncobj.md and the tests name each other."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent.parent
PAGE = (TESTS.parent / "docs" / "pysyncobj.md").read_text(encoding="utf-8")


def names_defined(folder: Path) -> set[str]:
    return {
        name
        for path in folder.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 50
    assert sorted(named - names_defined(TESTS)) == []


def test_every_flaw_shown_on_the_library_is_on_the_page() -> None:
    shown = {name for name in names_defined(TESTS / "pysyncobj_flaws") if "_stock_" in name}
    assert sorted(name for name in shown if f"`{name}`" not in PAGE) == []


def test_the_page_has_every_flaw_once() -> None:
    headings = re.findall(r"^### (\w+)\. ", PAGE, re.MULTILINE)
    wanted = [f"S{n}" for n in range(1, 19)] + ["S6b", "D"] + [f"L{n}" for n in range(1, 13)]
    assert sorted(headings) == sorted(wanted)
