"""Makes a database ready: migrations, and the superuser of ADMIN_EMAIL and ADMIN_PASSWORD if missing. Says what is
wrong with the servers' settings, and goes on."""

from typing import Any

from django.conf import settings
from django.core.checks import run_checks
from django.core.management import call_command
from django.core.management.base import BaseCommand

from accounts.models import User
from mailqueue.checks import SERVERS


class Command(BaseCommand):
    requires_system_checks = []  # migrate has its own; these would load the whole web side
    help = "Migrates, and makes the superuser that ADMIN_EMAIL and ADMIN_PASSWORD name if it is missing."

    def handle(self, **options: Any) -> None:
        loudness = options["verbosity"]
        # sixty lines of migrations are for who asks for them: --verbosity 2
        call_command("migrate", interactive=False, verbosity=max(loudness - 1, 0))
        self.stdout.write("the database is up to date")
        for message in run_checks(tags=[SERVERS], include_deployment_checks=True):
            if not message.is_silenced():
                self.stderr.write(str(message))
        email, password = settings.ADMIN_EMAIL.lower(), settings.ADMIN_PASSWORD
        if not (email and password):
            self.stdout.write("no superuser: ADMIN_EMAIL and ADMIN_PASSWORD are not both set")
        elif not User.objects.filter(email=email).exists():
            User.objects.create_superuser(email, password)
            self.stdout.write(f"superuser {email} made")
