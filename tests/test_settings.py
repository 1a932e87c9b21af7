"""The settings file: what it may say, and that every mistake is one sentence naming the key."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cluster.settings import (
    Address,
    ClusterSettings,
    Limits,
    LogSettings,
    RaftTimings,
    Retention,
    SettingsError,
    Timings,
    load_settings,
    parse_settings,
    read_address,
)

THREE = "\n".join(
    f'[nodes.n{i}]\napi = "127.0.0.1:810{i}"\nraft = "127.0.0.1:710{i}"' for i in (1, 2, 3)
)


def test_three_nodes_and_nothing_else_have_all_defaults() -> None:
    settings = parse_settings(THREE)
    assert settings.name == "assent"
    assert [node.id for node in settings.nodes] == ["n1", "n2", "n3"]
    node = settings.node("n2")
    assert node.api == node.api_bind == Address("127.0.0.1", 8102)
    assert node.raft == node.raft_bind == Address("127.0.0.1", 7102)
    assert node.api.url == "http://127.0.0.1:8102"
    assert settings == ClusterSettings("assent", settings.nodes)
    assert settings.warnings() == ()


def test_the_defaults_are_those_that_are_promised() -> None:
    limits, timings = Limits(), Timings()
    assert (limits.branches, limits.body_bytes, limits.batch_body_bytes) == (256, 2**20, 2**24)
    assert (limits.batch_size, limits.metadata_bytes, limits.answer_bytes) == (1000, 4096, 65536)
    assert (limits.unfinished, limits.unfinished_per_participant) == (100_000, 20_000)
    assert (timings.call_timeout_ms, timings.retry_initial_ms) == (5_000, 50)
    assert (timings.retry_max_ms, timings.working_initial_ms, timings.grace_ms) == (2000, 100, 5000)
    assert (timings.default_timeout_ms, timings.min_timeout_ms) == (10_000, 100)
    assert timings.max_timeout_ms == 3_600_000
    assert Retention() == Retention(
        keep_ms=86_400_000, max_remembered=1_000_000, remembered_bytes=1 << 30, steady_ms=600_000
    )
    assert RaftTimings() == RaftTimings(100, 500, 1_000)


def test_every_key_of_every_section_can_be_set() -> None:
    sections = {
        "limits": (Limits,),
        "timings": (Timings, RaftTimings),
        "retention": (Retention,),
        "log": (LogSettings,),
    }
    for section, kinds in sections.items():
        for kind in kinds:
            for field in dataclasses.fields(kind):
                value = getattr(kind(), field.name) + 1
                settings = parse_settings(f"{THREE}\n[{section}]\n{field.name} = {value}")
                attribute = "raft_timings" if kind is RaftTimings else section
                assert getattr(getattr(settings, attribute), field.name) == value


def test_addresses_may_be_bound_elsewhere_than_they_are_told() -> None:
    more = 'api_bind = "0.0.0.0:80"\nraft_bind = "[::1]:7103"\n[cluster]\nname = "shop"'
    settings = parse_settings(f"{THREE}\n{more}")
    node = settings.node("n3")
    assert settings.name == "shop"
    assert (node.api.port, node.api_bind) == (8103, Address("0.0.0.0", 80))
    assert str(node.raft_bind) == "[::1]:7103"


def test_one_node_is_allowed_and_warned_of() -> None:
    settings = parse_settings('[nodes.a]\napi = "localhost:1"\nraft = "localhost:2"')
    assert len(settings.warnings()) == 1


def _without_node(number: int) -> str:
    return THREE[: THREE.index(f"[nodes.n{number}]")]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "nodes: there are none"),
        (_without_node(3), "nodes: 2 nodes survive no more failures than 1"),
        ("[nodes", "not TOML"),
        (f"{THREE}\n[limit]\nbranches = 3", "limit: is not known"),
        (f"{THREE}\n[limits]\nbranch = 3", "limits.branch: is not known"),
        (f'{THREE}\n[limits]\nbranches = "3"', "limits.branches: must be a whole number"),
        (f"{THREE}\n[limits]\nbranches = true", "limits.branches: must be a whole number"),
        (f"{THREE}\n[limits]\nbranches = 1.5", "limits.branches: must be a whole number"),
        (f"{THREE}\n[limits]\nbranches = 0", "limits.branches: must be at least 1"),
        (f"{THREE}\n[limits]\nbody_bytes = 99999999", "limits.batch_body_bytes: must not be less"),
        (f"{THREE}\n[timings]\nheartbeat = 5", "timings.heartbeat: is not known"),
        (f"{THREE}\n[timings]\nheartbeat_ms = 400", "timings.election_min_ms: must be at least"),
        (f"{THREE}\n[timings]\nelection_max_ms = 500", "timings.election_max_ms: must be more"),
        (f"{THREE}\n[timings]\nmin_timeout_ms = 99999", "timings.default_timeout_ms: must lie"),
        (f"{THREE}\n[timings]\nretry_max_ms = 1", "timings.retry_max_ms: must not be less"),
        (f"{THREE}\n[retention]\nkeep_ms = -1", "retention.keep_ms: must be at least 1"),
        (f"{THREE}\n[log]\nsnapshot_every = 0", "log.snapshot_every: must be at least 1"),
        (f'{THREE}\n[cluster]\nname = "a b"', "cluster.name: 'a b' is not"),
        (f"{THREE}\n[cluster]\nnmae = 1", "cluster.nmae: is not known"),
        (f"cluster = 3\n{THREE}", "cluster: must be a section"),
        ("nodes = []", "nodes: must be a section"),
        ("[nodes]\nn1 = 3", "nodes.n1: must be a section"),
        ('[nodes."a b"]', "nodes.a b: 'a b' is not"),
        (f'{THREE}\napi_bnd = "127.0.0.1:1"', "nodes.n3.api_bnd: is not known"),
        ('[nodes.n1]\napi = "127.0.0.1:1"', "nodes.n1.raft: is missing"),
        (THREE.replace('"127.0.0.1:8102"', "8102"), "nodes.n2.api: must be an address"),
        (THREE.replace('"127.0.0.1:8102"', '"127.0.0.1"'), "nodes.n2.api: '127.0.0.1' is not an"),
        (THREE.replace("127.0.0.1:8102", "127.0.0.1:99999"), "nodes.n2.api: the port of"),
        (THREE.replace("127.0.0.1:8102", "::1:8102"), "nodes.n2.api: '::1:8102' is not an"),
        (THREE.replace("127.0.0.1:8102", "0.0.0.0:8102"), "nodes.n2.api: at 0.0.0.0:8102 nobody"),
        (THREE.replace("127.0.0.1:7102", "[::]:7102"), "nodes.n2.raft: at [::]:7102 nobody"),
        (THREE.replace(":8103", ":8101"), "nodes.n3.api: 127.0.0.1:8101 is also nodes.n1.api"),
        (THREE.replace(":7102", ":8101"), "nodes.n2.raft: 127.0.0.1:8101 is also nodes.n1.api"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(text: str, named: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(text)
    assert str(caught.value).startswith(named)
    assert "\n" not in str(caught.value)


def test_a_node_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(
        SettingsError, match="no node 'n9' in cluster 'assent'; there are n1, n2, n3"
    ):
        parse_settings(THREE).node("n9")


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read .*nowhere\.toml: No such file"):
        load_settings(tmp_path / "nowhere.toml")
    path = tmp_path / "cluster.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match=r"cluster\.toml: not a text in UTF-8"):
        load_settings(path)
    path.write_text(f"{THREE}\n[limits]\nbranch = 3")
    with pytest.raises(SettingsError, match=r"cluster\.toml: limits\.branch: is not known"):
        load_settings(path)
    path.write_text(THREE)
    assert load_settings(path) == parse_settings(THREE)


@pytest.mark.parametrize(
    "text", [None, 8101, "", ":1", "a:", "a:b", "a:0", "http://a:1", "a:1/x", "a..b:1"]
)
def test_what_is_no_address(text: object) -> None:
    with pytest.raises(SettingsError, match=r"^somewhere: "):
        read_address(text, "somewhere")
