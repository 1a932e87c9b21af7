"""What every process that serves does at its start: it allows many connections, collects seldom."""

from __future__ import annotations

import gc
import logging
import resource
from typing import Final

LOG = logging.getLogger("assent.process")

FEW_FILES: Final = 4_096
"""A thousand clients, as many connections to participants, and room for files and bursts."""

_WITHOUT_LIMIT: Final = 10_240
"""Where there is no hard limit: macOS allows no process more than that, and refuses 'unlimited'."""


def prepare_to_serve() -> None:
    """Called once, when the modules are there and logs are configured, before the loop runs."""
    allow_many_connections()
    if (limit := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < FEW_FILES:
        LOG.warning(
            "%d open files are allowed, connections are among them: a process that uses them up "
            "cannot write its data and ends; raise the hard limit (ulimit -Hn) to %d",
            *(limit, FEW_FILES),
        )
    _collect_seldom()


def allow_many_connections() -> None:
    """As many open files as the system lets us have, for this process and those it starts.

    The limit that a shell gives is often 1,024. Clients alone would use it up, and the journal's
    next file could not be opened.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, _WITHOUT_LIMIT) if hard == resource.RLIM_INFINITY else hard
    if soft != wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _collect_seldom() -> None:
    """A busy node makes some hundred containers for each transaction, nearly all of which end with
    it, so that looking for circles after every 700 of them finds nothing: with this, a leader with
    256 clients needs 0.81 of the CPU. 50,000 young containers are looked at in some milliseconds.
    The modules are set aside: every full collection would look at them for 15 ms.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
