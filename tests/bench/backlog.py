"""Backlogs: `python -m tests.bench.backlog BACKLOGS` with the body of the mails on stdin.

BACKLOGS is a JSON list: the owner's email, how many mails, their lane, the relay's port, what else is special
about the SMTP account. Owners that do not exist yet are made. All of it is there at once, in one transaction.
"""

import json
import sys

from django.db import transaction

from tests.bench.fill import fill, sender  # first, for it starts Django

from accounts.models import User  # isort: skip
from tasks.states import Lane  # isort: skip


@transaction.atomic
def main(backlogs: str, body: str) -> None:
    for email, mails, lane, port, account in json.loads(backlogs):
        owner = User.objects.filter(email=email).first() or sender(port, account, email)
        fill(owner, mails, body, Lane[lane.upper()])


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin.read())
