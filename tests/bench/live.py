"""What live-status streams cost those who hand over mail."""

import resource
import sys

from tests.bench.client import enqueue_all, log_in
from tests.bench.ground import Figures, Ground, Row
from tests.bench.process import NotMeasuredError, last_words, running, wait_until_logged
from tests.bench.service import ROOT, Service

#: Nobody sends here: the mails stay queued, and the streams open.
NOWHERE = 9
CONNECTIONS = 8


class LiveStreams:
    """The sender's own streams: one for all of his mails, which tells of each, the others for one mail."""

    name = "live-streams"
    title = f"1,000 live-status streams open: single enqueue, {CONNECTIONS} connections"
    streams = 1_000
    turns = 5

    def measure(self, ground: Ground) -> Figures:
        _allow_open_files(4 * self.streams)
        mails, log = ground.scaled(500), ground.scratch / "listeners.log"
        service = Service.prepared(ground, NOWHERE, self.streams)
        without = with_streams = 0.0
        with service.web() as port:
            token = log_in(port)
            command = [sys.executable, "-m", "tests.bench.listeners", str(port), token, str(self.streams)]
            for _ in range(self.turns):
                without += enqueue_all(port, token, mails, CONNECTIONS)
                with running(command, log, cwd=ROOT) as listeners:
                    wait_until_logged("open", listeners, log)
                    with_streams += enqueue_all(port, token, mails, CONNECTIONS)
                    if listeners.poll() is not None:
                        raise NotMeasuredError(f"a stream ended meanwhile: {last_words(log)}")
        handed_over = mails * self.turns
        return {
            "enqueues/s": handed_over / with_streams,
            "enqueues/s without": handed_over / without,
            "of its rate": without / with_streams,
        }


def _allow_open_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


LIVE: list[Row] = [LiveStreams()]
