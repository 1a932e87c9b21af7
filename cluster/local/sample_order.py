"""The sample transaction: a user orders an article, at all three sample services. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def order(url: Callable[[str], str], user: str, sku: str, quantity: int) -> list[dict[str, Any]]:
    """Its participants; `url` gives a service's address by its name.

    The inventory takes the quantity (NO when it is out of stock), the profile counts the user's
    orders (NO while another transaction holds that user), the activity log tells the story.
    """
    payloads: dict[str, dict[str, Any]] = {
        "inventory": {"sku": sku, "quantity": quantity},
        "profile": {"user": user, "set": {"last_order": sku}, "add": {"orders": 1}},
        "activity": {"user": user, "text": f"ordered {quantity} of {sku}"},
    }
    return [
        {"name": name, "url": url(name), "payload": payload} for name, payload in payloads.items()
    ]
