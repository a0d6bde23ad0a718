"""The breaker of each SMTP account: what is wrong with the account parks its mail and uses up no try."""

from dataclasses import dataclass
from datetime import timedelta

from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from accounts.models import AccountState, SmtpAccount
from mailqueue.delivery.replies import Answer, Fault, Meaning


@dataclass(frozen=True)
class Pause:
    """The first pause and the longest, in seconds; each fault in a row doubles it."""

    first: float
    longest: float

    def after(self, faults: int) -> float:
        return min(self.first * float(1 << min(faults, 20)), self.longest)


#: A relay that asks for patience.
THROTTLED = Pause(60, 3600)
#: A name server may come back at any time.
UNRESOLVED = Pause(60, 900)
#: Credentials and certificates are mended by people, who close the breaker by new settings or the SMTP test.
BROKEN = Pause(900, 14_400)


@transaction.atomic
def trip(owner_id: int, answer: Answer, meaning: Meaning) -> None:
    """Opens the breaker, unless another mail of the same group has just done so."""
    account = (
        SmtpAccount.objects.select_for_update()
        .filter(Q(paused_until=None) | Q(paused_until__lte=Now()), owner_id=owner_id)
        .first()
    )
    if account is None:
        return
    unresolved = answer.fault is Fault.UNRESOLVED
    pause = THROTTLED if meaning is Meaning.THROTTLED else UNRESOLVED if unresolved else BROKEN
    account.paused_until = timezone.now() + timedelta(seconds=pause.after(account.faults))
    account.faults += 1
    account.reason = str(answer)
    # Settings that were never proven stay unverified while the name does not resolve: nothing is known of them.
    if not (unresolved and account.state == AccountState.UNVERIFIED):
        account.state = AccountState.PAUSED
    account.save(update_fields=["paused_until", "faults", "reason", "state"])


def close(owner_id: int) -> None:
    """The relay has taken a mail, or a login: the account works."""
    SmtpAccount.objects.filter(owner_id=owner_id).update(
        state=AccountState.ACTIVE, reason="", paused_until=None, faults=0
    )
