"""What a typed task is made of. mailqueue/typed.py has the table of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from drf_spectacular.extensions import OpenApiSerializerFieldExtension
from rest_framework import serializers
from rest_framework.views import APIView

from accounts.api.serializers import Text
from accounts.models import User
from tasks.api.fields import MailAddress, WholeNumber

#: Retries are what follows the first try.
MOST_RETRIES = 20
#: How else a recipient may be called; the first of them that is there is taken.
RECIPIENT = ("userId", "userEmail", "recipient", "recipient_email")


def with_recipient(name: str, data: Any) -> Any:
    """The same, with the recipient by that name."""
    if not isinstance(data, dict) or name in data:
        return data
    other = next((each for each in RECIPIENT if each in data), None)
    return data | {name: data[other]} if other else data


class OneWord(serializers.ChoiceField):
    """Always this; for the schema, which tells types apart by it."""

    def __init__(self, word: str, **kwargs: Any) -> None:
        self.word = word
        super().__init__(choices=[word], **kwargs)


class OneWordSchema(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    target_class = OneWord

    def map_serializer_field(self, _auto_schema: Any, _direction: Any) -> dict[str, Any]:
        return {"type": "string", "const": self.target.word}


class ToSomebody(serializers.Serializer[Any]):
    """A payload that goes to one person."""

    userId = MailAddress(  # noqa: N815 -- the contract's spelling, as elsewhere here
        max_length=254, help_text="the e-mail address of the recipient"
    )

    def to_internal_value(self, data: Any) -> Any:
        return super().to_internal_value(with_recipient("userId", data))


class TypedTask(serializers.Serializer[Any]):
    """What all types have; each says which `type` it is, and has a `payload` of its own."""

    task = Text(
        max_length=200, required=False, allow_blank=True, help_text="what you call it; shown in `metadata`"
    )
    retries = WholeNumber(
        min_value=0,
        max_value=MOST_RETRIES,
        required=False,
        help_text="tries after the first one; the service's number if left out",
    )


class Done(NamedTuple):
    """What became of a typed task: its id, and a sentence for people; and of the subscription that it was about."""

    task_id: int
    message: str
    subscription_id: int | None = None


#: Does what a valid task asks for. The view is for what is put on its answer, such as limits.
Verb = Callable[[APIView, User, dict[str, Any]], Done]


class Kind(NamedTuple):
    """One type of task: its shape, and its deed."""

    serializer: type[TypedTask]
    verb: Verb
    #: How many mails it makes, for the quota; one that makes none is about a subscription, and done at once.
    mails: int = 1


def max_tries(asked: dict[str, Any]) -> int | None:
    """Tries of a mail; None means the service's."""
    return asked["retries"] + 1 if "retries" in asked else None


def metadata(asked: dict[str, Any]) -> dict[str, str]:
    """By what the mail is known again in its task."""
    named = {"task": asked["task"]} if asked.get("task") else {}
    return {**named, "type": asked["type"]}
