"""What `restore` and `after_restore` have in common."""

from django.core.management.base import BaseCommand, CommandError, CommandParser

from mailqueue import restored


class RestoringCommand(BaseCommand):
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument(
            "--hold",
            action="store_true",
            help="what was due and may have been sent since becomes uncertain, for people to decide",
        )
        what.add_argument(
            "--send", action="store_true", help="it is sent, some of it perhaps for the second time"
        )
        parser.add_argument(
            "--skip-ids",
            type=int,
            default=restored.SKIP,
            help="ids that may have been given since, in each table (default %(default)s)",
        )

    def prepare(self, *, hold: bool, skip_ids: int) -> None:
        """Makes the database ready for work; CommandError if the secrets in it cannot be opened."""
        restored.skip_ids(skip_ids)
        at_stake = restored.at_stake()
        if hold:
            self.stdout.write(
                f"{restored.hold():,} mails are held as uncertain: they may have been sent since"
            )
        else:
            self.stdout.write(
                f"{at_stake:,} mails are sent when workers start, some perhaps for the second time"
            )
        restored.recount()
        self.stdout.write("What was accepted since is not in it: whoever sent it must send it again.")
        if closed := restored.unreadable():
            what = ", ".join(f"{count:,} of {name}" for name, count in closed.items())
            raise CommandError(
                f"None of CREDENTIAL_KEYS opens {what}. All else is done: set the keys that it was sealed with, "
                "and run after_restore again, before workers start."
            )
        self.stdout.write("CREDENTIAL_KEYS open every secret in it. Workers may start.")
