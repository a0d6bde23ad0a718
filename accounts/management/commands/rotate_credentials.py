"""Seals every secret again with the newest of CREDENTIAL_KEYS; afterwards the older ones can go.

A model that keeps sealed fields names them in SEALED.
"""

from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError
from django.db.models import Model

from accounts.models import SmtpAccount
from accounts.sealing import UnreadableSecretError, reseal


class Command(BaseCommand):
    help = "Seals SMTP passwords and webhook secrets again with the newest of CREDENTIAL_KEYS."

    def handle(self, *_args: Any, **_options: Any) -> None:
        complaints = []
        for model in apps.get_models():
            for field in getattr(model, "SEALED", ()):
                rotated, unreadable = _rotate(model, field)
                what = "passwords" if model is SmtpAccount else f"secrets ({model.__name__}.{field})"
                self.stdout.write(f"{rotated} {what} are sealed with the newest key.")
                if unreadable:
                    of = "users" if model is SmtpAccount else "rows"
                    complaints.append(f"{what} of {of} {', '.join(map(str, unreadable))}")
        if complaints:
            raise CommandError(
                f"None of CREDENTIAL_KEYS opens the {'; the '.join(complaints)}. Keep the old keys."
            )


def _rotate(model: type[Model], field: str) -> tuple[int, list[int]]:
    """How many are sealed anew, and the keys of rows that cannot be read."""
    rotated, unreadable = 0, []
    rows = model._default_manager.all()  # noqa: SLF001 -- Django's public name for it
    for pk, old in rows.exclude(**{field: ""}).values_list("pk", field).iterator():
        try:
            fresh = reseal(old)
        except UnreadableSecretError:
            unreadable.append(pk)
            continue
        # Naming the old value: a secret that was changed meanwhile is newer than ours.
        rotated += rows.filter(pk=pk, **{field: old}).update(**{field: fresh})
    return rotated, unreadable
