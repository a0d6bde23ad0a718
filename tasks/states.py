"""The states of a mail task, and which may follow which. docs/lifecycle.md draws this table."""

from django.db import models


class Status(models.IntegerChoices):
    """Stored as small integers in this order; the words are the API's."""

    #: Due now, or as soon as a worker is free. A crash leaves it queued.
    QUEUED = 0, "queued"
    #: A worker holds it by lease and claim token. A crash leaves the lease; rescue moves it after that.
    PROCESSING = 1, "processing"
    #: The relay answered 250 to the final dot. Final.
    SUCCESS = 2, "success"
    #: An attempt failed for now; due again at `due_at`. A crash leaves it failed, and due.
    FAILED = 3, "failed"
    #: Will not be sent; `cancel_reason` says why. Final until a person retries.
    CANCELLED = 4, "cancelled"
    #: Due at `scheduled_at`. Nobody needs to move it first.
    SCHEDULED = 5, "scheduled"
    #: The connection died after the final dot and the policy is to hold, or the database was restored and the mail
    #: may have been sent since its backup. A person decides.
    UNCERTAIN = 6, "uncertain"


class CancelReason(models.IntegerChoices):
    EXHAUSTED = 0, "exhausted"  # the last try failed
    REJECTED = 1, "rejected"  # the relay refused for good
    SUPPRESSED = 2, "suppressed"  # the recipient is on the owner's suppression list
    EXPIRED = 3, "expired"  # `expires_at` passed first
    USER = 4, "user"  # a person cancelled it
    ACCOUNT_CLOSED = 5, "account_closed"


class Lane(models.IntegerChoices):
    OTP = 0, "otp"
    DEFAULT = 1, "default"
    BULK = 2, "bulk"


class OnUncertain(models.IntegerChoices):
    """What to do when the connection died after the final dot and nobody can know."""

    RETRY = 0, "retry"  # send again with the same Message-ID
    HOLD = 1, "hold"  # stay uncertain until a person decides
    ACCEPT = 2, "accept"  # take it as sent


class PutOff(models.IntegerChoices):
    """Why a mail that was claimed went back unsent, and waits though nothing failed."""

    ACCOUNT_LIMIT = 0, "account_limit"  # its account has sent as much as it may for now
    DOMAIN_LIMIT = 1, "domain_limit"  # so has everybody to this recipient's domain


class Phase(models.IntegerChoices):
    """How far a transaction came; up to DATA and BODY the mail was surely not sent."""

    CONNECT = 0, "connect"
    BANNER = 1, "banner"
    TLS = 2, "tls"
    AUTH = 3, "auth"
    MAIL = 4, "mail"
    RCPT = 5, "rcpt"
    DATA = 6, "data"
    BODY = 7, "body"
    REPLY = 8, "reply"


class Outcome(models.IntegerChoices):
    """What became of one attempt."""

    ACCEPTED = 0, "accepted"
    TEMPORARY = 1, "temporary"
    REJECTED = 2, "rejected"
    UNCERTAIN = 3, "uncertain"
    LOST = 4, "lost"  # its worker died; what became of it is not known


#: Tries of a mail whose last one met a full mailbox (4.2.2): such a box is seldom emptied within a day.
FULL_MAILBOX_TRIES = 3
#: Waiting for its time: claimable as soon as `due_at` has come.
WAITING = (Status.QUEUED, Status.FAILED, Status.SCHEDULED)
FINAL = (Status.SUCCESS, Status.CANCELLED)

TRANSITIONS: dict[Status, tuple[Status, ...]] = {
    Status.SCHEDULED: (Status.PROCESSING, Status.CANCELLED, Status.QUEUED, Status.UNCERTAIN),
    Status.QUEUED: (Status.PROCESSING, Status.CANCELLED, Status.UNCERTAIN),
    Status.PROCESSING: (
        Status.SUCCESS,
        Status.FAILED,
        Status.UNCERTAIN,
        Status.CANCELLED,
        Status.QUEUED,
    ),
    Status.FAILED: (Status.PROCESSING, Status.CANCELLED, Status.QUEUED, Status.UNCERTAIN),
    Status.UNCERTAIN: (Status.QUEUED, Status.SUCCESS),
    Status.CANCELLED: (Status.QUEUED,),
    Status.SUCCESS: (),
}


def may_become(target: Status) -> list[int]:
    """The states from which `target` may be reached, as stored."""
    return [origin.value for origin, targets in TRANSITIONS.items() if target in targets]
