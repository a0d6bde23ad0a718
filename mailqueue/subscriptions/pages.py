"""The page at which a recipient unsubscribes (RFC 8058). To look at it changes nothing, for programs that look for
bad links open all of them; to post to it does, without a login, a cookie or a question."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

from mailqueue.subscriptions import deeds, links
from mailqueue.subscriptions.models import State, Subscription

#: form-action covers the button; nothing is loaded, and nobody may frame it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"


@csrf_exempt  # the token in the address is the proof, and a mail program has no cookie
@require_http_methods(["GET", "HEAD", "POST"])
def unsubscribe(request: HttpRequest, token: str) -> HttpResponse:
    pk = links.subscription_of(token)
    found = Subscription.objects.select_related("owner__smtp").filter(pk=pk).first() if pk else None
    if found is None:
        return _page(request, {"state": "unknown"}, 404)
    if request.method == "POST":
        deeds.end(Subscription.objects.filter(pk=found.pk))
    has_ended = request.method == "POST" or found.state == State.ENDED
    sender = found.owner.smtp.from_email
    shown = {"state": "ended" if has_ended else "asks", "what": found.content_type, "sender": sender}
    return _page(request, shown, 200)


def _page(request: HttpRequest, shown: dict[str, str], status: int) -> HttpResponse:
    response = render(request, "subscriptions/unsubscribe.html", shown, status=status)
    response["Content-Security-Policy"] = _POLICY
    # The address of this page is as good as a signature.
    response["Referrer-Policy"] = "no-referrer"
    response["Cache-Control"] = "no-store"
    response["X-Robots-Tag"] = "noindex"
    return response
