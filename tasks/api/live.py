"""Live status: Server-Sent Events, for one task or for all of an owner's."""

from typing import Any, cast

from django.http import HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request

from accounts.api.options import OptionsInJSON
from accounts.api.problems import ServiceUnavailable, documented
from accounts.api.throttling import TooManyRequests
from accounts.models import User
from tasks import events
from tasks.api.views import own_tasks
from tasks.states import Status
from tasks.streams import FINAL_WORDS, LISTEN_FOR, PER_OWNER, STREAMS, Known, LiveResponse, Stream

LAST_EVENT_ID = OpenApiParameter(
    "Last-Event-ID",
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    description="The `id` of the last event you have had: what has happened since comes first. EventSource sends it "
    "by itself. What is no such id counts as none.",
)
A_STREAM = OpenApiExample(
    "A mail is sent",
    'retry: 2000\nid: 4710-queued\nevent: task.queued\ndata: {"task_id": 1, "status": "queued", "try_count": 0}\n\n'
    'id: 4713-success\nevent: task.sent\ndata: {"task_id": 1, "status": "success", "try_count": 1}\n\n',
    response_only=True,
    media_type="text/event-stream",
    status_codes=["200"],
)


class EventStream(BaseRenderer):
    """Stands for the type of what is answered; nothing is rendered by it."""

    media_type = "text/event-stream"
    format = "event-stream"
    charset = "utf-8"


class LiveView(OptionsInJSON):
    scopes = {"GET": "read"}
    renderer_classes = [EventStream, JSONRenderer]


def _opened(request: Request, task_id: int | None = None) -> tuple[Stream, bool]:
    """A stream from now on, or from where the caller was before; and whether it is that."""
    owner_id = cast(User, request.user).pk
    if STREAMS.is_full(owner_id):
        raise TooManyRequests(5, f"Too many streams are open here; yours may be {PER_OWNER:,}.")
    events.listen(owner_id, LISTEN_FOR)
    try:
        newest = events.latest(1.0)  # all other calls wait meanwhile
    except events.UnsettledError as error:
        raise ServiceUnavailable from error
    position, status = _resumed(request.headers.get("Last-Event-ID", ""), newest)
    stream = Stream(
        owner_id,
        cast(Any, request.auth),
        newest if position is None else position,
        task_id,
        newest=newest,
        known=Known(status, 0) if status else None,
    )
    return stream, position is not None


def _resumed(last: str, newest: int) -> tuple[int | None, str]:
    """4713, or 4713-success: after which event, and in what state the task was by then. None if it is neither."""
    position, _, status = last.strip().partition("-")
    if not (position.isascii() and position.isdecimal() and len(position) < 20 and int(position) <= newest):
        return None, ""
    return int(position), status if status in Status.labels else ""


class TaskEventsView(LiveView):
    @extend_schema(
        operation_id="follow_task",
        parameters=[LAST_EVENT_ID],
        responses={
            (200, "text/event-stream"): OpenApiTypes.STR,
            204: OpenApiResponse(description="You have had its last event; there is nothing to wait for"),
        }
        | documented(401, 404, 429),
        examples=[A_STREAM],
        tags=["tasks"],
    )
    def get(self, request: Request, pk: int) -> HttpResponseBase:
        """What happens to this task, as Server-Sent Events: its present state first, and its final one (`success`,
        `cancelled`) last."""
        stream, is_resumed = _opened(request, pk)
        # Read after the stream's position was, so that nothing falls between.
        task = get_object_or_404(own_tasks(request), pk=pk)
        if not is_resumed:
            stream.tell_row(task)
        elif stream.known and stream.known.status == task.get_status_display() in FINAL_WORDS:
            return HttpResponse(status=204, content_type="text/event-stream")
        return LiveResponse(stream)


class EventsView(LiveView):
    @extend_schema(
        operation_id="follow_tasks",
        parameters=[LAST_EVENT_ID],
        responses={(200, "text/event-stream"): OpenApiTypes.STR} | documented(401, 429),
        examples=[A_STREAM],
        tags=["tasks"],
    )
    def get(self, request: Request) -> HttpResponseBase:
        """What happens to all of your tasks, and to your SMTP account, from now on, as Server-Sent Events."""
        return LiveResponse(_opened(request)[0])
