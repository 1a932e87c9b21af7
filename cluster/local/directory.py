"""The files of a local cluster's directory: who owns it, and its `cluster.toml`."""

from __future__ import annotations

import fcntl
import os
import random
import re
from pathlib import Path
from typing import TextIO

from cluster.local.ports import HOST, Ports
from cluster.settings import ClusterSettings


class LocalClusterError(Exception):
    """A local cluster cannot be had as asked for; the text is one sentence for the person."""


def take_lock(directory: Path) -> TextIO:
    """Own the directory, made if it is not there, until the file is closed.

    Raises LocalClusterError while another process does.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = (directory / "lock").open("a+", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise LocalClusterError(
            f"{directory} is in use by another `assent up` (process {owner});"
            " stop that one, or give another --data-dir"
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def new_toml(ports: Ports) -> str:
    """A new cluster's file. The name is drawn, so that nodes of two clusters never mix."""
    name = f"local-{random.SystemRandom().getrandbits(32):08x}"
    lines = ["[cluster]", f'name = "{name}"']
    for node_id, port in ports.api.items():
        lines += ["", f"[nodes.{node_id}]", f'api = "{HOST}:{port}"']
        lines += [f'raft = "{HOST}:{ports.raft[node_id]}"']
    return "\n".join(lines) + "\n\n"


def moved_toml(text: str, settings: ClusterSettings, ports: Ports) -> str:
    """The file with other ports; what people wrote into it stays."""
    moves: dict[str, str] = {}
    for node in settings.nodes:
        for address in (node.api, node.api_bind):
            moves[f'"{address}"'] = f'"{HOST}:{ports.api[node.id]}"'
        for address in (node.raft, node.raft_bind):
            moves[f'"{address}"'] = f'"{HOST}:{ports.raft[node.id]}"'
    pattern = "|".join(re.escape(old) for old in moves)
    return re.sub(pattern, lambda match: moves[match[0]], text)


def write_whole(path: Path, text: str) -> None:
    """All of it or nothing."""
    aside = path.with_suffix(".new")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
