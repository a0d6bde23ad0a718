"""`manage.py restore FOLDER --hold`: fills an empty database from a backup and makes it ready; docs/data.md."""

from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.core.management.base import CommandError, CommandParser

from mailqueue import backup
from mailqueue.management.restoring import RestoringCommand


class Command(RestoringCommand):
    help = "Fills an empty database from a backup, compares it, migrates it, and makes it ready for workers."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("folder", type=Path)
        parser.add_argument("--jobs", type=int, default=1, help="tables at a time")
        super().add_arguments(parser)

    def handle(
        self, *_args: Any, folder: Path, jobs: int, hold: bool, skip_ids: int, **_options: Any
    ) -> None:
        try:
            sheet = backup.load(folder, jobs)
        except backup.BackupError as error:
            raise CommandError(str(error)) from error
        rows = sum(sheet["rows"].values())
        self.stdout.write(
            f"{rows:,} rows are back, as they were at {sheet['made_at']}; every count is the same"
        )
        call_command("migrate", interactive=False, verbosity=0)
        self.prepare(hold=hold, skip_ids=skip_ids)
