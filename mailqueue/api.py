"""The endpoint whose verb is the machine's: does this account's relay take us?"""

import asyncio

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api.throttling import SmtpTestThrottle
from accounts.models import SmtpAccount
from mailqueue.delivery import breaker
from mailqueue.delivery.handshake import Relay, SessionError, open_session
from mailqueue.delivery.replies import Answer, Fault
from mailqueue.delivery.routes import relay_of
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
