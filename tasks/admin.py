"""The ledger in the admin: to look at, and to retry, cancel or resolve with the API's own verbs."""

from email import message_from_bytes, policy
from typing import Any, cast

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from unfold.admin import ModelAdmin, TabularInline
from unfold.contrib.filters.admin import ChoicesDropdownFilter, DropdownFilter
from unfold.decorators import display
from unfold.utils import display_for_label

from tasks import submission
from tasks.admin_queries import BoundedPaginator, ListedTasks, TaskChangeList
from tasks.models import Attempt, Claim, MailTask, MailTaskQuerySet, OneTime
from tasks.states import CancelReason, Outcome, Status
from tasks.suppressions import Suppression
from tasks.templates import MailTemplate, TemplateVersion
from tasks.waiting import explain

SUPPRESSED_TOO = ", or for the list of suppressions"
#: Longer mails are shown up to here, in characters.
SHOWN = 100_000

COLOURS = {
    Status.QUEUED.label: "info",
    Status.PROCESSING.label: "primary",
    Status.SUCCESS.label: "success",
    Status.FAILED.label: "warning",
    Status.CANCELLED.label: "danger",
    Status.SCHEDULED.label: "default",
    Status.UNCERTAIN.label: "warning",
    Outcome.ACCEPTED.label: "success",
    Outcome.TEMPORARY.label: "warning",
    Outcome.REJECTED.label: "danger",
    Outcome.LOST.label: "warning",
}


class ReadOnly:
    def has_add_permission(self, *_: Any) -> bool:
        return False

    def has_change_permission(self, *_: Any) -> bool:
        return False

    def has_delete_permission(self, *_: Any) -> bool:
        return False


class LongList(ModelAdmin):
    """Newest first, in an order that an index has, and without a question that all rows would have to answer."""

    list_per_page = 50
    list_max_show_all = 0
    ordering = ("-id",)
    sortable_by = ()
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator


class StatusFilter(DropdownFilter):
    title = "status"
    parameter_name = "status"

    def lookups(self, *_: Any) -> list[tuple[int, str]]:
        return [(status.value, status.label) for status in Status]

    def queryset(self, _request: HttpRequest, tasks: MailTaskQuerySet) -> MailTaskQuerySet:
        status = self.value()
        return tasks.in_status(Status(int(status))) if status in map(str, Status.values) else tasks


class CancelReasonFilter(DropdownFilter):
    title = "cancel reason"
    parameter_name = "cancel_reason"

    def lookups(self, *_: Any) -> list[tuple[int, str]]:
        return [(reason.value, reason.label) for reason in CancelReason]

    def queryset(self, _request: HttpRequest, tasks: MailTaskQuerySet) -> MailTaskQuerySet:
        reason = self.value()
        if not str(reason).isdigit():
            return tasks
        return tasks.in_status(Status.CANCELLED).filter(cancel_reason=int(reason) % 1000)


class AttemptInline(ReadOnly, TabularInline):
    model = Attempt
    fields = ("number", "at", "shown_outcome", "phase", "code", "reply", "duration_ms", "worker")
    readonly_fields = fields
    hide_title = True
    tab = True

    @admin.display(description="outcome")
    def shown_outcome(self, attempt: Attempt) -> SafeString:
        return _label(Outcome(attempt.outcome))


