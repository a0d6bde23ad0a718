"""Tasks over HTTP: shape in the serializer, one domain call, an answer. Every queryset begins at the owner."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.exceptions import AuthenticationFailed, ValidationError
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api.problems import Conflict, documented
from accounts.api.throttling import EnqueueThrottle, within_quota
from accounts.models import SmtpAccount, User
from tasks import submission
from tasks.api.examples import A_DRY_RUN, A_LISTED_TASK, A_WHOLE_TASK, AN_ANSWER
from tasks.api.filters import Stretches, narrowed, picked
from tasks.api.mails import ANY_MAIL, EnqueueSerializer
from tasks.api.once import ONCE, once, refuse_bad_key
from tasks.api.serializers import (
    AcceptedSerializer,
    DryRunSerializer,
    QueueFilterSerializer,
    RescheduleSerializer,
    ResolveSerializer,
    TaskDetailSerializer,
    TaskSerializer,
)
from tasks.models import MailTask, MailTaskQuerySet, OneTime
from tasks.preview import describe, preview
from tasks.states import Status
from tasks.suppressions import Suppression

A_MAIL = OpenApiExample(
    "A mail",
    {"recipient_email": "jane@example.com", "subject": "Grüße", "body": "Hello Jane,\nit works."},
    request_only=True,
)
A_FULL_MAIL = OpenApiExample(
    "With everything",
    {
        "recipient_email": "jane@example.com",
        "subject": "Your invoice",
        "body": "Hello Jane,\nplease find the invoice attached.",
        "html_body": "<p>Hello Jane,<br>please find the invoice attached.</p>",
        "from_name": "Ada's Bookshop",
        "reply_to": "Support <support@example.com>",
        "headers": {"List-Unsubscribe": "<https://example.com/unsubscribe/42>"},
        "attachments": [
            {
                "filename": "invoice.txt",
                "content_type": "text/plain; charset=utf-8",
                "content": "NDIg4oKsCg==",
            }
        ],
        "tags": ["invoice", "2030-01"],
        "metadata": {"invoice": 4711},
        "scheduled_at": "2030-01-31T09:30:00Z",
    },
    request_only=True,
)
A_TEMPLATED_MAIL = OpenApiExample(
    "From a template",
    {"recipient_email": "jane@example.com", "template": "welcome", "context": {"name": "Jane"}},
    request_only=True,
)
LOCATION = OpenApiParameter("Location", OpenApiTypes.URI, OpenApiParameter.HEADER, response=[202])

DRY_RUN = OpenApiParameter(
    "dry_run",
    OpenApiTypes.BOOL,
    description="true: answers 200 with the rendered mail, its route and its plan, and keeps and sends nothing.",
)

NOT_CANCELLABLE: dict[int, str] = {
    Status.SUCCESS: "This mail is already sent.",
    Status.PROCESSING: "This mail is being sent at this moment.",
    Status.CANCELLED: "This mail is already cancelled.",
    Status.UNCERTAIN: "This mail may be sent already; resolve it: accept or retry.",
}
NOT_RETRYABLE: dict[int, str] = {
    Status.SUCCESS: "This mail is already sent.",
    Status.PROCESSING: "This mail is being sent at this moment.",
    Status.QUEUED: "This mail is already waiting to be sent.",
    Status.SCHEDULED: "This mail is waiting for its time; cancel and retry it to send it now.",
}
NOT_UNCERTAIN: dict[int, str] = {
    Status.SUCCESS: "This mail is sent; there is nothing to resolve.",
    Status.CANCELLED: "This mail is cancelled; there is nothing to resolve.",
    **dict.fromkeys(
        (Status.QUEUED, Status.PROCESSING, Status.FAILED, Status.SCHEDULED),
        "This mail is still to be sent; there is nothing to resolve.",
    ),
}
NOT_SCHEDULED: dict[int, str] = {
    Status.SUCCESS: "This mail is already sent.",
    Status.PROCESSING: "This mail is being sent at this moment.",
    Status.QUEUED: "This mail is due already.",
    Status.FAILED: "This mail was tried already; it has a time of its own for the next try.",
    Status.CANCELLED: "This mail is cancelled.",
    Status.UNCERTAIN: "This mail may be sent already; resolve it: accept or retry.",
}
#: Built once, for that takes longer than to ask them; they keep nothing of a request.
READER, ACCEPTED = EnqueueSerializer(), AcceptedSerializer()
CHANGED = "The state of this mail has just changed; ask again."


def owner_of(request: Request) -> User:
    return cast(User, request.user)


@contextmanager
def open_account() -> Iterator[None]:
    """401 where the owner's account has just been closed."""
    try:
        yield
    except submission.AccountClosedError as error:
        raise AuthenticationFailed("The account is closed.", "user_inactive") from error


