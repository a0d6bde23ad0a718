"""From the events that happened to a delivery for each endpoint that wants to hear of them."""

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from django.db import transaction

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
    deliveries = list(_deliveries(happened))
    Delivery.objects.bulk_create(deliveries, ignore_conflicts=True)
    cursor.position = happened[-1].position
    cursor.save(update_fields=["position"])
    return len(happened), len(deliveries)


def _locked_cursor() -> EventCursor | None:
    """None if somebody else holds it, who does the same."""
    EventCursor.objects.bulk_create([EventCursor(id=1)], ignore_conflicts=True)
    return EventCursor.objects.select_for_update(skip_locked=True).filter(id=1).first()


def _deliveries(happened: Iterable[Event]) -> Iterable[Delivery]:
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
                yield Delivery(
                    endpoint=endpoint,
                    message_id=f"evt_{event.position}",
                    event=event.name,
                    payload=payload(event.name, event.at, event.data),
                )


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
