"""`manage.py partition_ledger`: what it would do, and with --apply does it; docs/data.md."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from tasks import partitions
from tasks.partitions import BusyError, CannotPartitionError, Partition

#: While a partition is given its end, mail beyond that is refused: it must be far away.
SMALLEST = 10_000


class Command(BaseCommand):
    help = "Keeps the ledger's wide tables in partitions by ranges of ids. Says what it would do; --apply does it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--apply", action="store_true", help="do it; there is no way back but a restore")
        parser.add_argument(
            "--size", type=int, default=partitions.SIZE, help="mails of one partition (default %(default)s)"
        )

    def handle(self, *_args: Any, apply: bool, size: int, **_options: Any) -> None:
        if size < SMALLEST:
            raise CommandError(f"--size: at least {SMALLEST:,}, and more than is accepted in an hour.")
        if there := partitions.partitions():
            self._list(there)
            if apply:
                raise CommandError("The ledger is partitioned already.")
        elif apply:
            try:
                self._list(partitions.apply(size))
            except (BusyError, CannotPartitionError) as error:
                raise CommandError(str(error)) from error
        else:
            self._plan(size)

    def _plan(self, size: int) -> None:
        planned = partitions.plan(size)
        for table, rows in planned.rows.items():
            self.stdout.write(f"{table}: some {rows:,} rows become the first partition, none is moved")
        self.stdout.write(f"the first ends before id {planned.bound:,}; the next have {size:,} each")
        for obstacle in planned.obstacles:
            self.stdout.write(f"in the way: {obstacle}; drop it first, and make it anew afterwards")
        self.stdout.write("--apply does it, while mail is accepted and delivered")

    def _list(self, there: list[Partition]) -> None:
        newest = partitions.last_id()
        for part in there:
            end = f"{part.end - 1:,}" if part is not there[-1] else "all that follow"
            self.stdout.write(
                f"ids {part.first:,} to {end}{' (now)' if part.first <= newest < part.end else ''}"
            )
