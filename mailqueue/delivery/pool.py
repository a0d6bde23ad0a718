"""Keeps sessions open between mails: a new one costs a relay up to six round trips, a kept one none."""

import time

from django.conf import settings

from mailqueue.delivery.handshake import Relay, open_session
from mailqueue.delivery.smtp import Session

IDLE_SECONDS = 15
LONGEST_SECONDS = 300


class Pool:
    """Idle sessions by relay. How many are open at once is the courier's business."""

    def __init__(self) -> None:
        self._idle: dict[Relay, list[Session]] = {}

    async def take(self, relay: Relay, ends_at: float) -> Session:
        """The session used last, or a new one (SessionError if none can be had, or not until `ends_at`)."""
        idle = self._idle.get(relay, [])
        while idle:
            session = idle.pop()
            if _is_fresh(session):
                return session
            session.quit()
        return await open_session(relay, ends_at)

    def give(self, relay: Relay, session: Session) -> None:
        """Takes a session back, or sees it off when it has served enough."""
        if _is_fresh(session) and session.transactions < settings.WORKER_MAILS_PER_CONNECTION:
            self._idle.setdefault(relay, []).append(session)
        else:
            session.quit()

    def reap(self) -> None:
        """Closes what was idle for too long."""
        for relay, sessions in list(self._idle.items()):
            kept = [session for session in sessions if _is_fresh(session)]
            for session in sessions:
                if session not in kept:
                    session.quit()
            if kept:
                self._idle[relay] = kept
            else:
                del self._idle[relay]

    def close(self) -> None:
        for sessions in self._idle.values():
            for session in sessions:
                session.quit()
        self._idle.clear()


def _is_fresh(session: Session) -> bool:
    now = time.monotonic()
    return (
        session.is_usable
        and now - session.used_at < IDLE_SECONDS
        and now - session.opened_at < LONGEST_SECONDS
    )
