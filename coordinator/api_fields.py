"""One value at a time of what arrives over HTTP: JSON, fields, parameters, URLs. Pure.

Every refusal is an ApiError (400) that names the field by its path, or the parameter. A value of
another type is refused (`true` is no number), and so is what could not be stored: text that UTF-8
cannot carry, URLs that are not plain ASCII.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import json
import re
from array import array
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any, TypeVar
from urllib.parse import urlsplit

from coordinator import ids
from coordinator.api_errors import ApiError, bad_field
from coordinator.facts import State

MAX_URL_CHARS = 2_000
MAX_PLACE_CHARS = 200

Word = TypeVar("Word", bound=enum.StrEnum)

_STATES = frozenset(state.value for state in State)
_URL_CHARS = re.compile(r"[!-~]+")
_SIGNS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_SIGNS = bytes(set(range(256)) - set(b'"[]{}'))
"""Of JSON's bytes these are kept: quotes, and brackets as +1 and -1."""
_PLACE = re.compile(r"(?:\[[^][]+\]|[A-Za-z0-9._-]+)(?::[0-9]+)?")
"""Host and port; what stands in brackets is looked at by itself."""


# --- JSON -----------------------------------------------------------------------------------------


def decode_json(body: bytes) -> Any:
    """The JSON value in a body: UTF-8, no NaN or infinities, no name twice in an object."""
    try:
        return DECODER.decode(body.decode("utf-8"))
    except RecursionError:
        what = "it is nested too deeply"
    except UnicodeDecodeError as error:
        what = f"byte {error.start} is not UTF-8"
    except ValueError as error:
        what = str(error)
    raise not_json(what)


def not_json(what: str) -> ApiError:
    what, _, _ = what.partition("; use sys.")  # Python's advice, of an integer of 4,301 digits
    return ApiError(400, "malformed_json", f"The body is not JSON: {what}.")


def is_deeper(encoded: bytes, most: int) -> bool:
    """Whether objects and lists are nested in each other more than `most` deep, in JSON as
    `encode_json` gives it.

    Told by its bytes: of the dearest megabyte that costs a fifth of walking over the values.
    """
    if encoded.count(b"[") + encoded.count(b"{") <= most:
        return False
    # What is escaped goes first, then all but quotes and brackets. Then texts are between quotes;
    # two quotes in a row may go, for what follows them is within a text, or is not, as before.
    signs = encoded.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_SIGNS, _NO_SIGNS)
    outside = signs.replace(b'""', b"").split(b'"')[::2]
    return max(accumulate(array("b", b"".join(outside))), default=0) > most


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError(f"an object has a name twice, among {listed(fields)}")
    return fields


DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique)
"""No NaN or infinities, no name twice in an object: then it raises ValueError."""


# --- values of fields -----------------------------------------------------------------------------


Known = Mapping[str, None]
"""The fields that an object may have, in the order in which they are told."""


def object_of(value: Any, path: str, known: Known) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad_field(path, "must be an object")
    if value.keys() <= known.keys():
        return value
    unknown = next(name for name in value if name not in known)
    where = cut(unknown) if path == "body" else f"{path}.{cut(unknown)}"
    raise bad_field(where, f"unknown field; known here: {', '.join(known)}")


def whole_number(fields: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise bad_field(name, f"must be a whole number from {least} to {most}")
    return value


def one_of(fields: Mapping[str, Any], name: str, kind: type[Word], default: Word) -> Word:
    if name not in fields:
        return default
    value = fields[name]
    try:
        return kind(value)
    except ValueError:
        raise bad_field(name, f"must be one of {listed(kind)}") from None


def text_field(fields: Mapping[str, Any], name: str, most: int, prefix: str = "") -> str:
    """Text that people read: no control characters, nothing that UTF-8 cannot carry."""
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > most:
        raise bad_field(prefix + name, f"must be text of 1 to {most} characters")
    if not value.isprintable():
        raise bad_field(prefix + name, "must have no control characters or half surrogate pairs")
    return value


def url_field(fields: Mapping[str, Any], name: str, prefix: str) -> str:
    value = fields.get(name)
    if value is None:
        raise bad_field(prefix + name, "is missing; prepare, commit and rollback go together")
    if not isinstance(value, str):
        raise bad_field(prefix + name, "must be a URL")
    if len(value) > MAX_URL_CHARS:
        raise bad_field(prefix + name, f"must be a URL of at most {MAX_URL_CHARS} characters")
    problem = _problem_of_url(value)
    if problem is not None:
        raise bad_field(prefix + name, problem)
    return value


@functools.lru_cache(maxsize=1024)
def _problem_of_url(url: str) -> str | None:
    """What is wrong with a participant's URL. Remembered: a cluster has few participants."""
    if not _URL_CHARS.fullmatch(url):
        return "must be a URL in printable ASCII without spaces; percent-encode the rest"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"must be a URL: {error}"
    if parts.scheme not in ("http", "https") or not host:
        return "must begin with http:// or https:// and a host"
    if "@" in parts.netloc:
        return "must carry no user or password"
    if "#" in url:
        return "must have no fragment (#...)"
    if port == 0 or parts.netloc.endswith(":"):
        return "must have a port from 1 to 65535, or none"
    if not (_PLACE.fullmatch(parts.netloc) and _is_host(host)):
        return f"has no host that can be called: {host!r}"
    return None


def _is_host(host: str) -> bool:
    try:
        if ":" in host:
            return ipaddress.IPv6Address(host).scope_id is None  # a scope is one machine's own
        host.encode("idna")  # no part of a name is empty, or longer than any name server takes
    except ValueError:
        return False
    return True


def place_of(url: str) -> str:
    """Host, port and path of a URL: the name of a participant that was given none."""
    parts = urlsplit(url)
    return (parts.netloc + parts.path)[:MAX_PLACE_CHARS]


def cut(text: str) -> str:
    return text if len(text) <= 64 else f"{text[:64]}..."


def listed(words: Iterable[str]) -> str:
    return ", ".join(cut(str(word)) for word in list(words)[:16])


# --- reading queries ------------------------------------------------------------------------------


def read_query(pairs: Iterable[tuple[str, str]], allowed: tuple[str, ...]) -> dict[str, str]:
    """The parameters of a query, out of its names and values."""
    query: dict[str, str] = {}
    for name, value in pairs:
        if name not in allowed:
            known = f"known here: {', '.join(allowed)}" if allowed else "none is known here"
            raise bad_field(cut(name), f"unknown parameter; {known}")
        if name in query:
            raise bad_field(name, "is given twice")
        query[name] = value
    return query


def query_number(query: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 15 or not least <= int(text) <= most:
        raise bad_field(name, f"must be a whole number from {least} to {most}")
    return int(text)


def query_flag(query: Mapping[str, str], name: str) -> bool:
    match query.get(name):
        case None | "false":
            return False
        case "true":
            return True
    raise bad_field(name, "must be true or false")


def query_states(query: Mapping[str, str]) -> frozenset[State] | None:
    """The states in `state=`, one or several with commas between them; None for all."""
    text = query.get("state")
    if text is None:
        return None
    names = text.split(",")
    if any(name not in _STATES for name in names):
        raise bad_field("state", f"must be one or more of {listed(State)}, separated by commas")
    return frozenset(State(name) for name in names)


def query_id(query: Mapping[str, str], name: str) -> str:
    value = query.get(name)
    if value is None:
        raise bad_field(name, "is missing")
    if not ids.is_valid_id(value):
        raise bad_field(name, ids.ID_RULE)
    return value
