"""The client library: ask for a transaction, and learn its one true outcome, whatever fails.

    async with Client(["http://127.0.0.1:8101", "http://127.0.0.1:8102"]) as client:
        stock = {"url": "http://127.0.0.1:9002", "payload": {"sku": "A-1", "quantity": 2}}
        log = {"url": "http://127.0.0.1:9003", "payload": {"user": "ada", "text": "2 of A-1"}}
        answer = await client.submit([stock, log])
        answer.committed

Rules. The id is made before anything is sent (a UUIDv7), so every repeat is the same transaction.
An abort is an answer; nothing is tried again under a new id. Definite refusals are raised at once;
what is unknown is asked again, at any node, until the outcome is known or the caller's `deadline`
(seconds) passes: then OutcomeUnknown is raised and carries the id. The exceptions are drawn in
`cluster.client.answers`; how a node is chosen is told in `cluster.client.calls`.

A transaction that the client itself ends, when services have worked for it one after the other, is
told in `cluster.client.interactive`.

`SyncClient` has the same methods without `await`: it drives a `Client` on an event loop in a
thread of its own, so it may be used by any number of threads.
"""

from cluster.client.answers import (
    BadAnswer,
    BadRequest,
    Branch,
    ClientError,
    ClusterStatus,
    Conflict,
    Expired,
    NodeStatus,
    OutcomeUnknown,
    Page,
    Refused,
    TooLarge,
    Transaction,
    Unavailable,
    UnknownTransaction,
)
from cluster.client.async_client import Client
from cluster.client.interactive import InteractiveTransaction
from cluster.client.sync_client import SyncClient, SyncInteractiveTransaction

__all__ = [
    "BadAnswer",
    "BadRequest",
    "Branch",
    "Client",
    "ClientError",
    "ClusterStatus",
    "Conflict",
    "Expired",
    "InteractiveTransaction",
    "NodeStatus",
    "OutcomeUnknown",
    "Page",
    "Refused",
    "SyncClient",
    "SyncInteractiveTransaction",
    "TooLarge",
    "Transaction",
    "Unavailable",
    "UnknownTransaction",
]
