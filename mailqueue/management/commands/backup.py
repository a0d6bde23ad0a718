"""`manage.py backup FOLDER`: a consistent copy of the database, while mail goes on; docs/data.md."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from mailqueue import backup


class Command(BaseCommand):
    requires_system_checks = []
    help = "Writes a consistent copy of the database into a new folder, while mail is accepted and delivered."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("folder", type=Path, help="new; what is unfinished is named .unfinished")
        parser.add_argument("--jobs", type=int, default=1, help="tables at a time")

    def handle(self, *_args: Any, folder: Path, jobs: int, **_options: Any) -> None:
        try:
            sheet = backup.dump(folder, jobs)
        except backup.BackupError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(
            f"{sum(sheet['rows'].values()):,} rows of {len(sheet['rows'])} tables are in {folder}"
        )
        for status, count in sheet["mails"].items():
            self.stdout.write(f"  {status}: {count:,}")
        self.stdout.write(
            "Mails stand in it as they are: keep it as safe as the database. Keep elsewhere what opens it again: "
            "CREDENTIAL_KEYS (no SMTP password can be read without them), JWT_SIGNING_KEY and SECRET_KEY."
        )
