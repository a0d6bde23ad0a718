"""Django looks for models here."""

from mailqueue.workers import Worker

__all__ = ["Worker"]