@admin.register(MailTask)
class MailTaskAdmin(ReadOnly, ModelAdmin):
    list_display = ("id", "shown_status", "mail", "owner", "lane", "tries", "due", "created")
    list_select_related = ("owner",)
    list_filter = (
        StatusFilter,
        ("lane", ChoicesDropdownFilter),
        CancelReasonFilter,
    )
    list_filter_sheet = True
    list_per_page = 50
    list_max_show_all = 0
    #: A click on another column's head would sort the whole table.
    sortable_by = ("id",)
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator
    date_hierarchy = "created_at"
    search_fields = ("recipient",)  # shows the box; found_by() answers it
    search_help_text = "Id, Message-ID or start of recipient"
    actions = ("retry", "cancel", "accept", "send_again")
    inlines = (AttemptInline,)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("shown_status", "cancel_reason"),
                    "waiting",
                    "last_reply",
                    ("recipient", "sender"),
                    "subject",
                    ("owner", "lane"),
                    ("tries", "on_uncertain"),
                    "shown_message_id",
                )
            },
        ),
        ("Text", {"fields": ("text",), "classes": ("tab",)}),
        ("HTML", {"fields": ("html",), "classes": ("tab",)}),
        ("Source", {"fields": ("source",), "classes": ("tab",)}),
        (
            "Times",
            {
                "fields": (
                    ("created_at", "moved_at"),
                    ("due_at", "scheduled_at"),
                    ("started_at", "finished_at"),
                    ("expires_at", "lease_until"),
                ),
                "classes": ("tab",),
            },
        ),
    )

    def get_queryset(self, _request: HttpRequest) -> QuerySet[MailTask]:
        return ListedTasks(MailTask)

    def get_changelist(self, _request: HttpRequest, **_: Any) -> type[TaskChangeList]:
        return TaskChangeList

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Ids follow time; but to a day long past only task_created leads without passing all that came since."""
        return ("-created_at", "-id") if "created_at__year" in request.GET else ("-id",)

    def get_search_results(
        self, _request: HttpRequest, queryset: ListedTasks, search_term: str
    ) -> tuple[QuerySet[MailTask], bool]:
        return (queryset.found_by(search_term) if search_term.strip() else queryset), False

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("tasks.change_mailtask")

    @admin.display(description="status")
    def shown_status(self, task: MailTask) -> SafeString:
        return _label(Status(task.status))

    @admin.display(description="why it waits")
    def waiting(self, task: MailTask) -> str:
        why = explain(task, task.owner.smtp, timezone.now())
        if why is None:
            return "—"
        until = f", until {date_format(why['until'], 'SHORT_DATETIME_FORMAT')}" if why["until"] else ""
        return f"{why['reason']}{until}: {why['detail']} Tries left: {why['tries_left']}."

    @display(description="mail", header=True)  # type: ignore[untyped-decorator]
    def mail(self, task: MailTask) -> tuple[str, str]:
        return task.recipient, Truncator(task.subject).chars(40)

    @admin.display(description="tries")
    def tries(self, task: MailTask) -> SafeString:
        return _in_a_line(f"{task.try_count} of {task.max_tries}")

    @admin.display(description="due")
    def due(self, task: MailTask) -> SafeString:
        return _in_a_line(date_format(task.due_at, "SHORT_DATETIME_FORMAT"))

    @admin.display(description="lease until")
    def lease_until(self, task: MailTask) -> str:
        claim = Claim.objects.filter(token=task.claim_token).first() if task.claim_token else None
        return date_format(claim.lease_until, "DATETIME_FORMAT") if claim else "—"

    @admin.display(description="created")
    def created(self, task: MailTask) -> SafeString:
        return _in_a_line(date_format(task.created_at, "SHORT_DATETIME_FORMAT"))

    @admin.display(description="Message-ID")
    def shown_message_id(self, task: MailTask) -> SafeString:
        return format_html('<span style="overflow-wrap: anywhere">{}</span>', task.message_id)

    @admin.display(description="text")
    def text(self, task: MailTask) -> SafeString:
        return _shown(_body(task, "plain"))

    @admin.display(description="HTML, as written")
    def html(self, task: MailTask) -> SafeString:
        return _shown(_body(task, "html"))

    @admin.display(description="source, as it goes over the wire")
    def source(self, task: MailTask) -> SafeString:
        return _shown(_raw(task).decode("utf-8", "replace"))

    @admin.action(description="Retry: send again now, with a fresh count", permissions=["operate"])
    def retry(self, request: HttpRequest, tasks: MailTaskQuerySet) -> None:
        self._tell(request, "queued again", tasks.count(), submission.retry(tasks), SUPPRESSED_TOO)

    @admin.action(description="Cancel what waits", permissions=["operate"])
    def cancel(self, request: HttpRequest, tasks: MailTaskQuerySet) -> None:
        self._tell(request, "cancelled", tasks.count(), submission.cancel(tasks))

    @admin.action(description="Uncertain: accept as sent", permissions=["operate"])
    def accept(self, request: HttpRequest, tasks: MailTaskQuerySet) -> None:
        self._tell(request, "accepted as sent", tasks.count(), submission.accept(tasks))

    @admin.action(description="Uncertain: send again", permissions=["operate"])
    def send_again(self, request: HttpRequest, tasks: MailTaskQuerySet) -> None:
        self._tell(request, "queued again", tasks.count(), submission.send_again(tasks), SUPPRESSED_TOO)

    def _tell(self, request: HttpRequest, done: str, chosen: int, changed: int, or_else: str = "") -> None:
        text = f"{changed} of {chosen} {done}."
        if changed < chosen:
            text += f" {chosen - changed} could not be, in the state they are in{or_else}."
        self.message_user(request, text, messages.SUCCESS if changed == chosen else messages.WARNING)


@admin.register(Suppression)
class SuppressionAdmin(LongList):
    """To see whom mail does not go to any more, and to take them off. Owners put them on, or a relay's answer."""

    list_display = ("address", "owner", "reason", "reply", "task", "created_at")
    list_select_related = ("owner",)
    list_filter = (("reason", ChoicesDropdownFilter),)
    list_filter_sheet = True
    fields = list_display
    search_fields = ("address__exact",)
    search_help_text = "The whole address, in small letters"

    def has_add_permission(self, *_: Any) -> bool:
        return False

    def has_change_permission(self, *_: Any) -> bool:
        return False

    @admin.display(description="mail")
    def task(self, listed: Suppression) -> SafeString | str:
        if listed.task_id is None:
            return "—"
        page = reverse("admin:tasks_mailtask_change", args=[listed.task_id])
        return format_html('<a href="{}">{}</a>', page, listed.task_id)


