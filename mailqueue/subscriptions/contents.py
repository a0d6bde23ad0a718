"""What subscribers are sent: one content for each type, in versions."""

from django.db import IntegrityError, transaction
from django.db.models import F

from accounts.models import User
from mailqueue.subscriptions.models import Content, ContentVersion
from tasks.submission import AccountClosedError

CONTENTS_PER_OWNER = 200


class TooManyContentsError(Exception):
    """The owner has CONTENTS_PER_OWNER of them."""


class TypeTakenError(Exception):
    """The owner has a content of this type."""


class UnknownTypeError(Exception):
    """The owner has no content of this type."""


def make(owner: User, content_type: str, subject: str, content: str) -> ContentVersion:
    """A new content, its version 1."""
    try:
        with transaction.atomic():
            if not User.objects.select_for_update(no_key=True).filter(pk=owner.pk, is_active=True).exists():
                raise AccountClosedError
            if Content.objects.filter(owner=owner).count() >= CONTENTS_PER_OWNER:
                raise TooManyContentsError
            made = Content.objects.create(owner=owner, content_type=content_type)
            return made.versions.create(number=1, subject=subject, content=content)
    except IntegrityError as error:
        raise TypeTakenError from error


def change(owner: User, content_type: str, subject: str, content: str) -> ContentVersion:
    """A new version. Mails that are made from now on say it."""
    try:
        found = Content.objects.get(owner=owner, content_type=content_type)
        made: ContentVersion = found.change({"subject": subject, "content": content})
    except Content.DoesNotExist as error:
        raise UnknownTypeError from error
    return made


def newest(owner_id: int, types: set[str]) -> dict[str, ContentVersion]:
    """What is sent just now, by type."""
    found = ContentVersion.objects.select_related("content_of").filter(
        content_of__owner_id=owner_id, content_of__content_type__in=types, number=F("content_of__version")
    )
    return {each.content_of.content_type: each for each in found}
