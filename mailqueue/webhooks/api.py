"""Webhooks over HTTP: endpoints, their secrets, and what went there."""

from datetime import timedelta
from typing import Any

from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.exceptions import NotFound
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api.problems import Conflict, documented
from accounts.api.throttling import SmtpTestThrottle
from mailqueue.webhooks import deliveries, endpoints, fanout
from mailqueue.webhooks.endpoints import ENDPOINTS_PER_OWNER, TooManyEndpointsError
from mailqueue.webhooks.fields import (
    A_DELIVERY,
    A_FRESH_DELIVERY,
    A_NEW_ENDPOINT,
    A_SHOWN_SECRET,
    AN_ENDPOINT,
    GRACE,
    DeliveryFilterSerializer,
    DeliverySerializer,
    EndpointChangeSerializer,
    EndpointSerializer,
    NewEndpointSerializer,
    ReplayedSerializer,
    ReplaySerializer,
    RotationSerializer,
    ShownEndpointSerializer,
)
from mailqueue.webhooks.models import Delivery, Endpoint
from tasks.api.views import open_account, owner_of

BY_OWNER = "Its owner has disabled it."


class WebhookTestThrottle(SmtpTestThrottle):
    """As often as the SMTP test, and counted apart from it: it calls others too."""

    name = "webhook-test"


def _own(request: Request, pk: int) -> Endpoint:
    endpoint = Endpoint.objects.owned_by(owner_of(request)).filter(pk=pk).first()
    if endpoint is None:
        raise NotFound
    return endpoint


def _own_active(request: Request, pk: int) -> Endpoint:
    endpoint = _own(request, pk)
    if not endpoint.is_active:
        raise Conflict(f"This webhook is disabled: {endpoint.reason}", "webhook_disabled")
    return endpoint


def _shown(endpoint: Endpoint, secret: str) -> dict[str, Any]:
    return {**EndpointSerializer(endpoint).data, "secret": secret}