def own_tasks(request: Request) -> MailTaskQuerySet:
    return MailTask.objects.owned_by(owner_of(request))


def in_full(request: Request, pk: int) -> Response:
    whole = own_tasks(request).select_related("content").defer("content__raw")
    task = get_object_or_404(whole.prefetch_related("attempts", "tags"), pk=pk)
    account = SmtpAccount.objects.get(owner=owner_of(request))
    return Response(TaskDetailSerializer(task, context={"account": account}).data)


class EnqueueView(APIView):
    scopes = {"POST": "send"}
    throttle_classes = [EnqueueThrottle]

    @extend_schema(
        operation_id="enqueue",
        request=ANY_MAIL,
        responses={200: DryRunSerializer, 202: AcceptedSerializer} | documented(400, 401, 409, 413, 415, 422),
        parameters=[LOCATION, DRY_RUN, *ONCE],
        examples=[A_MAIL, A_FULL_MAIL, A_TEMPLATED_MAIL, AN_ANSWER, A_DRY_RUN],
        tags=["tasks"],
    )
    def post(self, request: Request) -> Response:
        """Hands over a mail. With the 202 it is committed, and will be sent; to somebody on your list of suppressions
        it is cancelled at once."""
        if "dry_run" in request.query_params and _is_dry_run(request.query_params["dry_run"]):
            refuse_bad_key(request)
            seen = preview(owner_of(request), READER.mail(request.data, owner_of(request)))
            return Response(DryRunSerializer(describe(seen)).data)
        answer = once(request, lambda: self._submit(request), status.HTTP_202_ACCEPTED)
        answer["Location"] = address_of(request, answer.data["task_id"])
        return answer

    def _submit(self, request: Request) -> dict[str, Any]:
        mail = READER.mail(request.data, owner_of(request))
        with open_account(), within_quota(self, owner_of(request), 1):
            return ACCEPTED.to_representation(submission.submit(owner_of(request), mail))


def address_of(request: Request, task_id: int) -> str:
    """Where the task can be asked for."""
    return request.build_absolute_uri(f"{_tasks()}{task_id}")


@cache
def _tasks() -> str:
    """Where tasks are, each by its id; looked up once, for it takes as long as reading the mail."""
    return reverse("task", args=[0]).removesuffix("0")


def _is_dry_run(asked: str) -> bool:
    """A word that is neither yes nor no must not send the mail."""
    try:
        return bool(serializers.BooleanField().run_validation(asked))
    except ValidationError as error:
        raise ValidationError({"dry_run": error.detail}) from error


