"""The delivery of a webhook as the ledger records it.

Pure data. `ledger.webhook_rows` writes it, `network.webhooks` sends it, `ledger.view` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any


class DeliveryState(StrEnum):
    """The state of a delivery; every state but the first is final."""

    WAITING = "waiting"
    DELIVERED = "delivered"  # the receiver answered 2xx
    GONE = "gone"  # the receiver answered 410
    REFUSED = "refused"  # the address is not allowed
    EXHAUSTED = "exhausted"  # all tries have failed
    SUPERSEDED = "superseded"  # the job was queued again before the message arrived


@dataclass(frozen=True)
class Delivery:
    """One message to one receiver.

    webhook_id  the same for every try, so that a receiver recognises a repetition
    body        the talk object at the end of the job, as JSON; `result_url` is added when it is sent
    attempt     number of tries so far
    next_at_ms  when the next one is due, in milliseconds since 1970
    """

    webhook_id: str
    job_id: str
    url: str
    body: str
    state: DeliveryState
    attempt: int
    next_at_ms: int
    last_status: int | None
    last_error: str | None
    made_ms: int
    ended_ms: int | None

    def to_json(self) -> dict[str, Any]:
        """All fields but the body and the address, which may contain a secret of the receiver."""
        return {k: v for k, v in asdict(self).items() if k not in ("body", "url")}


DELIVERY_COLUMNS = tuple(f.name for f in fields(Delivery))


def delivery_from_row(row: Mapping[str, Any]) -> Delivery:
    """A `Delivery` from a mapping with the columns `DELIVERY_COLUMNS`."""
    values = {name: row[name] for name in DELIVERY_COLUMNS}
    return Delivery(**{**values, "state": DeliveryState(values["state"])})
