"""Django looks for models here."""

from mailqueue.done import DoneTask
from mailqueue.workers import Worker

__all__ = ["DoneTask", "Worker"]