class QueueView(ListAPIView[MailTask]):
    """Your tasks, newest first."""

    serializer_class = TaskSerializer
    queryset = MailTask.objects.none()
    scopes = {"GET": "read"}
    pagination_class = Stretches
    #: What the pages have to look through, where no index leads to what is asked for.
    looked_through: MailTaskQuerySet | None = None

    def get_queryset(self) -> QuerySet[MailTask]:
        asked = QueueFilterSerializer(data=self.request.query_params.dict())
        asked.is_valid(raise_exception=True)
        rows = narrowed(self.listed(own_tasks(self.request)), asked.validated_data)
        found = picked(rows, asked.validated_data)
        self.looked_through = None if found is rows else rows
        return found.prefetch_related("tags")

    def listed(self, own: MailTaskQuerySet) -> MailTaskQuerySet:
        return own

    def get_serializer_context(self) -> dict[str, Any]:
        account = SmtpAccount.objects.get(owner=owner_of(self.request))
        return {**super().get_serializer_context(), "account": account}

    @extend_schema(
        operation_id="list_queue",
        parameters=[QueueFilterSerializer],
        responses={200: TaskSerializer(many=True)} | documented(400, 401),
        examples=[A_LISTED_TASK],
        tags=["tasks"],
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Your tasks, newest first."""
        return super().get(request, *args, **kwargs)


class FailedQueueView(QueueView):
    def listed(self, own: MailTaskQuerySet) -> MailTaskQuerySet:
        return own.failures()

    @extend_schema(
        operation_id="list_failed",
        parameters=[QueueFilterSerializer],
        responses={200: TaskSerializer(many=True)} | documented(400, 401),
        examples=[A_LISTED_TASK],
        tags=["tasks"],
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Those that failed: waiting for another try, or cancelled after failing (the dead letters)."""
        return super().get(request, *args, **kwargs)


class TaskView(APIView):
    scopes = {"GET": "read", "PATCH": "manage"}

    @extend_schema(
        operation_id="get_task",
        responses={200: TaskDetailSerializer} | documented(401, 404),
        examples=[A_WHOLE_TASK],
        tags=["tasks"],
    )
    def get(self, request: Request, pk: int) -> Response:
        """Everything about one task: its times, why it waits, every attempt."""
        return in_full(request, pk)

    @extend_schema(
        operation_id="reschedule_task",
        request=RescheduleSerializer,
        responses={200: TaskDetailSerializer} | documented(400, 401, 404, 409, 413, 415),
        examples=[
            OpenApiExample("Later", {"scheduled_at": "2030-02-01T09:30:00Z"}, request_only=True),
            A_WHOLE_TASK,
        ],
        tags=["tasks"],
    )
    def patch(self, request: Request, pk: int) -> Response:
        """Gives a scheduled task another time; a past one sends it at once."""
        asked = RescheduleSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        at = asked.validated_data["scheduled_at"]
        if not submission.reschedule(own_tasks(request).filter(pk=pk), at):
            task = get_object_or_404(own_tasks(request), pk=pk)
            if (
                task.status == Status.SCHEDULED
                and task.expires_at
                and task.expires_at <= max(at, timezone.now())
            ):
                raise ValidationError({"scheduled_at": ["Must be before expires_at."]}, "after_expires_at")
            raise Conflict(NOT_SCHEDULED.get(task.status, CHANGED), "not_scheduled")
        return in_full(request, pk)


def _refuse_void(task: MailTask) -> None:
    """409 if this mail had something to say that serves no more."""
    if task.status not in NOT_RETRYABLE and OneTime.objects.filter(task=task).exists():
        raise Conflict("What this mail said served once, and is void by now; ask for a new one.", "void")


def _refuse_suppressed(request: Request, task: MailTask) -> None:
    """409 if it is the list of suppressions that keeps this mail from being sent again."""
    if task.status in NOT_RETRYABLE:
        return
    listed = Suppression.objects.owned_by(owner_of(request)).of(task.recipient).first()
    if listed:
        raise Conflict(
            f"{task.recipient} is on your list of suppressions; take it off first: "
            f"DELETE /api/v1/suppressions/{listed.pk}.",
            "suppressed",
        )


class CancelView(APIView):
    scopes = {"POST": "manage"}

    @extend_schema(
        operation_id="cancel_task",
        request=None,
        responses={200: TaskDetailSerializer} | documented(401, 404, 409),
        examples=[A_WHOLE_TASK],
        tags=["tasks"],
    )
    def post(self, request: Request, pk: int) -> Response:
        """Cancels a task that still waits."""
        if not submission.cancel(own_tasks(request).filter(pk=pk)):
            task = get_object_or_404(own_tasks(request), pk=pk)
            raise Conflict(NOT_CANCELLABLE.get(task.status, CHANGED), "not_cancellable")
        return in_full(request, pk)


class RetryView(APIView):
    scopes = {"POST": "manage"}

    @extend_schema(
        operation_id="retry_task",
        request=None,
        responses={200: TaskDetailSerializer} | documented(401, 404, 409),
        examples=[A_WHOLE_TASK],
        tags=["tasks"],
    )
    def post(self, request: Request, pk: int) -> Response:
        """Sends a failed, cancelled or uncertain task again, at once and with a fresh count; not to somebody on your
        list of suppressions."""
        if not submission.retry(own_tasks(request).filter(pk=pk)):
            task = get_object_or_404(own_tasks(request), pk=pk)
            _refuse_void(task)
            _refuse_suppressed(request, task)
            raise Conflict(NOT_RETRYABLE.get(task.status, CHANGED), "not_retryable")
        return in_full(request, pk)


class ResolveView(APIView):
    scopes = {"POST": "manage"}

    @extend_schema(
        operation_id="resolve_task",
        request=ResolveSerializer,
        responses={200: TaskDetailSerializer} | documented(400, 401, 404, 409, 413, 415),
        examples=[OpenApiExample("It has arrived", {"action": "accept"}, request_only=True), A_WHOLE_TASK],
        tags=["tasks"],
    )
    def post(self, request: Request, pk: int) -> Response:
        """Decides about an uncertain task: `accept` takes it as sent, `retry` sends it again."""
        asked = ResolveSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        verb = {"accept": submission.accept, "retry": submission.send_again}[asked.validated_data["action"]]
        if not verb(own_tasks(request).filter(pk=pk)):
            task = get_object_or_404(own_tasks(request), pk=pk)
            if task.status == Status.UNCERTAIN:
                _refuse_void(task)
                _refuse_suppressed(request, task)
            raise Conflict(NOT_UNCERTAIN.get(task.status, CHANGED), "not_uncertain")
        return in_full(request, pk)
