"""kill -9 at random moments of a run: all that was accepted arrives, and only what was in doubt goes twice.

The full size: CHAOS_SCALE=1 make test ARGS=tests/acceptance/test_kill_at_random.py
Each run prints its table; with the seed in it as CHAOS_SEED the dice fall the same way again.
"""

import os
import random
import sys
from pathlib import Path

import pytest

from tests.chaos import kills
from tests.chaos.sink import running_sink
from tests.machine import Machine, own_database

SCALE = float(os.environ.get("CHAOS_SCALE", "0.05"))
SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
MAILS = round(20_000 * SCALE)
KILLS = max(3, round(10 * SCALE))
CONNECTIONS = 25
#: Leases that outlast the run: whatever is settled after a kill is settled by the journal.
SETTINGS = {"MAIL_LEASE_SECONDS": "3600", "MAIL_RETRY_SCHEDULE": "1"}


@pytest.mark.timeout(300 + 1200 * SCALE)
def test_all_that_was_accepted_arrives_and_twice_only_what_was_between_dot_and_reply(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        own_database() as database,
        running_sink(tmp_path, longest_delay=0.1) as sink,
        Machine(database, tmp_path, **SETTINGS) as machine,
    ):
        machine.start_web()
        machine.start_upkeep()
        machine.start_beat()
        sender = machine.user(sink.port)
        sender.change(max_connections=CONNECTIONS)
        accepted = kills.fill(sender, MAILS)
        run = kills.run(machine, sink, accepted, KILLS, SEED)
    with capsys.disabled():
        sys.stdout.write(f"\n{run.table()}\n")
    assert len(run.accepted) == MAILS
    assert run.lost == set()
    assert set(run.arrivals) == run.accepted
    assert run.statuses == {2: MAILS}
    # Each kill makes a mail go once more at most, and only a mail that it caught between dot and reply.
    assert {pk: count for pk, count in run.arrivals.items() if count - 1 > run.in_doubt[pk]} == {}
    # At most one on each connection, whatever the journals say: what they forgot would look like doubt.
    assert max(len(kill.in_doubt) for kill in run.kills) <= 2 * CONNECTIONS
    assert run.in_doubt, "nobody was between dot and reply: the test has missed its moments"
