"""Runs the sandbox's SMTP server until it is told to stop."""

import logging
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from mailqueue.sandbox import server


class Command(BaseCommand):
    requires_system_checks = []  # they would load the whole web side
    help = "Takes mail for anyone by SMTP, so that it can be read at /sandbox/."

    def handle(self, **_: Any) -> None:
        host, port = settings.SANDBOX_SMTP_HOST, settings.SANDBOX_SMTP_PORT
        # aiosmtpd tells every command of every session.
        logging.getLogger("mail.log").setLevel(logging.ERROR)
        try:
            server.run(host, port, lambda: self.stdout.write(f"taking mail at {host}:{port}"))
        except OSError as error:
            raise CommandError(f"Cannot listen on {host}:{port} (SANDBOX_SMTP_PORT): {error}") from error
