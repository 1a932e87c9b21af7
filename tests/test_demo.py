"""The demo, as a newcomer runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent


def test_the_demo_kills_the_leader_and_every_check_holds(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    command = [sys.executable, "-m", "cluster", "demo", "--seconds", "4", "--json"]
    ran = subprocess.run(
        [*command, "--data-dir", str(directory)],
        cwd=PROJECT,
        capture_output=True,
        check=False,
        timeout=110,
    )
    assert ran.stdout, ran.stderr.decode()
    report = json.loads(ran.stdout)
    assert [check for check in report["checks"] if not check["held"]] == []
    assert (ran.returncode, report["held"]) == (0, True)
    figures = report["figures"]
    assert figures["committed"] > 0
    assert figures["unknown_to_the_client"] == 0
    assert figures["leader_killed"] != figures["leader_after"]
    assert len(report["checks"]) >= 12


def test_a_demo_that_is_told_to_end_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cluster", "demo", "--seconds", "60"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    demo = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE)
    with demo:
        assert demo.stdout is not None
        assert b"starting three nodes" in demo.stdout.readline()
        assert list(tmp_path.iterdir())
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert list(tmp_path.iterdir()) == []
