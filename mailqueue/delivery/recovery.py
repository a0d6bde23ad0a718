"""Settles what dead workers of this host held, as far as their journals know it, without waiting for the lease.

Everything here is fenced by the claim token: what somebody else has settled or rescued meanwhile stays as it is.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from mailqueue.delivery import journal, replies, retry
from mailqueue.delivery.journal import Content
from mailqueue.delivery.replies import Answer, Fault, Meaning
from tasks import ledger
from tasks.ledger import Claimed, Settlement
from tasks.states import Phase

logger = logging.getLogger(__name__)

_CUT_OFF = Answer(Phase.REPLY, text="the worker died before the reply", fault=Fault.LOST)


def recover(path: Path) -> int:
    """Settles the mails of one journal and removes it, unless its process lives; how many.

    If the database fails in between, all of it may be done again."""
    with journal.left_behind(path) as left:
        if left is None:
            return 0
        mails = ledger.held(list(left.content.tokens))
        settlements = list(_conclusions(left.content, mails))
        known = {settlement.id for settlement in settlements}
        # Of a journal from before the machine was started lines may be missing: there the lease decides.
        unsent = [mail for mail in mails if mail.id not in known] if left.content.is_whole else []
        with transaction.atomic():
            count = ledger.take_back(unsent, "The worker died before it was sent.")
            if settlements:
                count += len(ledger.settle(settlements, left.worker))
        left.remove()
    if mails:
        logger.warning("recovered", extra={"dead_worker": left.worker, "count": count, "held": len(mails)})
    return count


def _conclusions(content: Content, mails: Iterable[Claimed]) -> Iterable[Settlement]:
    """Of those that came to their final dot or to an answer before it, as if nothing had happened since."""
    for mail in mails:
        key = mail.id, mail.token
        if key not in content.answers:
            continue
        answer = content.answers[key] or _CUT_OFF
        verdict = replies.read(answer)
        if verdict.meaning in (Meaning.ACCOUNT, Meaning.THROTTLED):
            # Not the mail's fault. If the account is still at fault, its next mail opens the breaker.
            yield ledger.put_back(mail, str(answer))
        else:
            yield retry.conclude(
                mail,
                answer,
                verdict,
                now=timezone.now(),
                schedule=settings.MAIL_RETRY_SCHEDULE,
                duration_ms=0,
            )
