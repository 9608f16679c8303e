"""Rows of webhooks in the ledger: inserted in the transaction that ends a job, updated after each try.

Part of the ledger: it uses the ledger's own connection and lock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlmodel import Session, col, select, update

from lipsyncd.jobs.did_talk import talk
from lipsyncd.jobs.job import Job, new_id, now_ms
from lipsyncd.jobs.webhook_delivery import DELIVERY_COLUMNS, Delivery, DeliveryState, delivery_from_row
from lipsyncd.ledger.tables import WebhookRow, event

_FIELDS = [getattr(WebhookRow, name) for name in DELIVERY_COLUMNS]


def update_deliveries(session: Session, job: Job) -> None:
    """After each move of a job: discard its unsent messages, and add one if the job has ended."""
    if job.webhook is None:
        return
    waiting = col(WebhookRow.job_id) == job.id, col(WebhookRow.state) == DeliveryState.WAITING.value
    now = now_ms()
    session.execute(update(WebhookRow).where(*waiting).values(state=DeliveryState.SUPERSEDED.value, ended_ms=now))
    if job.state.ended:
        session.add(
            WebhookRow(
                webhook_id=f"msg_{new_id().replace('-', '')}",
                job_id=job.id,
                url=job.webhook,
                body=json.dumps(talk(job), ensure_ascii=False),
                state=DeliveryState.WAITING.value,
                next_at_ms=now,
                made_ms=now,
            )
        )


@dataclass(frozen=True)
class Outcome:
    """The result of one try. `wait_ms` until the next one if the delivery still waits."""

    state: DeliveryState
    status: int | None = None
    error: str | None = None
    wait_ms: int = 0


class Deliveries:
    """Webhooks that are still to be sent. `write` and `read` are the ledger's own transactions."""

    def __init__(
        self,
        write: Callable[[], AbstractContextManager[Session]],
        read: Callable[[], AbstractContextManager[Session]],
    ) -> None:
        self._write = write
        self._read = read

    def due(self, *, limit: int, besides: Collection[str] = ()) -> list[Delivery]:
        """The deliveries that are due, longest due first, without those of the jobs `besides`."""
        wanted = (
            select(*_FIELDS)
            .where(
                col(WebhookRow.state) == DeliveryState.WAITING.value,
                col(WebhookRow.next_at_ms) <= now_ms(),
                col(WebhookRow.job_id).not_in(besides),
            )
            .order_by(col(WebhookRow.next_at_ms), col(WebhookRow.webhook_id))
            .limit(limit)
        )
        with self._read() as session:
            return [delivery_from_row(dict(row)) for row in session.execute(wanted).mappings()]

    def next_at_ms(self, *, besides: Collection[str] = ()) -> int | None:
        """When the next delivery is due, without those of the jobs `besides`; None when none waits."""
        wanted = select(WebhookRow.next_at_ms).where(
            WebhookRow.state == DeliveryState.WAITING.value, col(WebhookRow.job_id).not_in(besides)
        )
        with self._read() as session:
            return session.exec(wanted.order_by(col(WebhookRow.next_at_ms)).limit(1)).first()

    def record_try(self, delivery: Delivery, outcome: Outcome) -> bool:
        """Record the result of a try, with a line in the job's history; False when the message is superseded."""
        now, waits = now_ms(), outcome.state is DeliveryState.WAITING
        change = (
            update(WebhookRow)
            .where(
                col(WebhookRow.webhook_id) == delivery.webhook_id, col(WebhookRow.state) == DeliveryState.WAITING.value
            )
            .values(
                state=outcome.state.value,
                attempt=col(WebhookRow.attempt) + 1,
                last_status=outcome.status,
                last_error=outcome.error,
                next_at_ms=now + outcome.wait_ms,
                ended_ms=None if waits else now,
            )
        )
        with self._write() as session:
            changed = bool(session.execute(change).rowcount)  # type: ignore[attr-defined]
            if changed:
                result = outcome.error or f"status {outcome.status}"
                note = f"webhook {outcome.state}, attempt {delivery.attempt + 1}: {result}"
                session.add(event(delivery.job_id, json.loads(delivery.body)["status"], note))
            return changed