class VersionInline(ReadOnly, TabularInline):
    model = TemplateVersion
    fields = ("number", "subject", "source", "created_at")
    readonly_fields = fields
    ordering = ("-number",)
    hide_title = True
    per_page = 5

    @admin.display
    def source(self, version: TemplateVersion) -> SafeString:
        return preformatted("\n\n".join(part for part in (version.body, version.html_body) if part)[:SHOWN])


@admin.register(MailTemplate)
class MailTemplateAdmin(ReadOnly, LongList):
    """To see what owners have written. They change it, by the API."""

    list_display = ("name", "owner", "version", "updated_at")
    list_select_related = ("owner",)
    fields = (("name", "owner"), ("version", "updated_at"), "subject", "preview")
    search_fields = ("name__startswith", "owner__email__exact")
    search_help_text = "How the name begins, or the owner's address"
    inlines = (VersionInline,)

    @admin.display
    def subject(self, template: MailTemplate) -> str:
        return _newest(template).subject

    @admin.display(description="preview, not filled in")
    def preview(self, template: MailTemplate) -> SafeString:
        said = _newest(template)
        return framed(said.html_body[:SHOWN]) if said.html_body else preformatted(said.body[:SHOWN])


def _newest(template: MailTemplate) -> TemplateVersion:
    return template.versions.get(number=template.version)


def _label(choice: Status | Outcome) -> SafeString:
    return SafeString(display_for_label(choice.label, "", COLOURS))


def _in_a_line(text: str) -> SafeString:
    return format_html('<span class="whitespace-nowrap">{}</span>', text)


def _raw(task: MailTask) -> bytes:
    """Nothing once the content has been pruned, nor of what is for the recipient's eyes alone."""
    content = getattr(task, "content", None)
    return bytes(content.raw) if content and not OneTime.objects.filter(task=task).exists() else b""


def _body(task: MailTask, subtype: str) -> str:
    """Reads what tasks/message.py built."""
    mail = message_from_bytes(_raw(task), policy=policy.default)
    part = mail.get_body((cast("Any", subtype),))
    return str(part.get_content()) if part else ""


def _shown(text: str) -> SafeString:
    return preformatted(text.replace("\r\n", "\n")[:SHOWN] or "—")


#: Nothing in somebody's HTML may run or load anything here: a frame without rights, with a policy of its own.
_FRAME = (
    '<iframe sandbox="" title="Preview" referrerpolicy="no-referrer" srcdoc="{}" '
    'style="width: 100%; height: 24rem; border: 0; border-radius: 6px; background: white; color-scheme: light">'
    "</iframe>"
)
_NOTHING_LOADS = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
    "<style>body { font-family: system-ui, sans-serif }</style>"
)


def framed(html: str) -> SafeString:
    """As a mail program would show it."""
    return format_html(_FRAME, f"{_NOTHING_LOADS}{html}")


def preformatted(text: str) -> SafeString:
    """As it was written, in lines that fit the page."""
    style = "overflow-wrap: anywhere; white-space: pre-wrap"
    return format_html('<pre class="font-mono text-sm" style="{}">{}</pre>', style, text)
