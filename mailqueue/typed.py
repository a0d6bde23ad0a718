"""POST /task/: tasks of several types, and what became of each. A feature adds its type to KINDS."""

from typing import Any

from django.http import Http404
from drf_spectacular.utils import OpenApiExample, PolymorphicProxySerializer, extend_schema
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api.problems import Conflict, documented
from accounts.api.serializers import Text
from accounts.api.throttling import EnqueueThrottle, within_quota
from accounts.models import User
from mailqueue.done import DoneTask
from mailqueue.kinds import Done, Kind, OneWord, ToSomebody, TypedTask, max_tries, metadata
from mailqueue.otp.api import A_CODE, GENERATE_OTP
from mailqueue.subscriptions.api import SUBSCRIBE, UNSUBSCRIBE
from mailqueue.subscriptions.fields import A_CRON_LINE, A_SUBSCRIBE, AN_UNSUBSCRIBE, SUBSCRIBED
from tasks import headers, submission
from tasks.api.fields import LONGEST_BODY
from tasks.api.once import ONCE, once
from tasks.api.serializers import TaskDetailSerializer
from tasks.api.views import (
    LOCATION,
    CancelView,
    ResolveView,
    RetryView,
    TaskView,
    address_of,
    open_account,
    owner_of,
)
from tasks.plain_text import is_html, text_of
from tasks.states import Status

SUPPRESSED = "The recipient is on your list of suppressions: the mail is cancelled."


class MessagePayload(ToSomebody):
    subject = Text(max_length=998, trim_whitespace=False, validators=[headers.refuse_control_characters])
    content = Text(
        max_length=LONGEST_BODY,
        trim_whitespace=False,
        help_text="plain text, or HTML, of which a plain text is made to go beside it",
    )
    content_type = Text(
        required=False,
        max_length=200,
        help_text="`text/plain` or `text/html` says which; otherwise it is seen from the content",
    )


class MessageTask(TypedTask):
    """A mail at once."""

    type = OneWord("message")
    payload = MessagePayload()


def send_message(_view: APIView, owner: User, asked: dict[str, Any]) -> Done:
    payload = asked["payload"]
    html = payload["content"] if _is_html(payload) else ""
    mail = submission.NewMail(
        recipient=payload["userId"],
        subject=payload["subject"],
        text=text_of(html) if html else payload["content"],
        html=html,
        max_tries=max_tries(asked),
        metadata=metadata(asked),
    )
    task = submission.submit(owner, mail)
    return Done(task.pk, SUPPRESSED if task.status == Status.CANCELLED else "The mail is queued.")


def _is_html(payload: dict[str, Any]) -> bool:
    said = payload.get("content_type", "").partition(";")[0].strip().lower()
    if said in ("text/html", "text/plain"):
        return bool(said == "text/html")
    return is_html(payload["content"])


KINDS: dict[str, Kind] = {
    "message": Kind(MessageTask, send_message),
    "generateOtp": GENERATE_OTP,
    "subscribe": SUBSCRIBE,
    "unsubscribe": UNSUBSCRIBE,
}


class TakenSerializer(serializers.Serializer[Any]):
    status = serializers.BooleanField()
    msg = serializers.CharField(help_text="a sentence for people")
    task_id = serializers.IntegerField(help_text="to look it up by: `GET /api/v1/task/{id}`")
    subscription_id = serializers.IntegerField(
        allow_null=True, required=False, help_text="of `subscribe`, and of `unsubscribe` where it ended one"
    )


A_MESSAGE = OpenApiExample(
    "A message",
    {
        "task": "welcome",
        "type": "message",
        "retries": 3,
        "payload": {
            "userId": "jane@example.com",
            "subject": "Welcome",
            "content": "<p>Hello Jane,<br>it works.</p>",
        },
    },
    request_only=True,
)
TAKEN = OpenApiExample(
    "Taken",
    {"status": True, "msg": "The mail is queued.", "task_id": 4711},
    response_only=True,
    status_codes=["202"],
)


class TypedTaskView(APIView):
    scopes = {"POST": "send"}
    throttle_classes = [EnqueueThrottle]

    @extend_schema(
        operation_id="typed_task",
        request=PolymorphicProxySerializer(
            "AnyTypedTask",
            {name: kind.serializer for name, kind in KINDS.items()},
            resource_type_field_name="type",
        ),
        responses={202: TakenSerializer} | documented(400, 401, 409, 413, 415, 422),
        parameters=[LOCATION, *ONCE],
        examples=[A_MESSAGE, A_CODE, A_SUBSCRIBE, A_CRON_LINE, AN_UNSUBSCRIBE, TAKEN, SUBSCRIBED],
        tags=["tasks"],
    )
    def post(self, request: Request) -> Response:
        """Hands over a task of one of these types. With the 202 it is committed."""
        if "dry_run" in request.query_params:
            # Taken for nothing it would send the mail.
            complaint = "A dry run is made of a plain mail: POST /api/v1/task/enqueue."
            raise ValidationError({"dry_run": [complaint]}, "not_for_typed_tasks")
        answer = once(request, lambda: self._take(request), 202)
        answer["Location"] = address_of(request, answer.data["task_id"])
        return answer

    def _take(self, request: Request) -> dict[str, Any]:
        kind = _kind_of(request.data)
        asked = kind.serializer().run_validation(request.data)
        owner = owner_of(request)
        with open_account(), within_quota(self, owner, kind.mails):
            done = kind.verb(self, owner, asked)
        taken = {"status": True, "msg": done.message, "task_id": done.task_id}
        return taken if kind.mails else taken | {"subscription_id": done.subscription_id}


def _kind_of(data: Any) -> Kind:
    if "type" not in data:
        raise ValidationError({"type": ["This field is required."]}, "required")
    found = KINDS.get(data["type"]) if isinstance(data["type"], str) else None
    if found is None:
        raise ValidationError({"type": [f"Must be one of {', '.join(KINDS)}."]}, "invalid_choice")
    return found


# Looked up ----------------------------------------------------------------------------------------------


class OrDone(APIView):
    """A view of one mail that also knows the typed tasks which make none: they are shown in the same shape, and are
    done, so that nothing is to be changed about them."""

    #: The code of the 409.
    refusal: str

    def handle_exception(self, exc: Exception) -> Response:
        found = _done(self.request, self.kwargs["pk"]) if isinstance(exc, Http404) else None
        if found is None:
            return super().handle_exception(exc)
        if self.request.method in SAFE_METHODS:
            return Response(_in_full(found))
        complaint = "This task is done; it has made no mail, and there is nothing to change about it."
        return super().handle_exception(Conflict(complaint, self.refusal))


def _done(request: Request, pk: int) -> DoneTask | None:
    return DoneTask.objects.filter(owner=owner_of(request), pk=pk).first()


def _in_full(found: DoneTask) -> dict[str, Any]:
    shown = TaskDetailSerializer(found.as_task(), context={"account": None}).data
    return {**shown, "metadata": found.metadata()}


class AnyTaskView(OrDone, TaskView):
    refusal = "not_scheduled"


class CancelAnyView(OrDone, CancelView):
    refusal = "not_cancellable"


class RetryAnyView(OrDone, RetryView):
    refusal = "not_retryable"


class ResolveAnyView(OrDone, ResolveView):
    refusal = "not_uncertain"
