"""What the mail with a one-time password says: the owner's template of the name `otp`, else the words below."""

from django.conf import settings
from django.db.models import F

from accounts.models import User
from tasks.template_language import Allowance
from tasks.templates import Filled, PartError, TemplateVersion

#: The owner's mail template that takes the place of the built-in one.
TEMPLATE = "otp"

_SUBJECT = "Your one-time password"
_TEXT = """\
Your one-time password:

    {code}

It is good for {valid_for}, and for one use. Do not tell it to anybody.
If you have not asked for it, you need not do anything.
"""
_HTML = """\
<!DOCTYPE html>
<html lang="en">
<body style="margin: 0; padding: 24px; font: 16px/1.5 system-ui, sans-serif; color: #1c1917">
<p>Your one-time password:</p>
<p style="font: bold 32px/1.2 ui-monospace, monospace; letter-spacing: 0.15em">{code}</p>
<p>It is good for {valid_for}, and for one use. Do not tell it to anybody.</p>
<p style="color: #78716c">If you have not asked for it, you need not do anything.</p>
</body>
</html>
"""


def written(owner: User, recipient: str, code: str) -> Filled:
    """PartError says what is wrong with the owner's template; never with the code in it."""
    seconds = settings.OTP_TTL_SECONDS
    valid_for = _counted(seconds // 60, "minute") if seconds % 60 == 0 else _counted(seconds, "second")
    own = TemplateVersion.objects.filter(
        template__owner=owner, template__name=TEMPLATE, number=F("template__version")
    ).first()
    if own is None:
        return Filled(
            _SUBJECT,
            _TEXT.format(code=code, valid_for=valid_for),
            _HTML.format(code=code, valid_for=valid_for),
        )
    context = {
        "code": code,
        "minutes": max(1, seconds // 60),
        "valid_for": valid_for,
        "recipient": recipient,
    }
    try:
        filled = own.fill_in(context, Allowance())
    except PartError as error:
        raise PartError(error.part, str(error).replace(code, "…"), error.code) from None
    if not any(code in part for part in (filled.subject, filled.text, filled.html)):
        raise PartError("body", "It does not say {{ code }}.", "template_error")
    return filled


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
