"""Seals every SMTP password again with the newest of CREDENTIAL_KEYS; afterwards the older ones can go."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts.models import SmtpAccount
from accounts.sealing import UnreadableSecretError, reseal


class Command(BaseCommand):
    help = "Seals every SMTP password again with the newest of CREDENTIAL_KEYS."

    def handle(self, *_args: Any, **_options: Any) -> None:
        rotated, unreadable = 0, []
        sealed = SmtpAccount.objects.exclude(sealed_password="")
        for owner, old in sealed.values_list("pk", "sealed_password").iterator():
            try:
                fresh = reseal(old)
            except UnreadableSecretError:
                unreadable.append(owner)
                continue
            # Naming the old value: a password that its user changed meanwhile is newer than ours.
            rotated += SmtpAccount.objects.filter(pk=owner, sealed_password=old).update(sealed_password=fresh)
        self.stdout.write(f"{rotated} passwords are sealed with the newest key.")
        if unreadable:
            users = ", ".join(map(str, unreadable))
            raise CommandError(
                f"None of CREDENTIAL_KEYS opens the passwords of users {users}. Keep the old keys."
            )
