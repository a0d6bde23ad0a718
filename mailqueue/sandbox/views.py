"""The inbox's pages. Nothing in a mail may run or load anything: not here, and not in its frame."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.http import content_disposition_header
from django.views.decorators.clickjacking import xframe_options_sameorigin
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_POST, require_safe

from mailqueue.sandbox.models import KEEP, SandboxMail
from mailqueue.sandbox.reading import Reading

A_PAGE = 50
#: What a browser shows well; the rest is in the downloaded source.
SHOWN_CHARACTERS = 300_000

#: frame-src holds the mail's frame to our own address, wherever its links lead.
PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
MAIL_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)

P = ParamSpec("P")


def with_policy(policy: str) -> Callable[[Callable[P, HttpResponse]], Callable[P, HttpResponse]]:
    def decorate(view: Callable[P, HttpResponse]) -> Callable[P, HttpResponse]:
        @wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> HttpResponse:
            response = view(*args, **kwargs)
            response["Content-Security-Policy"] = policy
            response["X-Content-Type-Options"] = "nosniff"
            response["Referrer-Policy"] = "no-referrer"
            return response

        return guarded

    return decorate


def number_in(request: HttpRequest, name: str) -> int:
    """A positive number from the query string; 0 for anything else."""
    value = request.GET.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else 0


@require_safe
@ensure_csrf_cookie
@with_policy(PAGE_POLICY)
def inbox(request: HttpRequest) -> HttpResponse:
    words, before = request.GET.get("q", "").strip(), number_in(request, "before")
    mails = SandboxMail.objects.newest()
    if words:
        mails = mails.matching(words)
    if before:
        mails = mails.filter(id__lt=before)
    page = list(mails[: A_PAGE + 1])
    return render(
        request,
        "sandbox/inbox.html",
        {
            "mails": page[:A_PAGE],
            "older": page[A_PAGE - 1].pk if len(page) > A_PAGE else None,
            "words": words,
            "before": before,
            "newest": _newest_id(),
            "count": SandboxMail.objects.count(),
            "keep": KEEP,
            "port": settings.SANDBOX_SMTP_PORT,
        },
    )


@require_safe
@with_policy(PAGE_POLICY)
def newest(_request: HttpRequest) -> HttpResponse:
    """What an open list asks every few seconds; one step on the primary key."""
    return JsonResponse({"newest": _newest_id()})


@require_POST
@with_policy(PAGE_POLICY)
def delete_all(_request: HttpRequest) -> HttpResponse:
    SandboxMail.objects.all().delete()
    return redirect("sandbox:inbox")


@require_safe
@with_policy(PAGE_POLICY)
def mail(request: HttpRequest, pk: int) -> HttpResponse:
    found = get_object_or_404(SandboxMail, pk=pk)
    reading = Reading(bytes(found.raw))
    views = [name for name in ("html", "text") if getattr(reading, name) is not None] + ["source", "headers"]
    view = request.GET.get("view", "")
    others = SandboxMail.objects.order_by("id").values_list("id", flat=True)
    return render(
        request,
        "sandbox/mail.html",
        {
            "mail": found,
            "reading": reading,
            "views": views,
            "view": view if view in views else views[0],
            "text": (reading.text or "")[:SHOWN_CHARACTERS],
            "source": reading.source[:SHOWN_CHARACTERS],
            "shortened": max(len(reading.text or ""), len(reading.source)) > SHOWN_CHARACTERS,
            "newer": others.filter(id__gt=pk).first(),
            "older": others.filter(id__lt=pk).last(),
        },
    )


@require_safe
@xframe_options_sameorigin
@with_policy(MAIL_POLICY)
def html(_request: HttpRequest, pk: int) -> HttpResponse:
    """The mail's HTML for its frame. Its own charset is forgotten: what is sent is UTF-8, and the header wins."""
    body = Reading(bytes(get_object_or_404(SandboxMail, pk=pk).raw)).html
    if body is None:
        raise Http404
    # A click would leave the frame empty, for nothing may load in it; the links are listed beside it.
    return HttpResponse(f"{body}<style>a {{ pointer-events: none }}</style>")


@require_safe
@with_policy(MAIL_POLICY)
def source(_request: HttpRequest, pk: int) -> HttpResponse:
    return _download(bytes(get_object_or_404(SandboxMail, pk=pk).raw), f"mail-{pk}.eml", "message/rfc822")


@require_safe
@with_policy(MAIL_POLICY)
def attachment(_request: HttpRequest, pk: int, number: int) -> HttpResponse:
    attachments = Reading(bytes(get_object_or_404(SandboxMail, pk=pk).raw)).attachments
    if number >= len(attachments):
        raise Http404
    # Whatever the mail says it is, nobody's browser shall open it here.
    return _download(attachments[number].content, attachments[number].filename, "application/octet-stream")


def _download(content: bytes, filename: str, content_type: str) -> HttpResponse:
    disposition = content_disposition_header(as_attachment=True, filename=filename) or "attachment"
    return HttpResponse(content, content_type=content_type, headers={"Content-Disposition": disposition})


def _newest_id() -> int:
    return SandboxMail.objects.order_by("-id").values_list("id", flat=True).first() or 0
