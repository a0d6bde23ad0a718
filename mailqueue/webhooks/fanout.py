"""From the events that happened to a delivery for each endpoint that wants to hear of them."""

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.db import connection, transaction

from mailqueue.webhooks.models import Delivery, Endpoint, EventCursor
from tasks import events
from tasks.events import Event

#: Events of one transaction, and how many of these at a time: the next tick goes on.
BITE, BITES = 1000, 10


def fan_out() -> int:
    """Writes the deliveries of what has happened since the last time; how many. One at a time does it."""
    total = 0
    for _ in range(BITES):
        read, written = _bite()
        total += written
        if read < BITE:
            break
    return total


@transaction.atomic
def _bite() -> tuple[int, int]:
    """Deliveries and cursor move together, so that a crash at any point loses nothing and does nothing twice."""
    cursor = _locked_cursor()
    if cursor is None:
        return 0, 0
    happened = events.after(cursor.position, BITE)
    if not happened:
        return 0, 0
    written = _write(list(_deliveries(happened)))
    cursor.position = happened[-1].position
    cursor.save(update_fields=["position"])
    return len(happened), written


def _locked_cursor() -> EventCursor | None:
    """None if somebody else holds it, who does the same."""
    EventCursor.objects.bulk_create([EventCursor(id=1)], ignore_conflicts=True)
    return EventCursor.objects.select_for_update(skip_locked=True).filter(id=1).first()


class NewDelivery(NamedTuple):
    endpoint_id: int
    message_id: str
    event: str
    payload: str


def _deliveries(happened: Iterable[Event]) -> Iterable[NewDelivery]:
    wanted: dict[int, list[Endpoint]] = defaultdict(list)
    owners = {event.owner_id for event in happened}
    # Locked, so that none of them is deleted before its deliveries are there.
    for endpoint in (
        Endpoint.objects.active().select_for_update(no_key=True).filter(owner__in=owners).order_by("id")
    ):
        wanted[endpoint.owner_id].append(endpoint)
    for event in happened:
        for endpoint in wanted[event.owner_id]:
            if endpoint.wants(event.name):
                body = payload(event.name, event.at, event.data)
                yield NewDelivery(endpoint.pk, f"evt_{event.position}", event.name, body)


def _write(new: Sequence[NewDelivery]) -> int:
    """How many were not there yet. By hand: bulk_create spends most of a bite's time on putting its SQL together."""
    columns = [list(column) for column in zip(*new, strict=True)]
    if not columns:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(_WRITE, columns)
        written: int = cursor.rowcount
    return written


_WRITE = """
INSERT INTO webhooks_delivery (endpoint_id, message_id, event, payload, state, tries, error)
SELECT endpoint_id, message_id, event, payload, 0, 0, ''
FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::text[]) AS new(endpoint_id, message_id, event, payload)
ON CONFLICT (endpoint_id, message_id) DO NOTHING
"""


def payload(name: str, at: datetime, data: dict[str, Any]) -> str:
    """The body that Standard Webhooks recommends."""
    told = {"type": name, "timestamp": at.astimezone(UTC).isoformat().replace("+00:00", "Z"), "data": data}
    return json.dumps(told, ensure_ascii=False, separators=(",", ":"))


def test_delivery(endpoint: Endpoint) -> Delivery:
    """An event that did not happen, to see whether it arrives."""
    at = datetime.now(UTC)
    body = payload("webhook.test", at, {"webhook_id": endpoint.pk})
    made = Delivery.objects.create(
        endpoint=endpoint, message_id=f"test_{uuid.uuid4().hex}", event="webhook.test", payload=body
    )
    made.refresh_from_db()
    return made
