"""The breaker of each SMTP account: what is wrong with the account parks its mail and uses up no try.

What a worker reports is about the relay it used. If the account has another one by now, it changes nothing: a mail
that was in flight when the settings were mended must not pause the account again, nor vouch for it.
"""

from dataclasses import dataclass
from datetime import timedelta

from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from accounts.models import AccountChange, AccountState, SmtpAccount
from mailqueue.delivery.handshake import Relay
from mailqueue.delivery.replies import Answer, Fault, Meaning
from mailqueue.delivery.routes import relay_of
from tasks.states import Phase


@dataclass(frozen=True)
class Pause:
    """The first pause and the longest, in seconds; each fault in a row doubles it."""

    first: float
    longest: float

    def after(self, faults: int) -> float:
        return min(self.first * float(1 << min(faults, 20)), self.longest)


#: A relay that asks for patience.
THROTTLED = Pause(60, 3600)
#: A name server or a relay that is away may come back at any time.
AWAY = Pause(60, 900)
#: Credentials and certificates are mended by people, who close the breaker by new settings or the SMTP test.
BROKEN = Pause(900, 14_400)
#: So many connections in a row must fail before the relay, not the mail, is taken to be at fault.
MOST_MISSED = 5

_NO_CONNECTION = {Fault.UNREACHABLE, Fault.LOST, Fault.TIMEOUT, Fault.GARBAGE}


def concerns(answer: Answer, meaning: Meaning) -> bool:
    """Whether it says something against the account, and `trip` has to be told."""
    return meaning in (Meaning.ACCOUNT, Meaning.THROTTLED) or _is_missed(answer)


def _is_missed(answer: Answer) -> bool:
    """A connection that could not be had, or did not hold until the final dot."""
    return answer.fault in _NO_CONNECTION and answer.phase < Phase.REPLY


@transaction.atomic
def trip(owner_id: int, relay: Relay | None, answer: Answer, meaning: Meaning) -> bool:
    """Opens the breaker, or counts a failed connection towards that; whether the mail has to wait with its
    account and keeps its try."""
    account = SmtpAccount.objects.select_for_update().get(owner_id=owner_id)
    if relay_of(account) != relay or _is_open(account):
        return True
    is_missed = _is_missed(answer)
    # A probe is tried once, whatever is wrong now.
    if is_missed and account.paused_until is None:
        account.missed += 1
        if account.missed < MOST_MISSED:
            account.save(update_fields=["missed"])
            return False
    unresolved = answer.fault is Fault.UNRESOLVED
    pause = THROTTLED if meaning is Meaning.THROTTLED else AWAY if is_missed or unresolved else BROKEN
    account.paused_until = timezone.now() + timedelta(seconds=pause.after(account.faults))
    account.faults += 1
    account.reason = str(answer)
    # Settings that were never proven stay unverified while the name does not resolve: nothing is known of them.
    if not (unresolved and account.state == AccountState.UNVERIFIED):
        account.state = AccountState.PAUSED
    account.save(update_fields=SmtpAccount.REOPENED)
    account.note(AccountChange.PAUSED, account.reason, account.paused_until)
    return True


def _is_open(account: SmtpAccount) -> bool:
    """By the database's clock, which the claim goes by."""
    return SmtpAccount.objects.filter(pk=account.pk, paused_until__gt=Now()).exists()


@transaction.atomic
def close(owner_id: int, relay: Relay | None, why: str) -> None:
    """The relay has taken a mail, or a login: the account works."""
    account = SmtpAccount.objects.select_for_update().get(owner_id=owner_id)
    if relay_of(account) != relay:
        return
    account.reopen(why, AccountState.ACTIVE).save(update_fields=SmtpAccount.REOPENED)


def answered(owner_id: int) -> None:
    """The relay said something, if only no: the failed connections are not in a row any more."""
    SmtpAccount.objects.filter(owner_id=owner_id).update(missed=0)
