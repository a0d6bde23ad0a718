"""The inbox as JSON, for scripts and tests."""

from typing import Any

from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_safe

from mailqueue.sandbox.models import SandboxMail
from mailqueue.sandbox.reading import Reading
from mailqueue.sandbox.views import number_in

MOST = 1_000


@require_safe
def messages(request: HttpRequest) -> JsonResponse:
    """Newest first: `?recipient=` exactly, `?q=` in recipient or subject, `?before=` an id, `?limit=` to 1,000."""
    mails = SandboxMail.objects.newest()
    if recipient := request.GET.get("recipient"):
        mails = mails.to(recipient)
    if words := request.GET.get("q"):
        mails = mails.matching(words)
    if before := number_in(request, "before"):
        mails = mails.filter(id__lt=before)
    limit = min(number_in(request, "limit") or 100, MOST)
    return JsonResponse([_envelope(mail) for mail in mails[:limit]], safe=False)


@require_safe
def message(_request: HttpRequest, pk: int) -> JsonResponse:
    """One mail, read. A header that comes more than once has its values on lines of their own."""
    mail = get_object_or_404(SandboxMail, pk=pk)
    reading = Reading(bytes(mail.raw))
    headers: dict[str, str] = {}
    for name, value in reading.headers:
        headers[name] = f"{headers[name]}\n{value}" if name in headers else value
    attachments = [
        {
            "filename": each.filename,
            "content_type": each.content_type,
            "size": each.size,
            "url": reverse("sandbox:attachment", args=[pk, number]),
        }
        for number, each in enumerate(reading.attachments)
    ]
    return JsonResponse(
        _envelope(mail)
        | {"headers": headers, "text": reading.text, "html": reading.html, "attachments": attachments}
    )


def _envelope(mail: SandboxMail) -> dict[str, Any]:
    return {
        "id": mail.pk,
        "from": mail.sender,
        "to": mail.recipients,
        "subject": mail.subject,
        "received_at": mail.received_at,
        "size": mail.size,
    }
