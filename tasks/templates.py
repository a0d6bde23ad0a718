"""Templates of mails, by owner and name. A change is a new version; the older ones stay to be read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.utils import timezone

from accounts.models import User
from tasks import headers
from tasks.plain_text import text_of
from tasks.template_language import Allowance, TemplateError, compiled, rendered
from tasks.versions import Versioned

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
TEMPLATES_PER_OWNER = 200
#: Characters of each part, as written; and of what a text or HTML part becomes.
LONGEST_PART, LONGEST_RESULT, LONGEST_SUBJECT = 100_000, 2_000_000, 998
PARTS = ("subject", "body", "html_body")


class TooManyTemplatesError(Exception):
    """The owner has as many as may be."""


class NameTakenError(Exception):
    """The owner has one of this name."""


class PartError(Exception):
    """Which part is wrong, and in what way."""

    def __init__(self, part: str, complaint: str, code: str) -> None:
        super().__init__(complaint)
        self.part, self.code = part, code


@dataclass(frozen=True, slots=True)
class Filled:
    """What a template and a context make together."""

    subject: str
    text: str
    html: str


class MailTemplates(models.QuerySet["MailTemplate"]):
    def of(self, owner: User, name: str) -> "MailTemplate | None":
        """By its name, or by its id where none has that for its name."""
        own = self.filter(owner=owner)
        found = own.filter(name=name).first()
        is_id = name.isascii() and name.isdecimal() and len(name) < 19
        return found or (own.filter(pk=int(name)).first() if is_id else None)


class MailTemplate(Versioned):
    """A name, and how many versions it has had."""

    id = models.BigAutoField(primary_key=True)
    owner = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+", db_index=False)
    name = models.CharField(max_length=64)

    objects: ClassVar[MailTemplates] = MailTemplates.as_manager()  # type: ignore[assignment]

    class Meta:
        # GET /templates: an owner's newest.
        indexes = [models.Index("owner", models.F("id").desc(), name="template_newest")]
        constraints = [models.UniqueConstraint(fields=["owner", "name"], name="template_name")]

    def __str__(self) -> str:
        return self.name


class TemplateVersion(models.Model):
    """What a template said from one change to the next. Never changed itself, so what it compiles to can be kept."""

    id = models.BigAutoField(primary_key=True)
    template = models.ForeignKey(
        MailTemplate, on_delete=models.CASCADE, related_name="versions", db_index=False
    )
    number = models.IntegerField()
    subject = models.TextField()
    body = models.TextField(default="")
    html_body = models.TextField(default="")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["template", "number"], name="template_version")]

    def __str__(self) -> str:
        return f"version {self.number}"

    def parts(self) -> dict[str, str]:
        return {part: getattr(self, part) for part in PARTS}

    def fill_in(
        self, context: dict[str, Any], allowance: Allowance, instead: Mapping[str, str] | None = None
    ) -> Filled:
        """PartError says what is wrong, with the template or with what it is given. `instead` has parts that are
        taken as they are, in place of the template's."""
        said = {part: text for part, text in (instead or {}).items() if text}
        subject = said.get("subject") or self._part("subject", context, allowance)
        try:
            headers.refuse_control_characters(subject)
        except ValidationError as error:
            raise PartError("subject", error.messages[0], "control_character") from error
        if not subject.strip() or len(subject) > LONGEST_SUBJECT:
            complaint = f"It must become 1 to {LONGEST_SUBJECT} characters."
            raise PartError("subject", complaint, "template_error")
        html = said.get("html_body") or self._part("html_body", context, allowance)
        text = said.get("body") or self._part("body", context, allowance) or _text(html, allowance)
        return Filled(subject, text, html)

    def _part(self, part: str, context: dict[str, Any], allowance: Allowance) -> str:
        # What is left of a call's allowance, but no more than one mail may take of it.
        own = Allowance(min(allowance.left, _STEPS))
        before = own.left
        try:
            result = rendered(_kept(getattr(self, part)), context, own, is_html=part == "html_body")
        except TemplateError as error:
            raise PartError(part, str(error), "template_error") from error
        finally:
            allowance.left -= before - max(own.left, 0)
        if len(result) > LONGEST_RESULT:
            raise PartError(part, f"It becomes longer than {LONGEST_RESULT:,} characters.", "template_error")
        return result


def _text(html: str, allowance: Allowance) -> str:
    tags = html.count("<")  # each takes as long as a step
    if tags > min(allowance.left, _STEPS):
        raise PartError("html_body", "It has too many tags for a text to be made of it.", "template_error")
    allowance.left -= tags
    return text_of(html)


_STEPS = Allowance().left
_kept: Any = lru_cache(maxsize=64)(compiled)  # some MB each at most


def check(parts: dict[str, str]) -> None:
    """PartError if one of them cannot be compiled."""
    for part in PARTS:
        try:
            compiled(parts.get(part, ""))
        except TemplateError as error:
            raise PartError(part, str(error), "template_error") from error


def make(owner: User, name: str, parts: dict[str, str]) -> TemplateVersion:
    """The first version of a new one; NameTakenError, TooManyTemplatesError."""
    with transaction.atomic():
        # One at a time, so that nobody gets past the limit.
        User.objects.select_for_update().get(pk=owner.pk)
        own = MailTemplate.objects.filter(owner=owner)
        if own.filter(name=name).exists():
            raise NameTakenError
        if own.count() >= TEMPLATES_PER_OWNER:
            raise TooManyTemplatesError
        return own.create(owner=owner, name=name).versions.create(number=1, **parts)
