"""One-time passwords over HTTP: the type `generateOtp` of typed tasks, and POST /task/verify."""

from typing import Any

from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api.problems import documented
from accounts.api.throttling import TooManyRequests, announce
from accounts.models import User
from mailqueue.kinds import Done, Kind, OneWord, ToSomebody, TypedTask, max_tries, metadata, with_recipient
from mailqueue.otp import codes
from mailqueue.otp.letter import TEMPLATE
from tasks.api.fields import MailAddress, WholeNumber
from tasks.api.views import owner_of
from tasks.states import Status
from tasks.templates import PartError

A_CODE = OpenApiExample(
    "A one-time password",
    {
        "task": "login",
        "type": "generateOtp",
        "retries": 3,
        "payload": {"userId": "jane@example.com", "length": 6},
    },
    request_only=True,
)
SUPPRESSED = "The recipient is on your list of suppressions: no one-time password is sent."


class OtpPayload(ToSomebody):
    length = WholeNumber(
        min_value=codes.SHORTEST, max_value=codes.LONGEST, default=codes.USUAL, help_text="digits"
    )


class OtpTask(TypedTask):
    """A one-time password by mail."""

    type = OneWord("generateOtp")
    payload = OtpPayload()


def send_code(view: APIView, owner: User, asked: dict[str, Any]) -> Done:
    payload = asked["payload"]
    try:
        task, standings = codes.issue(
            owner,
            payload["userId"],
            payload["length"],
            max_tries=max_tries(asked),
            metadata=metadata(asked),
        )
    except codes.TooManyCodesError as error:
        announce(view, error.standings)
        complaint = f"This recipient has had enough one-time passwords; try again in {error.wait} s."
        raise TooManyRequests(error.wait, complaint) from error
    except PartError as error:
        complaint = f'Your template "{TEMPLATE}" does not do; {error.part}: {error}'
        raise ValidationError({"payload": [complaint]}, error.code) from error
    announce(view, standings)
    is_suppressed = task.status == Status.CANCELLED
    return Done(task.pk, SUPPRESSED if is_suppressed else "The one-time password is on its way.")


GENERATE_OTP = Kind(OtpTask, send_code)


_LARGEST = 10**codes.LONGEST - 1


@extend_schema_field(
    {
        "anyOf": [
            {"type": "string", "minLength": 1, "maxLength": 100},
            {"type": "integer", "minimum": 0, "maximum": _LARGEST},
        ]
    }
)
class GivenCode(serializers.CharField):
    """As somebody typed it, with spaces in between perhaps; a number will do."""

    def to_internal_value(self, data: Any) -> str:
        if isinstance(data, float) and data.is_integer():
            data = int(data)
        is_number = isinstance(data, int) and not isinstance(data, bool)
        if not (isinstance(data, str) or (is_number and 0 <= data <= _LARGEST)):
            self.fail("invalid")
        return "".join(str(super().to_internal_value(str(data))).split())


class VerifySerializer(serializers.Serializer[Any]):
    userEmail = MailAddress(  # noqa: N815 -- the contract's spelling
        max_length=254, help_text="to whom the one-time password was sent"
    )
    otp = GivenCode(max_length=100, help_text="what they say it is")

    def to_internal_value(self, data: Any) -> Any:
        return super().to_internal_value(with_recipient("userEmail", data))


class VerifiedSerializer(serializers.Serializer[Any]):
    type = serializers.CharField(help_text="`otp verification`")
    verified = serializers.BooleanField()


class VerifyView(APIView):
    scopes = {"POST": "send"}

    @extend_schema(
        operation_id="verify_otp",
        request=VerifySerializer,
        responses={200: VerifiedSerializer} | documented(400, 401, 413, 415),
        examples=[
            OpenApiExample(
                "What Jane typed", {"userEmail": "jane@example.com", "otp": "493817"}, request_only=True
            ),
            OpenApiExample("It is right", {"type": "otp verification", "verified": True}, response_only=True),
        ],
        tags=["tasks"],
    )
    def post(self, request: Request) -> Response:
        """Whether this is the one-time password that you have sent to them last. A right one is used up; a wrong,
        late, used, locked and unknown one are answered alike."""
        asked = VerifySerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        given = asked.validated_data
        verified = codes.verify(owner_of(request), given["userEmail"], given["otp"])
        return Response({"type": "otp verification", "verified": verified})
