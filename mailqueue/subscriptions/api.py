"""Subscriptions over HTTP: the types `subscribe` and `unsubscribe` of typed tasks, the list, and the contents."""

from typing import Any

from django.db import transaction
from django.db.models import F, QuerySet
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.exceptions import NotFound
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api.problems import Conflict, documented
from accounts.models import User
from mailqueue import done
from mailqueue.kinds import Done, Kind, max_tries
from mailqueue.subscriptions import contents, deeds
from mailqueue.subscriptions.fields import (
    A_CHANGE,
    A_CONTENT,
    A_SUBSCRIPTION,
    A_WHOLE_SUBSCRIPTION,
    KEPT_CONTENT,
    MADE_CONTENT,
    ContentFilterSerializer,
    ContentSerializer,
    ShownContentSerializer,
    SubscribeTask,
    SubscriptionChangeSerializer,
    SubscriptionFilterSerializer,
    SubscriptionSerializer,
    UnsubscribeTask,
    WholeSubscriptionSerializer,
)
from mailqueue.subscriptions.models import Content, ContentVersion, Subscription, SubscriptionQuerySet
from tasks.api.views import open_account, owner_of

HAS_ENDED = "It has ended; its recipient may have said so. Subscribe them again if they ask for it."


@transaction.atomic
def subscribe(_view: APIView, owner: User, asked: dict[str, Any]) -> Done:
    payload = asked["payload"]
    subscription, is_new = deeds.subscribe(
        owner,
        payload["userId"],
        payload["content_type"],
        max_tries=max_tries(asked),
        name=asked.get("task", ""),
        **payload["columns"],
    )
    message = "Subscribed." if is_new else "The subscription is changed."
    if not Content.objects.filter(owner=owner, content_type=subscription.content_type).exists():
        message += " Nothing is sent until you have a subscriptionContent of this content_type."
    return Done(done.note(owner, asked, subscription.pk), message, subscription.pk)


@transaction.atomic
def unsubscribe(_view: APIView, owner: User, asked: dict[str, Any]) -> Done:
    theirs = Subscription.objects.owned_by(owner).to(asked["payload"]["userId"])
    if "content_type" in asked["payload"]:
        theirs = theirs.filter(content_type=asked["payload"]["content_type"])
    ended = deeds.end(theirs)
    message = f"Unsubscribed from {len(ended)}." if ended else "There was nothing to unsubscribe from."
    subscription_id = ended[0] if len(ended) == 1 else None
    return Done(done.note(owner, asked, subscription_id), message, subscription_id)


SUBSCRIBE = Kind(SubscribeTask, subscribe, mails=0)
UNSUBSCRIBE = Kind(UnsubscribeTask, unsubscribe, mails=0)


def _own(request: Request, pk: int) -> Subscription:
    found = Subscription.objects.owned_by(owner_of(request)).filter(pk=pk).first()
    if found is None:
        raise NotFound
    return found


def _whole(subscription: Subscription) -> Response:
    return Response(WholeSubscriptionSerializer(subscription).data)


