"""The commands that look into a node's data directory: journal inspect, journal verify.

exit code  0  nothing is wrong
           1  something is damaged: which file, where, what that means, what to do
           2  not a data directory, or one that this program may not read
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cluster.cli.output import print_json, table
from cluster.storage.journal_format import NOWHERE
from cluster.storage.journal_inspection import (
    Finding,
    Inspection,
    SegmentFound,
    entries_in_words,
    inspect,
)

_EXIT_DAMAGED = 1


def add_commands(commands: Any) -> None:
    """Add these commands to the subparsers of `assent`."""
    journal = commands.add_parser(
        "journal",
        help="look into a node's data directory, verify it",
        description="Look into a node's data directory. Nothing in it is changed, and the node may"
        " be running.",
    )
    kinds = journal.add_subparsers(title="commands", metavar="COMMAND", required=True)

    look = kinds.add_parser(
        "inspect",
        help="what the files hold",
        description="Whose directory it is, its segments, term and vote, how far it was synced, its"
        " snapshot and, if asked, every entry of the log in words.",
    )
    _add_directory(look)
    look.add_argument("--entries", action="store_true", help="every entry, in words")
    look.set_defaults(run=_inspect)

    verify = kinds.add_parser(
        "verify",
        help="whether the files are as they were written",
        description="Check every checksum, the order of all records, the snapshot's digest, whose"
        " files they are, and that every command can be read. Exit code 1 if anything is damaged.",
    )
    _add_directory(verify)
    verify.set_defaults(run=_verify)


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=Path, help="the node's data directory")
    parser.add_argument("--json", action="store_true", help="one line of JSON")


def _inspect(arguments: argparse.Namespace) -> int:
    found = inspect(arguments.directory)
    if arguments.json:
        print_json(_shown(found, entries=arguments.entries))
    else:
        lines = _told(found)
        if arguments.entries:
            lines += ["", *_entries_told(found)]
        print("\n".join(lines))
    return _EXIT_DAMAGED if found.findings else 0


def _verify(arguments: argparse.Namespace) -> int:
    found = inspect(arguments.directory, verify=True)
    if arguments.json:
        print_json(_shown(found, entries=False))
    elif found.findings:
        print("\n".join(_findings_told(found)))
    else:
        groups = sum(segment.groups for segment in found.segments)
        snapshot = f", a snapshot of {found.snapshot_bytes:,} bytes" if found.snapshot else ""
        whole = (
            f"{found.directory} is whole: {len(found.segments)} segments, {groups} groups,"
            f" {len(found.log.entries)} entries{snapshot}"
        )
        print("\n".join([whole, *_remarks(found)]))
    return _EXIT_DAMAGED if found.findings else 0


# --- text


def _told(found: Inspection) -> list[str]:
    lines = [f"node {found.node} of cluster {found.cluster}, in {found.directory}"]
    if found.segments:
        heads = ("segment", "bytes", "groups", "entries")
        rows = [
            (s.path.name, f"{s.size:,}", f"{s.groups:,}", _range(s.first_index, s.last_index))
            for s in found.segments
        ]
        lines += ["", *table(heads, rows), ""]
    log = found.log
    if log.entries:
        first, last = log.entries[0], log.entries[-1]
        lines.append(f"log       entries {first[1]} to {last[1]}, the last of term {last[2]}")
    else:
        lines.append("log       no entries")
    vote = f"voted for {log.vote}" if log.vote else "no vote"
    lines.append(f"term      {log.term}, {vote}; {log.commit_hint} was known to be committed")
    if found.watermark != NOWHERE:
        segment, offset = found.watermark
        lines.append(
            f"synced    to byte {offset:,} of segment {segment}: up to entry {found.synced_index}"
        )
    if found.snapshot is not None:
        _, index, term = found.snapshot.last
        lines.append(
            f"snapshot  to entry {index} of term {term}, {found.snapshot_bytes:,} bytes,"
            f" voters {', '.join(found.snapshot.members)}"
        )
    else:
        lines.append("snapshot  none")
    return [*lines, *_remarks(found), *(["", *_findings_told(found)] if found.findings else [])]


def _range(first: int, last: int) -> str:
    return f"{first} to {last}" if first else "none"


def _remarks(found: Inspection) -> list[str]:
    lines = []
    if found.running:
        lines.append(
            "the node is running: this is one moment of it, and what it writes just now may look"
            " torn"
        )
    if found.tear is not None:
        number, offset = found.tear.position
        lines.append(
            f"segment {number}, byte {offset}: {found.tear}. It lies behind the last sync, so"
            " nobody was promised it; the next start cuts it away"
        )
    return lines + found.notes


def _findings_told(found: Inspection) -> list[str]:
    lines = []
    for finding in found.findings:
        lines += [
            f"{finding.path} is damaged at byte {finding.offset}: {finding.what}",
            f"  {finding.meaning}",
            f"  {finding.next}.",
        ]
    if found.running:
        lines.append("The node is running; stop it and verify again before anything is done.")
    return lines


def _entries_told(found: Inspection) -> list[str]:
    rows = []
    for (_, index, term), words in entries_in_words(found):
        rows += [(str(index), str(term), words[0] if words else "nothing")]
        rows += [("", "", more) for more in words[1:]]
    return table(("entry", "term", "says"), rows)


# --- JSON


def _shown(found: Inspection, *, entries: bool) -> dict[str, Any]:
    shown = {
        "directory": str(found.directory),
        "running": found.running,
        "cluster": found.cluster,
        "node": found.node,
        "segments": [_segment_shown(segment) for segment in found.segments],
        "first_index": found.log.entries[0][1] if found.log.entries else None,
        "last_index": found.log.entries[-1][1] if found.log.entries else None,
        "term": found.log.term,
        "vote": found.log.vote,
        "commit_hint": found.log.commit_hint,
        "watermark": {
            "segment": found.watermark[0],
            "offset": found.watermark[1],
            "last_index": found.synced_index,
        },
        "torn_at": None
        if found.tear is None
        else {"segment": found.tear.position[0], "offset": found.tear.position[1]},
        "snapshot": None
        if found.snapshot is None
        else {
            "last_index": found.snapshot.last[1],
            "last_term": found.snapshot.last[2],
            "members": found.snapshot.members,
            "bytes": found.snapshot_bytes,
        },
        "damage": [_finding_shown(finding) for finding in found.findings],
        "notes": found.notes,
    }
    if entries:
        shown["entries"] = [
            {"index": index, "term": term, "says": words}
            for (_, index, term), words in entries_in_words(found)
        ]
    return shown


def _segment_shown(segment: SegmentFound) -> dict[str, Any]:
    return {
        "number": segment.number,
        "file": segment.path.name,
        "bytes": segment.size,
        "groups": segment.groups,
        "first_index": segment.first_index or None,
        "last_index": segment.last_index or None,
        "without_sync": segment.without_sync,
    }


def _finding_shown(finding: Finding) -> dict[str, Any]:
    return {
        "file": str(finding.path),
        "offset": finding.offset,
        "what": finding.what,
        "means": finding.meaning,
        "next": finding.next,
    }
