"""The campaign of faults on real processes, in its shortest form, and that it notices."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import real_faults
from tests.real_faults import Campaign, main

pytestmark = pytest.mark.timeout(180)


def test_a_short_round_is_sound_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["--rounds", "1", "--seconds", "2"]) == 0
    assert "0 violations" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_what_is_violated_is_told_and_its_directory_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def halves(campaign: Campaign, seed: str, seconds: float, directory: Path) -> None:
        del seconds, directory
        if seed == "1 2":
            campaign.wrong.append("I1: half of it happened")

    monkeypatch.setattr(real_faults.Campaign, "round", halves)
    assert main(["--rounds", "3"]) == 1
    said = capsys.readouterr().out
    assert "round 2" in said
    assert "half of it happened" in said
    assert len(list(tmp_path.iterdir())) == 1
