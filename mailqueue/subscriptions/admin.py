"""Subscriptions and contents in the admin: who gets what and when, what it says, and the API's own verbs."""

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import TabularInline
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.utils import display_for_label

from mailqueue.subscriptions import deeds
from mailqueue.subscriptions.models import Content, Occurrence, State, Subscription, SubscriptionQuerySet
from tasks.admin import LongList, ReadOnly, framed, preformatted
from tasks.plain_text import is_html

COLOURS = {State.ACTIVE.label: "success", State.PAUSED.label: "warning", State.ENDED.label: "default"}
#: Longer contents are shown up to here, in characters.
SHOWN = 100_000


class OccurrenceInline(ReadOnly, TabularInline):
    model = Occurrence
    fields = ("at", "outcome", "mail")
    readonly_fields = fields
    ordering = ("-at",)
    hide_title = True
    per_page = 10

    @admin.display
    def mail(self, occurrence: Occurrence) -> str:
        if occurrence.task_id is None:
            return "none"
        address = reverse("admin:tasks_mailtask_change", args=[occurrence.task_id])
        return format_html(
            '<a class="text-primary-600 dark:text-primary-500" href="{}">{}</a>', address, occurrence.task_id
        )


@admin.register(Subscription)
class SubscriptionAdmin(ReadOnly, LongList):
    list_display = (
        "id", "owner", "recipient", "content_type", "line", "zone", "shown_state", "shown_next",
    )  # fmt: skip
    list_select_related = ("owner",)
    list_filter = (("state", ChoicesDropdownFilter),)
    list_filter_sheet = True
    search_fields = ("owner__email__exact", "id__exact")
    search_help_text = "The owner's e-mail address, or the subscription's number"
    fields = (
        ("owner", "recipient"),
        ("content_type", "name"),
        ("line", "zone"),
        ("window", "policy"),
        ("max_tries", "created_at"),
        "shown_state",
        "shown_times",
    )
    inlines = (OccurrenceInline,)
    actions = ("pause", "resume", "end")

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("subscriptions.change_subscription")

    @admin.display(description="state")
    def shown_state(self, subscription: Subscription) -> SafeString:
        return SafeString(display_for_label(State(subscription.state).label, "", COLOURS))

    @admin.display(description="next (UTC)")
    def shown_next(self, subscription: Subscription) -> str:
        at = subscription.next_at
        return format_html('<span class="whitespace-nowrap">{}</span>', f"{at:%Y-%m-%d %H:%M}" if at else "")

    @admin.display(description="next times (UTC)")
    def shown_times(self, subscription: Subscription) -> str:
        return ", ".join(f"{at:%Y-%m-%d %H:%M}" for at in subscription.next_times()) or "none"

    @admin.action(description="Pause", permissions=["operate"])
    def pause(self, request: HttpRequest, chosen: QuerySet[Subscription]) -> None:
        waiting = list(chosen.filter(state=State.ACTIVE))
        for each in waiting:
            deeds.pause(each.pk)
        self.message_user(request, f"{len(waiting)} paused.", messages.SUCCESS)

    @admin.action(description="Resume", permissions=["operate"])
    def resume(self, request: HttpRequest, chosen: QuerySet[Subscription]) -> None:
        waiting = list(chosen.filter(state=State.PAUSED, owner__is_active=True))
        for each in waiting:
            deeds.resume(each.pk)
        self.message_user(request, f"{len(waiting)} resumed.", messages.SUCCESS)

    @admin.action(description="Unsubscribe: end, and cancel what waits", permissions=["operate"])
    def end(self, request: HttpRequest, chosen: SubscriptionQuerySet) -> None:
        done = deeds.end(Subscription.objects.filter(id__in=chosen.order_by().values("id")))
        self.message_user(request, f"{len(done)} ended.", messages.SUCCESS)


@admin.register(Content)
class ContentAdmin(ReadOnly, LongList):
    """To see what subscribers are sent. Owners change it, by the API."""

    list_display = ("content_type", "owner", "version", "updated_at")
    list_select_related = ("owner",)
    fields = (("content_type", "owner"), ("version", "updated_at"), "subject", "preview", "source")
    search_fields = ("content_type__startswith", "owner__email__exact")
    search_help_text = "How the content type begins, or the owner's address"

    @admin.display
    def subject(self, content: Content) -> str:
        return _newest(content, "subject")

    @admin.display
    def preview(self, content: Content) -> SafeString:
        said = _newest(content, "content")[:SHOWN]
        return framed(said) if is_html(said) else preformatted(said)

    @admin.display
    def source(self, content: Content) -> SafeString:
        return preformatted(_newest(content, "content")[:SHOWN])


def _newest(content: Content, part: str) -> str:
    return str(content.versions.values_list(part, flat=True).get(number=content.version))