class SubscriptionsView(ListAPIView[Subscription]):
    scopes = {"GET": "read"}
    serializer_class = SubscriptionSerializer
    queryset = Subscription.objects.none()

    def get_queryset(self) -> QuerySet[Subscription]:
        asked = SubscriptionFilterSerializer(data=self.request.query_params.dict())
        asked.is_valid(raise_exception=True)
        given = dict(asked.validated_data)
        found: SubscriptionQuerySet = Subscription.objects.owned_by(owner_of(self.request))
        if "recipient" in given:
            found = found.to(given.pop("recipient"))
        return found.filter(**given)

    @extend_schema(
        operation_id="subscriptions_list",
        parameters=[SubscriptionFilterSerializer],
        responses={200: SubscriptionSerializer(many=True)} | documented(400, 401),
        examples=[A_SUBSCRIPTION],
        tags=["subscriptions"],
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Your subscriptions, newest first, with the times of their next mails. They are made by typed tasks:
        `subscribe`."""
        return super().get(request, *args, **kwargs)


class SubscriptionView(APIView):
    scopes = {"GET": "read", "PATCH": "manage", "DELETE": "manage"}

    @extend_schema(
        operation_id="subscriptions_read",
        responses={200: WholeSubscriptionSerializer} | documented(401, 404),
        examples=[A_WHOLE_SUBSCRIPTION],
        tags=["subscriptions"],
    )
    def get(self, request: Request, pk: int) -> Response:
        """One subscription, and what came of its last ten times."""
        return _whole(_own(request, pk))

    @extend_schema(
        operation_id="subscriptions_change",
        request=SubscriptionChangeSerializer,
        responses={200: WholeSubscriptionSerializer} | documented(400, 401, 404, 409, 413, 415),
        examples=[A_CHANGE, A_WHOLE_SUBSCRIPTION],
        tags=["subscriptions"],
    )
    def patch(self, request: Request, pk: int) -> Response:
        """Changes what is given. Another schedule begins with its first time from now on."""
        subscription = _own(request, pk)
        wanted = SubscriptionChangeSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        given = wanted.validated_data
        changes = wanted.planned(given, subscription.schedule)
        if "retries" in given:
            changes["max_tries"] = given["retries"] + 1
        if "state" in given:
            _moved(pk, given["state"])
        return _whole(deeds.change(pk, **changes))

    @extend_schema(
        operation_id="subscriptions_remove",
        responses={204: OpenApiResponse(description="Gone")} | documented(401, 404),
        tags=["subscriptions"],
    )
    def delete(self, request: Request, pk: int) -> Response:
        """Deletes a subscription and cancels its mails that still wait. That its recipient has unsubscribed is
        forgotten with it."""
        deeds.remove(_own(request, pk))
        return Response(status=204)


def _moved(pk: int, state: str) -> Subscription:
    try:
        return deeds.resume(pk) if state == "active" else deeds.pause(pk)
    except deeds.EndedError as error:
        raise Conflict(HAS_ENDED, "subscription_ended") from error


class PauseView(APIView):
    scopes = {"POST": "manage"}

    @extend_schema(
        operation_id="subscriptions_pause",
        request=None,
        responses={200: WholeSubscriptionSerializer} | documented(401, 404, 409),
        examples=[A_WHOLE_SUBSCRIPTION],
        tags=["subscriptions"],
    )
    def post(self, request: Request, pk: int) -> Response:
        """Makes no more mails until it is resumed. What waits already is sent."""
        return _whole(_moved(_own(request, pk).pk, "paused"))


class ResumeView(APIView):
    scopes = {"POST": "manage"}

    @extend_schema(
        operation_id="subscriptions_resume",
        request=None,
        responses={200: WholeSubscriptionSerializer} | documented(401, 404, 409),
        examples=[A_WHOLE_SUBSCRIPTION],
        tags=["subscriptions"],
    )
    def post(self, request: Request, pk: int) -> Response:
        """Goes on with the next time from now; what would have come meanwhile is not sent."""
        return _whole(_moved(_own(request, pk).pk, "active"))


class ContentsView(ListAPIView[ContentVersion]):
    scopes = {"GET": "read", "POST": "manage", "PUT": "manage"}
    serializer_class = ShownContentSerializer
    queryset = ContentVersion.objects.none()

    def get_queryset(self) -> QuerySet[ContentVersion]:
        asked = ContentFilterSerializer(data=self.request.query_params.dict())
        asked.is_valid(raise_exception=True)
        own = ContentVersion.objects.select_related("content_of").filter(
            content_of__owner=owner_of(self.request), number=F("content_of__version")
        )
        wanted = asked.validated_data.get("content_type")
        return own.filter(content_of__content_type=wanted) if wanted else own

    def get_object(self) -> ContentVersion:
        """For OPTIONS, where the framework asks for one because of the PUT; there is none at this address."""
        raise NotFound

    @extend_schema(
        operation_id="subscription_contents_list",
        parameters=[ContentFilterSerializer],
        responses={200: ShownContentSerializer(many=True)} | documented(400, 401),
        examples=[KEPT_CONTENT],
        tags=["subscriptions"],
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """What subscribers are sent: the newest version for each content type, the last changed first."""
        return super().get(request, *args, **kwargs)

    @extend_schema(
        operation_id="subscription_contents_make",
        request=ContentSerializer,
        responses={201: ShownContentSerializer} | documented(400, 401, 409, 413, 415),
        examples=[A_CONTENT, MADE_CONTENT],
        tags=["subscriptions"],
    )
    def post(self, request: Request) -> Response:
        """The content of a new content type, its version 1."""
        wanted = ContentSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        try:
            with open_account():
                made = contents.make(owner_of(request), **wanted.validated_data)
        except contents.TypeTakenError as error:
            raise Conflict(
                "There is a content of this type; PUT changes it.", "content_type_taken"
            ) from error
        except contents.TooManyContentsError as error:
            complaint = f"There are {contents.CONTENTS_PER_OWNER} contents already."
            raise Conflict(complaint, "too_many_contents") from error
        return Response(ShownContentSerializer(made).data, 201)

    @extend_schema(
        operation_id="subscription_contents_change",
        request=ContentSerializer,
        responses={200: ShownContentSerializer} | documented(400, 401, 404, 413, 415),
        examples=[A_CONTENT, KEPT_CONTENT],
        tags=["subscriptions"],
    )
    def put(self, request: Request) -> Response:
        """A new version of the content of this type. Mails that are made from now on say it."""
        wanted = ContentSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        try:
            made = contents.change(owner_of(request), **wanted.validated_data)
        except contents.UnknownTypeError as error:
            raise NotFound from error
        return Response(ShownContentSerializer(made).data)
