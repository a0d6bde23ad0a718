"""Webhooks in the admin: whose go where, what came of them, and the API's own verbs to replay or switch off."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.utils import display_for_label

from mailqueue.webhooks import deliveries, endpoints
from mailqueue.webhooks.models import Delivery, DeliveryQuerySet, Endpoint, State
from tasks.admin import LongList, ReadOnly

BY_STAFF = "Disabled by staff."
COLOURS = {
    State.PENDING.label: "info",
    State.SENDING.label: "primary",
    State.DELIVERED.label: "success",
    State.FAILED.label: "danger",
}


@admin.register(Endpoint)
class EndpointAdmin(ReadOnly, ModelAdmin):
    """The secrets are shown to nobody."""

    list_display = ("id", "owner", "host", "is_active", "reason", "failing_since", "created_at")
    list_select_related = ("owner",)
    list_filter = ("is_active",)
    list_filter_sheet = True
    list_per_page = 50
    list_max_show_all = 0
    search_fields = ("owner__email__exact",)
    search_help_text = "The owner's e-mail address"
    fields = (
        ("owner", "created_at"),
        "url",
        "events",
        "description",
        ("is_active", "reason"),
        ("failing_since", "last_failed_at"),
        "old_secret_until",
    )
    ordering = ("-id",)
    sortable_by = ()
    show_full_result_count = False
    actions = ("switch_off", "switch_on")

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("webhooks.change_endpoint")

    @admin.display(description="host")
    def host(self, endpoint: Endpoint) -> str:
        """The rest of an address may be as good as a password."""
        return endpoint.url.partition("://")[2].partition("/")[0].partition("?")[0]

    @admin.action(description="Disable", permissions=["operate"])
    def switch_off(self, request: HttpRequest, chosen: QuerySet[Endpoint]) -> None:
        done = sum(endpoints.disable(each, BY_STAFF) for each in chosen)
        self.message_user(request, f"{done} disabled.", messages.SUCCESS)

    @admin.action(description="Switch on again", permissions=["operate"])
    def switch_on(self, request: HttpRequest, chosen: QuerySet[Endpoint]) -> None:
        waiting = list(chosen.filter(is_active=False, owner__is_active=True))
        for each in waiting:
            endpoints.change(each, is_active=True, reason="")
        self.message_user(request, f"{len(waiting)} switched on.", messages.SUCCESS)


@admin.register(Delivery)
class DeliveryAdmin(ReadOnly, LongList):
    list_display = (
        "id", "endpoint", "event", "shown_state", "tries", "code", "error", "next_attempt_at", "created_at",
    )  # fmt: skip
    list_select_related = ("endpoint",)
    list_filter = (("state", ChoicesDropdownFilter),)
    list_filter_sheet = True
    search_fields = ("endpoint__id__exact", "message_id__exact")
    search_help_text = "Number of the webhook, or webhook-id"
    fields = (
        ("endpoint", "message_id"),
        ("event", "shown_state"),
        ("tries", "next_attempt_at", "lease_until"),
        ("code", "error", "duration_ms", "last_attempt_at"),
        ("created_at", "finished_at"),
        "payload",
    )
    actions = ("replay",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Delivery]:
        return super().get_queryset(request).defer("payload")  # type: ignore[no-any-return]

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("webhooks.change_delivery")

    @admin.display(description="state")
    def shown_state(self, delivery: Delivery) -> SafeString:
        label = State(delivery.state).label
        return SafeString(display_for_label(label, "", COLOURS))

    @admin.action(description="Replay: send again now, by a fresh schedule", permissions=["operate"])
    def replay(self, request: HttpRequest, chosen: DeliveryQuerySet) -> None:
        total, done = chosen.count(), deliveries.replay(chosen.order_by())
        level: Any = messages.SUCCESS if done == total else messages.WARNING
        self.message_user(request, f"{done} of {total} are sent again.", level)
