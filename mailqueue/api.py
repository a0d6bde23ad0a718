"""The endpoints whose verb is the machine's: does this account's relay take us? Who delivers? How is it all?"""

import asyncio
from typing import Any

from django.contrib.auth.models import AnonymousUser
from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework import serializers
from rest_framework.exceptions import PermissionDenied
from rest_framework.generics import ListAPIView
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api.problems import documented
from accounts.api.scopes import WithinScopes
from accounts.api.throttling import SmtpTestThrottle
from accounts.caller import is_this_machine
from accounts.models import SmtpAccount, User
from mailqueue import metrics
from mailqueue.delivery import breaker
from mailqueue.delivery.handshake import Relay, SessionError, open_session
from mailqueue.delivery.replies import Answer, Fault
from mailqueue.delivery.routes import relay_of
from mailqueue.workers import Worker
from tasks import doorbell
from tasks.states import Phase

#: The whole test ends within this (seconds), whatever the relay does.
LONGEST_TEST = 25


class SmtpTestAnswer(serializers.Serializer[object]):
    ok = serializers.BooleanField()
    phase = serializers.ChoiceField(Phase.labels, help_text="how far it came")
    code = serializers.IntegerField(allow_null=True, help_text="the relay's reply code, if it refused")
    reply = serializers.CharField(allow_blank=True, help_text="what the relay said, or what went wrong")


class SmtpTestView(APIView):
    scopes = {"POST": "manage"}
    throttle_classes = [SmtpTestThrottle]

    @extend_schema(
        operation_id="test_smtp",
        request=None,
        responses=SmtpTestAnswer,
        examples=[
            OpenApiExample(
                "It takes us", {"ok": True, "phase": "auth", "code": None, "reply": ""}, response_only=True
            ),
            OpenApiExample(
                "It does not",
                {"ok": False, "phase": "auth", "code": 535, "reply": "535 5.7.8 wrong name or password"},
                response_only=True,
            ),
        ],
        tags=["users"],
    )
    def post(self, request: Request, pk: int) -> Response:
        """Connects and logs in to the relay of your account, and sends nothing.

        A success closes the account's breaker: what waits is sent within seconds.
        """
        account = get_object_or_404(SmtpAccount, owner=request.user, owner_id=pk)
        relay = relay_of(account)
        answer = asyncio.run(_test(relay))
        if answer.fault is None and answer.code is None:
            breaker.close(account.owner_id, relay, "The SMTP test succeeded.")
            doorbell.ring()
            return Response({"ok": True, "phase": Phase.AUTH.label, "code": None, "reply": ""})
        return Response({"ok": False, "phase": answer.phase.label, "code": answer.code, "reply": str(answer)})


async def _test(relay: Relay | None) -> Answer:
    """How far a session came; no code and no fault when all is well."""
    if relay is None:
        return Answer(Phase.AUTH, fault=Fault.UNREADABLE_PASSWORD)
    try:
        async with asyncio.timeout(LONGEST_TEST):
            session = await open_session(relay)
    except SessionError as error:
        return error.answer
    except TimeoutError:
        return Answer(Phase.CONNECT, fault=Fault.TIMEOUT)
    session.quit()
    return Answer(Phase.AUTH)


# Workers ----------------------------------------------------------------------------------------------

A_WORKER = {
    "id": 3,
    "name": "mail-worker-7c9:41",
    "host": "mail-worker-7c9",
    "pid": 41,
    "state": "alive",
    "doing": "sending",
    "in_flight": 180,
    "sent": 52114,
    "started_at": "2030-01-31T09:00:00Z",
    "last_heartbeat": "2030-01-31T12:34:56Z",
}


class WorkerSerializer(serializers.Serializer[Worker]):
    id = serializers.IntegerField()
    name = serializers.CharField(help_text="as in a mail's attempts")
    host = serializers.CharField()
    pid = serializers.IntegerField()
    state = serializers.ChoiceField(
        ["alive", "gone"],
        help_text="gone: silent for 30 s, though it did not say goodbye; listed for an hour",
    )
    doing = serializers.ChoiceField(["idle", "sending", "stopping"], help_text="when it was last heard of")
    in_flight = serializers.IntegerField(help_text="mails in its hands, then")
    sent = serializers.IntegerField(help_text="mails that relays have taken from it since it started")
    started_at = serializers.DateTimeField()
    last_heartbeat = serializers.DateTimeField(source="heartbeat_at", help_text="there is one every 10 s")


class WorkersView(ListAPIView[Worker]):
    scopes = {"GET": "read"}
    serializer_class = WorkerSerializer
    queryset = Worker.objects.none()

    def get_queryset(self) -> QuerySet[Worker]:
        return Worker.objects.delivering().with_state()

    @extend_schema(
        operation_id="workers_list",
        responses={200: WorkerSerializer(many=True)} | documented(400, 401, 503),
        examples=[OpenApiExample("worker", A_WORKER, response_only=True)],
        tags=["system"],
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """The processes that deliver everybody's mail, those that started last first."""
        return super().get(request, *args, **kwargs)


# The whole ---------------------------------------------------------------------------------------------


class StaffOrThisMachine(BasePermission):
    """A session or a token of staff, or a call over loopback."""

    def has_permission(self, request: Request, view: Any) -> bool:
        if is_this_machine(request) or (view.visitor.is_active and view.visitor.is_staff):
            return True
        if request.user is not None and not request.user.is_staff:
            raise PermissionDenied("This is for staff.", "staff_only")
        return request.user is not None


class StatsView(APIView):
    """Keys need `read`, and an owner who is staff."""

    scopes = {"GET": "read"}
    permission_classes = [WithinScopes, StaffOrThisMachine]
    #: Who has the session.
    visitor: User | AnonymousUser

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        # DRF puts in its place who has the token.
        self.visitor = request._request.user  # noqa: SLF001
        super().initial(request, *args, **kwargs)

    @extend_schema(exclude=True)  # beside the API, as the probes are: docs/metrics.md
    def get(self, _request: Request) -> Response:
        """The whole system in numbers, for staff or from the machine itself."""
        return Response(metrics.stats())
