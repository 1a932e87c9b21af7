"""Participants behind TLS: certificates of an authority of one's own, as organisations have it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from coordinator import participant_connections
from coordinator.gateway import Gateway
from participants.contract import Acknowledged, Operation, Vote, Voted
from tests.calling import ask, failed, run
from tests.stubs import Stub, answer, per_operation

BEHAVIOUR = per_operation(prepare=answer(b"true"), commit=answer(b""))


@pytest.fixture(autouse=True)
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[trustme.CA]:
    """The authority that `SSL_CERT_FILE` names, as OpenSSL reads it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    participant_connections._verifying.cache_clear()
    yield authority
    participant_connections._verifying.cache_clear()


def serving(authority: trustme.CA, host: str = "localhost") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(host).configure_cert(context)
    return context


def test_a_participant_is_called_over_tls_and_its_connections_are_kept(
    trusted: trustme.CA,
) -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(BEHAVIOUR, tls=serving(trusted)) as stub:
            assert stub.url.startswith("https://localhost:")
            for _ in range(3):
                assert await ask(gateway, stub.url) == Voted(Vote.YES)
                assert await ask(gateway, stub.url, Operation.COMMIT) == Acknowledged()
            assert len(stub.received) == 6
            assert stub.connections == 2, "one for prepares, one for the ends of branches"

    run(scenario)


@pytest.mark.parametrize("what", ["another authority", "another host"])
def test_a_certificate_that_proves_nothing_is_refused_and_nothing_is_sent(
    trusted: trustme.CA, what: str
) -> None:
    stranger = trustme.CA()
    context = serving(stranger) if what == "another authority" else serving(trusted, "example.org")

    async def scenario(gateway: Gateway) -> None:
        async with Stub(BEHAVIOUR, tls=context) as stub:
            given = failed(await ask(gateway, stub.url))
            assert given.what.startswith("its TLS certificate is not accepted: ")
            assert not given.arrived
            assert stub.received == []

    run(scenario)
