"""Workers, people and upkeep at the ledger all at once: whoever wins, the narrow tables say what the mails say."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.utils import timezone

from accounts.models import User
from tasks import ledger, submission
from tasks.ledger import Claimed, Settlement
from tasks.models import Claim, Due, MailTask, MailTaskQuerySet
from tasks.states import WAITING, CancelReason, Lane, OnUncertain, Outcome, Status
from tests.factories import UserFactory, end_leases

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["accounts", "tasks", "mailqueue"])
ROUNDS = 60


def ends(mail: Claimed) -> list[Settlement]:
    """Whatever may become of a mail."""
    pk, token = mail.id, mail.token
    return [
        Settlement(pk, token, Status.SUCCESS, outcome=Outcome.ACCEPTED),
        Settlement(pk, token, Status.FAILED, wait=0.0, give_back=True, outcome=Outcome.TEMPORARY),
        Settlement(
            pk, token, Status.CANCELLED, cancel_reason=CancelReason.REJECTED, outcome=Outcome.REJECTED
        ),
        Settlement(pk, token, Status.UNCERTAIN, outcome=Outcome.UNCERTAIN),
        Settlement(pk, token, Status.QUEUED, give_back=True),
    ]


def put_off_a_little(mails: MailTaskQuerySet) -> int:
    return submission.reschedule(mails, timezone.now() + timedelta(seconds=0.2))


class Crowd:
    """Each method is one turn of somebody."""

    def __init__(self, owners: list[User]) -> None:
        self.owners = owners

    def enter(self, dice: random.Random) -> None:
        for _ in range(5):
            owner = dice.choice(self.owners)
            mail = submission.NewMail(
                "jane@example.com",
                "hello",
                "Hello.",
                lane=dice.choice(list(Lane)),
                on_uncertain=dice.choice(list(OnUncertain)),
                scheduled_at=dice.choice([None, timezone.now() + timedelta(seconds=0.2)]),
            )
            assert submission._enter(owner, mail, owner.smtp.from_email, "")

    def work(self, dice: random.Random) -> None:
        token = uuid4()
        mails = ledger.claim(dice.choice([5, 50]), dice.choice([0.0, 60.0]), token=token, room=20)
        dice.shuffle(mails)
        if dice.random() < 0.1:
            return  # it died
        while mails:
            part = [mails.pop() for _ in range(min(len(mails), dice.randint(1, 20)))]
            ledger.settle([dice.choice(ends(mail)) for mail in part], "worker:1")
            ledger.renew([token], 60)

    def decide(self, dice: random.Random) -> None:
        ids = list(MailTask.objects.order_by("-id").values_list("id", flat=True)[:50])
        deed = dice.choice(
            [submission.cancel, submission.retry, submission.accept, submission.send_again, put_off_a_little]
        )
        deed(MailTask.objects.filter(id__in=dice.sample(ids, len(ids) // 2)))

    def keep_up(self, _dice: random.Random) -> None:
        ledger.rescue()
        ledger.expire()
        ledger.is_anything_due()


def turns(deed: Callable[[random.Random], None], seed: int) -> None:
    dice = random.Random(seed)
    try:
        for _ in range(ROUNDS):
            deed(dice)
    finally:
        connection.close()


def test_whoever_wins_each_mail_that_waits_has_one_ticket_and_nothing_stays_held() -> None:
    crowd = Crowd(UserFactory.create_batch(3))
    deeds = [crowd.enter, crowd.enter, crowd.work, crowd.work, crowd.work, crowd.decide, crowd.decide]
    deeds += [crowd.keep_up, crowd.keep_up]
    with ThreadPoolExecutor(len(deeds)) as pool:
        for turn in [pool.submit(turns, deed, seed) for seed, deed in enumerate(deeds)]:
            turn.result()
    end_leases()
    while ledger.rescue():
        pass
    assert not MailTask.objects.filter(status=Status.PROCESSING).exists()
    assert not Claim.objects.exists()
    told = ("id", "owner", "lane", "due_at", "expires_at")
    waiting = MailTask.objects.filter(status__in=WAITING).values_list(*told)
    assert set(waiting) == set(Due.objects.values_list("task", *told[1:]))
    assert waiting


#: As if a worker had come back with a doubt about what is taken as sent; it waits for nobody.
DOUBT = f"""
UPDATE tasks_mailtask SET status = {Status.UNCERTAIN:d}, is_uncertain = true, finished_at = NULL WHERE id IN (
    SELECT id FROM tasks_mailtask WHERE status = {Status.SUCCESS:d} FOR UPDATE SKIP LOCKED)
"""


def test_those_who_decide_on_the_same_mails_at_once_do_not_wait_for_each_other_for_ever() -> None:
    owner = UserFactory()
    mails = [submission.NewMail(f"jane{number}@example.com", "hello", "Hello.") for number in range(300)]
    ids = [pk for pk, _ in submission.submit_many(owner, mails)]
    ledger.settle(
        [
            Settlement(one.id, one.token, Status.UNCERTAIN)
            for one in ledger.claim(100, 60, token=uuid4(), room=100)
        ],
        "worker:1",
    )
    deeds = [submission.cancel, submission.retry, submission.accept, submission.send_again, put_off_a_little]

    def decide(dice: random.Random) -> None:
        dice.choice(deeds)(MailTask.objects.filter(id__in=dice.sample(ids, 150)))  # a deadlock raises
        if dice.random() < 0.2:
            with connection.cursor() as cursor:
                cursor.execute(DOUBT)

    with ThreadPoolExecutor(6) as pool:
        for turn in [pool.submit(turns, decide, seed) for seed in range(6)]:
            turn.result()
    told = ("id", "owner", "lane", "due_at", "expires_at")
    waiting = MailTask.objects.filter(status__in=WAITING).values_list(*told)
    assert set(waiting) == set(Due.objects.values_list("task", *told[1:]))