class WebhooksView(ListAPIView[Endpoint]):
    scopes = {"GET": "read", "POST": "manage"}
    serializer_class = EndpointSerializer
    queryset = Endpoint.objects.none()

    def get_queryset(self) -> QuerySet[Endpoint]:
        return Endpoint.objects.owned_by(owner_of(self.request))

    @extend_schema(
        operation_id="webhooks_list",
        responses={200: EndpointSerializer(many=True)} | documented(400, 401, 503),
        examples=[AN_ENDPOINT],
        tags=["webhooks"],
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Your webhooks, newest first."""
        return super().get(request, *args, **kwargs)

    @extend_schema(
        operation_id="webhooks_make",
        request=NewEndpointSerializer,
        responses={201: ShownEndpointSerializer} | documented(400, 401, 409, 413, 415, 503),
        examples=[A_NEW_ENDPOINT, A_SHOWN_SECRET],
        tags=["webhooks"],
    )
    def post(self, request: Request) -> Response:
        """A new webhook: what happens from now on is sent there, signed. The secret is in this answer and never
        again. Up to 10 of them.
        """
        wanted = NewEndpointSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        given = wanted.validated_data
        try:
            with open_account():
                endpoint, secret = endpoints.make(
                    owner_of(request), given["url"], given.get("events", []), given.get("description", "")
                )
        except TooManyEndpointsError as error:
            detail = f"There are {ENDPOINTS_PER_OWNER} webhooks already; delete one first."
            raise Conflict(detail, "too_many_webhooks") from error
        return Response(
            _shown(endpoint, secret), 201, headers={"Location": f"/api/v1/webhooks/{endpoint.pk}"}
        )


class WebhookView(APIView):
    scopes = {"GET": "read", "PATCH": "manage", "DELETE": "manage"}

    @extend_schema(
        operation_id="webhooks_read",
        responses={200: EndpointSerializer} | documented(401, 404, 503),
        examples=[AN_ENDPOINT],
        tags=["webhooks"],
    )
    def get(self, request: Request, pk: int) -> Response:
        """One webhook, and why it is disabled if it is."""
        return Response(EndpointSerializer(_own(request, pk)).data)

    @extend_schema(
        operation_id="webhooks_change",
        request=EndpointChangeSerializer,
        responses={200: EndpointSerializer} | documented(400, 401, 404, 413, 415, 503),
        examples=[
            OpenApiExample("Switched on again", {"state": "active"}, request_only=True),
            AN_ENDPOINT,
        ],
        tags=["webhooks"],
    )
    def patch(self, request: Request, pk: int) -> Response:
        """Changes what is given. What waited while it was disabled goes on when it is `active` again; what happened
        meanwhile is not sent.
        """
        endpoint = _own(request, pk)
        wanted = EndpointChangeSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        changes = dict(wanted.validated_data)
        state = changes.pop("state", endpoint.state)
        if state != endpoint.state:
            changes |= {"is_active": state == "active", "reason": "" if state == "active" else BY_OWNER}
        if changes:
            endpoints.change(endpoint, **changes)
        return Response(EndpointSerializer(_own(request, pk)).data)

    @extend_schema(
        operation_id="webhooks_remove",
        responses={204: OpenApiResponse(description="Gone")} | documented(401, 404, 503),
        tags=["webhooks"],
    )
    def delete(self, request: Request, pk: int) -> Response:
        """Deletes a webhook, what waits for it, and what is known of what went there."""
        endpoints.remove(_own(request, pk))
        return Response(status=204)


class RotateView(APIView):
    scopes = {"POST": "manage"}

    @extend_schema(
        operation_id="webhooks_rotate",
        request=RotationSerializer,
        responses={200: ShownEndpointSerializer} | documented(400, 401, 404, 413, 415, 503),
        examples=[OpenApiExample("An hour", {"grace_seconds": 3600}, request_only=True), A_SHOWN_SECRET],
        tags=["webhooks"],
    )
    def post(self, request: Request, pk: int) -> Response:
        """Another secret, in this answer and never again. For a time the old one signs too, so that the receiver can
        change over.
        """
        endpoint = _own(request, pk)
        wanted = RotationSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        seconds = wanted.validated_data.get("grace_seconds", GRACE.total_seconds())
        return Response(_shown(*endpoints.rotate(endpoint, timedelta(seconds=seconds))))


class TestView(APIView):
    scopes = {"POST": "manage"}
    throttle_classes = [WebhookTestThrottle]

    @extend_schema(
        operation_id="webhooks_test",
        request=None,
        responses={202: DeliverySerializer} | documented(401, 404, 409, 429, 503),
        examples=[A_FRESH_DELIVERY],
        tags=["webhooks"],
    )
    def post(self, request: Request, pk: int) -> Response:
        """Sends an event `webhook.test` like any other, whatever this webhook wants to hear of."""
        return Response(DeliverySerializer(fanout.test_delivery(_own_active(request, pk))).data, 202)


class DeliveriesView(ListAPIView[Delivery]):
    scopes = {"GET": "read"}
    serializer_class = DeliverySerializer
    queryset = Delivery.objects.none()

    def get_queryset(self) -> QuerySet[Delivery]:
        endpoint = _own(self.request, self.kwargs["pk"])
        asked = DeliveryFilterSerializer(data=self.request.query_params.dict())
        asked.is_valid(raise_exception=True)
        return Delivery.objects.newest().filter(endpoint=endpoint, **asked.validated_data)

    @extend_schema(
        operation_id="webhooks_deliveries",
        parameters=[
            DeliveryFilterSerializer,
            OpenApiParameter("id", OpenApiTypes.INT, OpenApiParameter.PATH),
        ],
        responses={200: DeliverySerializer(many=True)} | documented(400, 401, 404, 503),
        examples=[A_DELIVERY],
        tags=["webhooks"],
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """What was or is to be sent there, newest first: how often it was tried, and what came of it."""
        return super().get(request, *args, **kwargs)


class ReplayOneView(APIView):
    scopes = {"POST": "manage"}

    @extend_schema(
        operation_id="webhooks_replay_one",
        request=None,
        responses={202: DeliverySerializer} | documented(401, 404, 409, 503),
        examples=[A_FRESH_DELIVERY],
        tags=["webhooks"],
    )
    def post(self, request: Request, pk: int, delivery_id: int) -> Response:
        """Sends it again at once, by a fresh schedule and under the same `webhook-id`; also what only waits for its
        next try.
        """
        endpoint = _own(request, pk)
        chosen = Delivery.objects.newest().filter(endpoint=endpoint, pk=delivery_id)
        if not chosen.exists():
            raise NotFound
        _own_active(request, pk)
        if not deliveries.replay(chosen):
            raise Conflict("This event is being sent just now.", "being_sent")
        return Response(DeliverySerializer(chosen.get()).data, 202)


class ReplayView(APIView):
    scopes = {"POST": "manage"}

    @extend_schema(
        operation_id="webhooks_replay",
        request=ReplaySerializer,
        responses={202: ReplayedSerializer} | documented(400, 401, 404, 409, 413, 415, 503),
        examples=[
            OpenApiExample(
                "What failed", {"since": "2030-01-31T00:00:00Z", "only_failed": True}, request_only=True
            ),
            OpenApiExample(
                "All of it", {"replayed": 1213, "next_since": None}, response_only=True, status_codes=["202"]
            ),
        ],
        tags=["webhooks"],
    )
    def post(self, request: Request, pk: int) -> Response:
        """Sends again what was delivered or has failed since then, each under its own `webhook-id`. A call ends after
        10 s and says where to go on.
        """
        endpoint = _own(request, pk)
        wanted = ReplaySerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        given = wanted.validated_data
        replayed, next_since = deliveries.replay_since(
            _own_active(request, endpoint.pk), given["since"], only_failed=given.get("only_failed", False)
        )
        return Response(ReplayedSerializer({"replayed": replayed, "next_since": next_since}).data, 202)
