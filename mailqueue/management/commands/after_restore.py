"""`manage.py after_restore --hold`: the second half of `restore`, for a database that was set back in another way."""

from typing import Any

from mailqueue.management.restoring import RestoringCommand


class Command(RestoringCommand):
    help = "Makes a database ready for workers that was set back to a snapshot or a point in time."

    def handle(self, *_args: Any, hold: bool, skip_ids: int, **_options: Any) -> None:
        self.prepare(hold=hold, skip_ids=skip_ids)
