"""Makes a database ready: migrations, and the superuser of ADMIN_EMAIL and ADMIN_PASSWORD if missing."""

from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand
from environs import FileAwareEnv

from accounts.models import User


class Command(BaseCommand):
    requires_system_checks = []  # migrate has its own; these would load the whole web side
    help = "Migrates, and makes the superuser that ADMIN_EMAIL and ADMIN_PASSWORD name if it is missing."

    def handle(self, **options: Any) -> None:
        loudness = options["verbosity"]
        # sixty lines of migrations are for who asks for them: --verbosity 2
        call_command("migrate", interactive=False, verbosity=max(loudness - 1, 0))
        self.stdout.write("the database is up to date")
        env = FileAwareEnv(strip_whitespace=True)
        email, password = env.str("ADMIN_EMAIL", "").lower(), env.str("ADMIN_PASSWORD", "")
        if not (email and password):
            self.stdout.write("no superuser: ADMIN_EMAIL and ADMIN_PASSWORD are not both set")
        elif not User.objects.filter(email=email).exists():
            User.objects.create_superuser(email, password)
            self.stdout.write(f"superuser {email} made")
