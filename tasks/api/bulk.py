"""POST /bulk: cancel or retry whatever a filter means."""

from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api.problems import documented
from tasks import submission
from tasks.api.filters import narrowed, picked
from tasks.api.serializers import BulkDoneSerializer, BulkSerializer
from tasks.api.views import own_tasks
from tasks.models import MailTaskQuerySet

BY_ACTION = {"cancel": submission.cancel, "retry": submission.retry}
EXAMPLES = [
    OpenApiExample(
        "The failures of yesterday",
        {
            "action": "retry",
            "filter": {"created_after": "2030-01-30T00:00:00Z", "created_before": "2030-01-31T00:00:00Z"},
        },
        request_only=True,
    ),
    OpenApiExample(
        "How many wait",
        {"action": "cancel", "filter": {"all": True}, "dry_run": True},
        request_only=True,
    ),
    OpenApiExample("Done", {"matched": 4711, "changed": 4711, "complete": True}, response_only=True),
]


class BulkView(APIView):
    scopes = {"POST": "manage"}

    @extend_schema(
        operation_id="bulk",
        request=BulkSerializer,
        responses={200: BulkDoneSerializer} | documented(400, 401, 413, 415),
        examples=EXAMPLES,
        tags=["tasks"],
    )
    def post(self, request: Request) -> Response:
        """Cancels what waits, or retries what failed, as far as the filter means it.

        `retry` takes what `/queue/fail` lists; what a person cancelled, and what is uncertain, only if the filter
        names that status. `cancel` takes what waits.
        """
        asked = BulkSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        action, wanted = asked.validated_data["action"], asked.validated_data["filter"]
        allowing = _allowing(own_tasks(request), action, has_status="status" in wanted)
        found = picked(narrowed(allowing, wanted), wanted)
        verb = None if asked.validated_data["dry_run"] else BY_ACTION[action]
        return Response(submission.in_bulk(found, verb)._asdict())


def _allowing(own: MailTaskQuerySet, action: str, *, has_status: bool) -> MailTaskQuerySet:
    if action == "cancel":
        return own.waiting()
    return own.retryable() if has_status else own.failures()
