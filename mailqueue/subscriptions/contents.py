"""What subscribers are sent: one content for each type, in versions."""

from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils import timezone

from accounts.models import User
from mailqueue.subscriptions.models import Content, ContentVersion
from tasks.submission import AccountClosedError

CONTENTS_PER_OWNER, VERSIONS_KEPT = 200, 50


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


@transaction.atomic
def change(owner: User, content_type: str, subject: str, content: str) -> ContentVersion:
    """A new version; of the old ones the last VERSIONS_KEPT stay. Mails that are made from now on say it."""
    found = Content.objects.select_for_update().filter(owner=owner, content_type=content_type).first()
    if found is None:
        raise UnknownTypeError
    found.version += 1
    found.updated_at = timezone.now()
    found.save(update_fields=["version", "updated_at"])
    found.versions.filter(number__lte=found.version - VERSIONS_KEPT).delete()
    return found.versions.create(number=found.version, subject=subject, content=content)


def newest(owner_id: int, types: set[str]) -> dict[str, ContentVersion]:
    """What is sent just now, by type."""
    found = ContentVersion.objects.select_related("content_of").filter(
        content_of__owner_id=owner_id, content_of__content_type__in=types, number=F("content_of__version")
    )
    return {each.content_of.content_type: each for each in found}
