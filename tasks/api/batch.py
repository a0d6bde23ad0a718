"""POST /enqueue/batch: up to 1,000 mails in one call and one transaction, each judged by itself."""

from typing import Any

from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework import status
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api.parsing import BoundedJSONParser, refuse_unstorable
from accounts.api.problems import describe, documented
from accounts.api.throttling import EnqueueThrottle, within_quota
from accounts.models import User
from tasks import submission
from tasks.api.mails import MOST_MESSAGES, BatchSerializer, plain_mail
from tasks.api.once import ONCE, once
from tasks.api.serializers import BatchResultsSerializer
from tasks.api.views import READER, open_account, owner_of
from tasks.submission import NewMail
from tasks.template_language import STEPS_A_CALL, Allowance

A_BATCH = OpenApiExample(
    "Two mails",
    {
        "messages": [
            {"recipient_email": "jane@example.com", "subject": "Grüße", "body": "Hello Jane,\nit works."},
            {"recipient_email": "joe@example.com", "subject": "Grüße", "body": "Hello Joe.", "lane": "bulk"},
        ]
    },
    request_only=True,
)
RESULTS = OpenApiExample(
    "One good, one bad",
    {
        "results": [
            {"task_id": 4711, "status": "queued"},
            {
                "error": {
                    "code": "invalid",
                    "detail": "recipient_email: This field is required.",
                    "errors": [
                        {"field": "recipient_email", "code": "required", "detail": "This field is required."}
                    ],
                }
            },
        ]
    },
    response_only=True,
    status_codes=["207"],
)


class BatchParser(BoundedJSONParser):
    """Leaves it to the reading of each message what of it cannot be stored."""

    def check(self, data: dict[str, Any]) -> None:
        pass


class BatchView(APIView):
    scopes = {"POST": "send"}
    throttle_classes = [EnqueueThrottle]
    parser_classes = [BatchParser]

    @extend_schema(
        operation_id="enqueue_batch",
        request=BatchSerializer,
        responses={207: BatchResultsSerializer} | documented(400, 401, 409, 413, 415, 422),
        parameters=ONCE,
        examples=[A_BATCH, RESULTS],
        tags=["tasks"],
    )
    def post(self, request: Request) -> Response:
        """Hands over up to 1,000 mails. With the 207 the good ones are committed; the bad ones are named."""
        if "dry_run" in request.query_params:
            # Taken for nothing it would send them all.
            raise ValidationError({"dry_run": ["A dry run is made of a single mail."]}, "not_for_batches")
        return once(request, lambda: self._submit(request), status.HTTP_207_MULTI_STATUS)

    def _submit(self, request: Request) -> dict[str, Any]:
        owner, allowance = owner_of(request), Allowance(STEPS_A_CALL)
        read = [_read(message, owner, allowance) for message in _messages(request.data)]
        mails = [each for each in read if isinstance(each, NewMail)]
        with open_account(), within_quota(self, owner, len(mails)):
            kept = iter(submission.submit_many(owner, mails))
        return {"results": [each if isinstance(each, dict) else _accepted(*next(kept)) for each in read]}


def _messages(data: Any) -> list[Any]:
    if "messages" not in data:
        raise ValidationError({"messages": ["This field is required."]}, "required")
    given = data["messages"]
    if not isinstance(given, list):
        raise ValidationError({"messages": ["Must be a list."]}, "not_a_list")
    if not 1 <= len(given) <= MOST_MESSAGES:
        code = "max_length" if given else "empty"
        raise ValidationError({"messages": [f"Must be 1 to {MOST_MESSAGES:,} messages."]}, code)
    return given


def _read(message: Any, owner: User, allowance: Allowance) -> NewMail | dict[str, Any]:
    """A mail, or what is wrong with it."""
    try:
        if mail := plain_mail(message):
            return mail
        if isinstance(message, dict):
            refuse_unstorable(message)
        return READER.mail(message, owner, allowance)
    except ValidationError as error:
        problem = describe(error)
        return {"error": {name: problem[name] for name in ("code", "detail", "errors")}}


def _accepted(pk: int, state: Any) -> dict[str, Any]:
    return {"task_id": pk, "status": state.label}
