"""`manage.py drain`: delivers what is due without Celery and without a broker."""

import math
import os
import signal
import socket
import threading
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from mailqueue import upkeep
from mailqueue.delivery.courier import Courier
from tasks import doorbell

#: Seconds between two looks at the table, and between two rescues.
LOOK_EVERY, RESCUE_EVERY = 0.5, 30.0
GRACE_SECONDS = 20.0


class Command(BaseCommand):
    help = "Delivers what is due without Celery and without a broker, until it is stopped."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--while-broker-is-away", action="store_true", help="end as soon as the broker answers again"
        )
        parser.add_argument("--seconds", type=float, help="end after this long")

    def handle(self, *args: Any, while_broker_is_away: bool, seconds: float | None, **options: Any) -> None:
        stopped = threading.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: stopped.set())
        parent = os.getppid()
        courier = Courier(f"{socket.gethostname()}:{os.getpid()}").start()
        since_rescue = RESCUE_EVERY
        end = math.inf if seconds is None else time.monotonic() + seconds
        while not stopped.wait(LOOK_EVERY) and time.monotonic() < end and os.getppid() == parent:
            if while_broker_is_away and doorbell.is_there():
                break
            since_rescue += LOOK_EVERY
            if since_rescue >= RESCUE_EVERY:
                courier.aside(upkeep.rescue)
                since_rescue = 0.0
            courier.aside(upkeep.expire)
            courier.drain(5)
        courier.stop(GRACE_SECONDS)
