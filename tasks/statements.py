"""The SQL of the ledger, each statement a transaction of its own. Only tasks/ledger.py runs them.

A mail that waits has a row in tasks_due, and the statement that deletes it is the one that moves the mail on: that
row is what claims, cancellations and retries compete for. All lock tasks_due first, then tasks_mailtask, then
tasks_claim.

Each also writes what it has done into tasks_counter_line: `counted`, see tasks/counters.py.
"""

from tasks.counters import DEAD, DELIVERY, SMTP
from tasks.states import CancelReason, Lane, Outcome, Status
from tasks.suppressions import Cause

#: Mails up to this size (bytes) come with the claim. 200 with 10 MB of attachments each would fill the memory.
LARGEST_AT_ONCE = 65_536

_WAITING = f"({Status.QUEUED:d}, {Status.FAILED:d}, {Status.SCHEDULED:d})"
_UNSENT = f"({Status.FAILED:d}, {Status.CANCELLED:d})"
_UNSENT_OR_UNCERTAIN = f"({Status.FAILED:d}, {Status.CANCELLED:d}, {Status.UNCERTAIN:d})"
_FINAL = f"({Status.SUCCESS:d}, {Status.CANCELLED:d})"
#: What a statement tells of what it has moved, to whom it concerns; see tasks/events.py.
_TOLD = """INSERT INTO tasks_event
        (owner_id, task_id, at, status, cancel_reason, outcome, try_count, code, reply, until)"""
_WHEN_SCHEDULED = f"CASE WHEN status = {Status.SCHEDULED:d} THEN due_at END"
_TO_LISTENERS = "JOIN tasks_listener l USING (owner_id) WHERE (l.until IS NULL OR l.until > now())"
#: Of what somebody has moved, no attempt being made.
_MOVED = f"""{_TOLD}
    SELECT owner_id, id, now(), status, cancel_reason, NULL, try_count, NULL, '', {_WHEN_SCHEDULED}
    FROM moved {_TO_LISTENERS}"""

_COUNTED = "INSERT INTO tasks_counter_line (at, mails, was, became)"
#: What a mail in this state counts as, of a row with `status`, `cancel_reason` and `try_count`.
_COUNTS_AS = f"""CASE WHEN {{0}}status = {Status.CANCELLED:d} AND (
        {{0}}cancel_reason IN ({CancelReason.EXHAUSTED:d}, {CancelReason.REJECTED:d})
        OR {{0}}cancel_reason = {CancelReason.EXPIRED:d} AND {{0}}try_count > 0) THEN {DEAD} ELSE {{0}}status END"""
#: Of what was moved out of a waiting state. The statement sees the table as it was before, and nobody can have moved
#: those mails since: the row in tasks_due that it has deleted was there.
_COUNTED_FROM_WAITING = f"""{_COUNTED}
    SELECT now(), count(*), before.status, {_COUNTS_AS.format("moved.")} AS became
    FROM moved JOIN tasks_mailtask before ON before.id = moved.id GROUP BY before.status, became"""


def _bounds(seconds: tuple[float, ...], unit: float = 1) -> str:
    return f"ARRAY[{','.join(f'{one * unit:g}' for one in seconds)}]::float8[]"


# One statement, one commit, for one mail: the owner is looked at once more, for a token outlives a closed account
# by some seconds, and what it sends from may have changed in these. A mail to somebody on the owner's list of
# suppressions comes to its end here, and never waits.
_ENTER = f"""
WITH listed AS MATERIALIZED (
    SELECT EXISTS (SELECT 1 FROM tasks_suppression WHERE owner_id = %(owner_id)s::bigint
        AND address = lower(%(recipient)s::text)) AS is_suppressed
),
task AS (
    INSERT INTO tasks_mailtask (owner_id, status, lane, try_count, max_tries, on_uncertain, lost_count, has_failed,
        is_uncertain, due_at, created_at, moved_at, scheduled_at, expires_at, sender, recipient, subject, message_id,
        last_reply, cancel_reason, finished_at)
    SELECT owner.id, CASE WHEN is_suppressed THEN {Status.CANCELLED:d} ELSE %(status)s::smallint END,
        %(lane)s::smallint, 0, %(max_tries)s::smallint, %(on_uncertain)s::smallint, 0, is_suppressed, false,
        %(due_at)s::timestamptz,
        %(created_at)s::timestamptz, %(created_at)s, %(scheduled_at)s::timestamptz, %(expires_at)s::timestamptz,
        %(sender)s::text, %(recipient)s::text, %(subject)s::text, %(message_id)s::text, '',
        CASE WHEN is_suppressed THEN {CancelReason.SUPPRESSED:d} END,
        CASE WHEN is_suppressed THEN %(created_at)s::timestamptz END
    FROM listed, accounts_user owner JOIN accounts_smtpaccount account ON account.owner_id = owner.id
    WHERE owner.id = %(owner_id)s::bigint AND is_active AND from_email = %(from_email)s::text
    RETURNING id, owner_id, lane, due_at, expires_at, status, cancel_reason
),
told AS (
    {_TOLD}
    SELECT owner_id, id, now(), status, cancel_reason, NULL, 0, NULL, '', {_WHEN_SCHEDULED}
    FROM task {_TO_LISTENERS}
),
counted AS ({_COUNTED} SELECT now(), 1, NULL, status FROM task),
waiting AS (
    INSERT INTO tasks_due (task_id, owner_id, lane, due_at, expires_at)
    SELECT id, owner_id, lane, due_at, expires_at FROM task WHERE status <> {Status.CANCELLED:d}
){{tagged}}
INSERT INTO tasks_mailcontent (task_id, raw, details, request_id)
SELECT id, %(raw)b, %(details)s::jsonb, %(request_id)s::text FROM task
RETURNING task_id, (SELECT is_suppressed FROM listed)
"""
_TAGGED = """,
tagged AS (
    INSERT INTO tasks_tag (task_id, position, owner_id, tag)
    SELECT task.id, tag.position, task.owner_id, tag.tag
    FROM task, unnest(%(tags)s::text[]) WITH ORDINALITY AS tag(tag, position)
)"""
#: Mail without tags does not plan for them.
ENTER, ENTER_TAGGED = _ENTER.format(tagged=""), _ENTER.format(tagged=_TAGGED)
_ONE_TIME = """,
one_time AS (INSERT INTO tasks_onetime (task_id, is_blanked) SELECT id, false FROM task)"""
ENTER_ONE_TIME = _ENTER.format(tagged=_TAGGED + _ONE_TIME)

# A batch: an array for each column. The ids are drawn first, so that each row is known by its place in the arrays.
# Suppressions are looked up mail by mail, and only for an owner who has any.
_ENTER_MANY = f"""
WITH listed AS MATERIALIZED (
    SELECT EXISTS (SELECT 1 FROM tasks_suppression WHERE owner_id = %(owner_id)s::bigint) AS has_any
),
mail AS MATERIALIZED (
    SELECT nextval('tasks_mailtask_id_seq') AS id, owner.id AS owner_id,
        greatest(given.scheduled_at, %(created_at)s::timestamptz) AS due_at,
        CASE WHEN has_any THEN coalesce((SELECT true FROM tasks_suppression s
            WHERE s.owner_id = owner.id AND s.address = lower(given.recipient)), false)
        ELSE false END AS is_suppressed, given.*
    FROM listed, accounts_user owner, unnest(%(statuses)s::smallint[], %(lanes)s::smallint[],
        %(max_tries)s::smallint[], %(on_uncertain)s::smallint[], %(scheduled)s::timestamptz[],
        %(expire)s::timestamptz[], %(recipients)b::text[], %(subjects)b::text[], %(message_ids)b::text[],
        %(raws)b::bytea[], %(details)s::jsonb[])
    WITH ORDINALITY AS given(status, lane, max_tries, on_uncertain, scheduled_at, expires_at, recipient, subject,
        message_id, raw, details, place)
    WHERE owner.id = %(owner_id)s::bigint AND owner.is_active
),
task AS (
    INSERT INTO tasks_mailtask (id, owner_id, status, lane, try_count, max_tries, on_uncertain, lost_count,
        has_failed, is_uncertain, due_at, created_at, moved_at, scheduled_at, expires_at, sender, recipient, subject,
        message_id, last_reply, cancel_reason, finished_at)
    SELECT id, owner_id, CASE WHEN is_suppressed THEN {Status.CANCELLED:d} ELSE status END, lane, 0, max_tries,
        on_uncertain, 0, is_suppressed, false, due_at, %(created_at)s, %(created_at)s, scheduled_at, expires_at,
        %(sender)s::text, recipient, subject, message_id, '',
        CASE WHEN is_suppressed THEN {CancelReason.SUPPRESSED:d} END,
        CASE WHEN is_suppressed THEN %(created_at)s::timestamptz END
    FROM mail RETURNING id, owner_id, due_at, status, cancel_reason
),
told AS (
    {_TOLD}
    SELECT owner_id, id, now(), status, cancel_reason, NULL, 0, NULL, '', {_WHEN_SCHEDULED}
    FROM task {_TO_LISTENERS}
),
counted AS ({_COUNTED} SELECT now(), count(*), NULL, status FROM task GROUP BY status),
waiting AS (
    INSERT INTO tasks_due (task_id, owner_id, lane, due_at, expires_at)
    SELECT id, owner_id, lane, due_at, expires_at FROM mail WHERE NOT is_suppressed
){{tagged}},
content AS (
    INSERT INTO tasks_mailcontent (task_id, raw, details, request_id)
    SELECT id, raw, details, %(request_id)s::text FROM mail
)
SELECT id, is_suppressed FROM mail ORDER BY place
"""
_MANY_TAGGED = """,
tagged AS (
    INSERT INTO tasks_tag (task_id, position, owner_id, tag)
    SELECT mail.id, tag.position, mail.owner_id, tag.tag
    FROM unnest(%(tag_places)s::int[], %(tag_positions)s::smallint[], %(tags)s::text[]) AS tag(place, position, tag)
    JOIN mail USING (place)
)"""
ENTER_MANY, ENTER_MANY_TAGGED = _ENTER_MANY.format(tagged=""), _ENTER_MANY.format(tagged=_MANY_TAGGED)

# A transaction that has taken the key and not ended makes the next one wait here. One that is too old is taken over.
TAKE_KEY = """
WITH patience AS MATERIALIZED (SELECT set_config('lock_timeout', %(patience)s::text, true))
INSERT INTO tasks_idempotencykey AS taken (owner_id, key, fingerprint, created_at, answer)
SELECT %(owner_id)s::bigint, %(key)s::text, %(fingerprint)s::bytea, now(), '' FROM patience
ON CONFLICT (owner_id, key) DO UPDATE
SET fingerprint = excluded.fingerprint, created_at = excluded.created_at, answer = ''
WHERE taken.created_at <= now() - %(kept)s::interval
RETURNING owner_id
"""
KEEP_ANSWER = """
UPDATE tasks_idempotencykey SET answer = %(answer)s::text
WHERE owner_id = %(owner_id)s::bigint AND key = %(key)s::text RETURNING owner_id
"""

# Each lane's owners with their first mail, found by skipping through the index due_claim from one owner to the
# next (a loose index scan), so a million rows of one owner cost one step.
_STEPS = """
WITH RECURSIVE lane(lane, quota) AS (SELECT * FROM unnest(%(lanes)s::smallint[], %(quotas)s::int[])),
step(lane, quota, owner_id, due_at) AS (
    SELECT lane.lane, lane.quota, first.owner_id, first.due_at FROM lane CROSS JOIN LATERAL (
        SELECT owner_id, due_at FROM tasks_due d
        WHERE d.lane = lane.lane AND d.owner_id > %(after)s::bigint ORDER BY owner_id, due_at LIMIT 1) first
    UNION ALL
    SELECT step.lane, step.quota, next.owner_id, next.due_at FROM step CROSS JOIN LATERAL (
        SELECT owner_id, due_at FROM tasks_due d
        WHERE d.lane = step.lane AND d.owner_id > step.owner_id ORDER BY owner_id, due_at LIMIT 1) next
)
"""
# Those whose turn it may be. Paused accounts are left out; one whose pause is over may send a single probe, and the
# next when that one has come back.
_TURNS = f"""
{_STEPS},
turn AS MATERIALIZED (
    SELECT step.lane, step.quota, step.owner_id, account.paused_until IS NOT NULL AS is_probe,
           CASE WHEN account.paused_until IS NOT NULL THEN 1
                ELSE least(coalesce(taken.room, %(room)s::int), account.per_second, account.per_minute,
                           account.per_hour, account.per_day) END AS room
    FROM step
    JOIN accounts_smtpaccount account ON account.owner_id = step.owner_id
    LEFT JOIN LATERAL (
        SELECT CASE WHEN step.lane = {Lane.OTP:d} THEN urgent_room ELSE room END AS room
        FROM unnest(%(owners)s::bigint[], %(rooms)s::int[], %(urgent_rooms)s::int[]) held(owner_id, room, urgent_room)
        WHERE held.owner_id = step.owner_id) taken ON true
    WHERE step.due_at <= now()
      AND (account.limited_until IS NULL OR account.limited_until <= now())
      AND coalesce(taken.room, %(room)s::int) > 0
      AND (account.paused_until IS NULL OR account.paused_until <= now() AND NOT EXISTS (
               SELECT 1 FROM tasks_claim c WHERE step.owner_id = ANY(c.owner_ids) AND EXISTS (
                   SELECT 1 FROM tasks_mailtask t WHERE t.id = ANY(c.task_ids) AND t.claim_token = c.token
                   AND t.owner_id = step.owner_id)))
    LIMIT %(turns)s::int
)
"""
IS_ANYTHING_DUE = f"{_TURNS} SELECT EXISTS (SELECT 1 FROM turn)"

# Each lane has its quota first, what it leaves is for the others; within a lane owners take turns, mail by mail.
CLAIM = f"""
{_TURNS},
once AS (SELECT *, row_number() OVER (PARTITION BY owner_id ORDER BY lane) AS nth FROM turn),
share AS (
    SELECT *, ceil(%(limit)s::numeric / count(*) OVER (PARTITION BY lane))::int AS most
    FROM once WHERE nth = 1 OR NOT is_probe
),
ready AS (
    SELECT mail.place, share.lane, share.quota,
           row_number() OVER (PARTITION BY share.lane, share.owner_id ORDER BY mail.due_at) AS nth
    FROM share CROSS JOIN LATERAL (
        SELECT d.ctid AS place, d.due_at FROM tasks_due d
        WHERE d.lane = share.lane AND d.owner_id = share.owner_id AND d.due_at <= now()
          AND (d.expires_at IS NULL OR d.expires_at > now())
        ORDER BY d.due_at LIMIT least(share.room, share.most) FOR UPDATE OF d SKIP LOCKED) mail
),
queue AS (SELECT place, lane, quota, row_number() OVER (PARTITION BY lane ORDER BY nth) AS place_in_lane FROM ready),
picked AS (SELECT place FROM queue ORDER BY place_in_lane > quota, lane, place_in_lane LIMIT %(limit)s::int),
taken AS (DELETE FROM tasks_due WHERE ctid = ANY(ARRAY(SELECT place FROM picked)) RETURNING task_id),
moved AS (
    UPDATE tasks_mailtask t
    SET status = {Status.PROCESSING:d}, try_count = try_count + 1, claim_token = %(token)s::uuid, moved_at = now(),
        started_at = coalesce(started_at, now())
    FROM taken WHERE t.id = taken.task_id AND t.status IN {_WAITING}
    RETURNING t.id, t.owner_id, t.lane, t.try_count, t.max_tries, t.lost_count, t.on_uncertain, t.expires_at,
              t.sender, t.recipient, t.due_at,
              CASE WHEN t.has_failed THEN {Status.FAILED:d} WHEN t.scheduled_at IS NULL THEN {Status.QUEUED:d}
                   ELSE (SELECT before.status FROM tasks_mailtask before WHERE before.id = t.id) END AS was
),
counted AS ({_COUNTED} SELECT now(), count(*), was, {Status.PROCESSING:d} FROM moved GROUP BY was),
held AS (
    INSERT INTO tasks_claim (token, lease_until, held, task_ids, owner_ids)
    SELECT %(token)s::uuid, now() + make_interval(secs => %(lease)s::float8), count(*), array_agg(id),
           array_agg(DISTINCT owner_id)
    FROM moved HAVING count(*) > 0
)
SELECT id, owner_id, lane, try_count, max_tries, lost_count, on_uncertain, expires_at, sender, recipient,
       CASE WHEN octet_length(c.raw) <= {LARGEST_AT_ONCE} THEN c.raw END, coalesce(c.request_id, ''),
       coalesce((SELECT true FROM tasks_suppression s
           WHERE s.owner_id = moved.owner_id AND s.address = lower(moved.recipient)), false)
FROM moved LEFT JOIN tasks_mailcontent c ON c.task_id = moved.id ORDER BY lane, due_at, id
"""

HELD = """
SELECT token, id, owner_id, lane, try_count, max_tries, lost_count, on_uncertain, expires_at, sender, recipient
FROM tasks_claim c JOIN tasks_mailtask t ON t.id = ANY(c.task_ids) AND t.claim_token = c.token
WHERE c.token = ANY(%(tokens)s::uuid[]) ORDER BY id
"""

# `again` writes the tickets of what waits again; `emptied` and `lessened` keep count of what the claims still hold.
_SETTLE = f"""
WITH verdict AS (
    SELECT * FROM unnest(%(ids)s::bigint[], %(tokens)s::uuid[], %(statuses)s::smallint[], %(returned)s::smallint[],
        %(lost)s::smallint[], %(waits)s::float8[], %(reasons)s::smallint[], %(outcomes)s::smallint[],
        %(phases)s::smallint[], %(codes)s::smallint[], %(replies)s::text[], %(durations)s::int[],
        %(puts_off)s::smallint[])
    AS v(id, token, status, returned, lost, wait, reason, outcome, phase, code, reply, duration_ms, put_off)
),
moved AS (
    UPDATE tasks_mailtask t
    SET status = v.status, try_count = t.try_count - v.returned, lost_count = t.lost_count + v.lost,
        cancel_reason = v.reason,
        due_at = CASE WHEN v.wait IS NULL THEN t.due_at ELSE now() + make_interval(secs => v.wait) END,
        started_at = CASE WHEN t.try_count > v.returned THEN t.started_at END,
        finished_at = CASE WHEN v.status IN {_FINAL} THEN now() END,
        last_reply = CASE WHEN v.put_off IS NULL THEN v.reply ELSE t.last_reply END,
        has_failed = v.status IN {_UNSENT}, is_uncertain = v.status = {Status.UNCERTAIN:d},
        put_off = v.put_off, claim_token = NULL, moved_at = now()
    FROM verdict v WHERE t.id = v.id AND t.claim_token = v.token AND t.status = {Status.PROCESSING:d}
    RETURNING t.id, t.owner_id, t.lane, t.due_at, t.expires_at, t.try_count, t.try_count + v.returned AS number,
              t.cancel_reason, v.token, v.status, v.outcome, v.phase, v.code, v.reply, v.duration_ms, v.lost,
              CASE WHEN v.outcome = {Outcome.ACCEPTED:d}
                   THEN greatest(date_part('epoch', now() - greatest(t.created_at, t.scheduled_at)), 0) END AS took
),
counted AS (
    INSERT INTO tasks_counter_line (at, mails, was, became, outcome, phase, smtp_le, smtp_seconds, delivery_le,
        delivery_seconds, rescued)
    SELECT now(), count(*), {Status.PROCESSING:d}, {_COUNTS_AS.format("")} AS became, outcome, phase,
        CASE WHEN phase IS NOT NULL THEN width_bucket(duration_ms - 0.5::float8, {_bounds(SMTP, 1000)}) END
            AS smtp_le,
        sum(duration_ms) * 0.001::float8, width_bucket(took, {_bounds(DELIVERY)}) AS delivery_le, sum(took), sum(lost)
    FROM moved GROUP BY became, outcome, phase, smtp_le, delivery_le
),
told AS (
    {_TOLD}
    SELECT owner_id, id, now(), status, cancel_reason, outcome, try_count, code, reply,
           CASE WHEN status IN {_WAITING} THEN due_at END
    FROM moved {_TO_LISTENERS} AND (outcome IS NOT NULL OR status NOT IN {_WAITING})
),
noted AS (
    INSERT INTO tasks_attempt (task_id, number, at, outcome, phase, code, reply, duration_ms, worker)
    SELECT id, number, now() - make_interval(secs => duration_ms / 1000.0), outcome, phase, code, reply,
           duration_ms, %(worker)s::text
    FROM moved WHERE outcome IS NOT NULL
),
again AS (
    INSERT INTO tasks_due (task_id, owner_id, lane, due_at, expires_at)
    SELECT id, owner_id, lane, due_at, expires_at FROM moved WHERE status IN {_WAITING}
){{listed}},
done AS (SELECT token, count(*) AS mails FROM moved GROUP BY token),
emptied AS (DELETE FROM tasks_claim c USING done WHERE c.token = done.token AND c.held <= done.mails),
lessened AS (
    UPDATE tasks_claim c SET held = c.held - done.mails FROM done WHERE c.token = done.token AND c.held > done.mails
)
SELECT id FROM moved
"""
# In one order, so that two workers that list the same addresses do not wait for each other.
_LISTED = f""",
listed AS (
    INSERT INTO tasks_suppression (owner_id, address, reason, reply, task_id, created_at)
    SELECT moved.owner_id, lower(t.recipient), {Cause.HARD_BOUNCE:d}, moved.reply, moved.id, now()
    FROM moved JOIN tasks_mailtask t ON t.id = moved.id WHERE moved.id = ANY(%(suppressed)s::bigint[])
    ORDER BY moved.owner_id, lower(t.recipient), moved.id ON CONFLICT (owner_id, address) DO NOTHING
)"""
#: Results among which none puts a recipient on the list do not plan for it.
SETTLE, SETTLE_LISTING = _SETTLE.format(listed=""), _SETTLE.format(listed=_LISTED)

RENEW = """
UPDATE tasks_claim SET lease_until = now() + make_interval(secs => %(lease)s::float8)
WHERE token = ANY(%(tokens)s::uuid[]) RETURNING token
"""

#: What is under an expired lease and in nobody else's statement at this moment. A claim is locked first, and taken as
#: a whole: a worker that wakes up has renewed it before that, or finds nothing to renew. Of one rescued in part, or
#: renewed meanwhile, it would send mails that are another's by now. Against the order above, but waits for nobody.
LOST = """
WITH over AS MATERIALIZED (
    SELECT token, task_ids FROM tasks_claim WHERE lease_until < now()
    ORDER BY lease_until, token LIMIT %(claims)s::int FOR UPDATE SKIP LOCKED
)
SELECT t.id, t.claim_token, t.on_uncertain, t.lost_count
FROM over c JOIN tasks_mailtask t ON t.id = ANY(c.task_ids) AND t.claim_token = c.token
ORDER BY t.id FOR UPDATE OF t SKIP LOCKED
"""
#: Claims whose lease is over and that hold nothing, such as of mails that were deleted.
CLEAR = """
DELETE FROM tasks_claim c WHERE lease_until < now() AND NOT EXISTS (
    SELECT 1 FROM tasks_mailtask t WHERE t.id = ANY(c.task_ids) AND t.claim_token = c.token)
RETURNING token
"""

# {chosen} is a query for ids, by Django. Two people may choose the same mails at once, and must not wait for each
# other: rows of tasks_due are locked by id, all of them (an ARRAY) before the first of tasks_mailtask; a mail without
# a row there that is locked is being moved by somebody else.
CANCEL = f"""
WITH taken AS (
    DELETE FROM tasks_due WHERE task_id = ANY(ARRAY(
        SELECT task_id FROM tasks_due WHERE task_id IN ({{chosen}}) ORDER BY task_id FOR UPDATE))
    RETURNING task_id
),
moved AS (
    UPDATE tasks_mailtask t
    SET status = {Status.CANCELLED:d}, cancel_reason = %s, has_failed = true, finished_at = now(), moved_at = now()
    FROM taken WHERE t.id = taken.task_id AND t.status IN {_WAITING}
    RETURNING t.id, t.owner_id, t.due_at, t.status, t.cancel_reason, t.try_count
),
counted AS ({_COUNTED_FROM_WAITING}),
told AS ({_MOVED})
SELECT id FROM moved
"""
EXPIRED = "SELECT task_id FROM tasks_due WHERE expires_at <= now() ORDER BY expires_at LIMIT %(limit)s::int"

#: Of a mail that serves once there may be nothing left to send.
_VOID = f"""EXISTS (SELECT 1 FROM tasks_onetime o WHERE o.task_id = t.id
        AND (t.status = {Status.CANCELLED:d} OR t.expires_at IS NULL OR t.expires_at <= now()))"""
# Nobody on the owner's list of suppressions is written to again.
REQUEUE = f"""
WITH chosen AS MATERIALIZED (
    SELECT t.id, t.status, t.cancel_reason, t.try_count, t.moved_at
    FROM tasks_mailtask t WHERE t.id IN ({{chosen}}) AND NOT EXISTS (
        SELECT 1 FROM tasks_suppression s WHERE s.owner_id = t.owner_id AND s.address = lower(t.recipient))
    AND NOT {_VOID}
),
taken AS (
    DELETE FROM tasks_due WHERE task_id = ANY(ARRAY(
        SELECT task_id FROM tasks_due JOIN chosen ON chosen.id = task_id WHERE chosen.status = {Status.FAILED:d}
        ORDER BY task_id FOR UPDATE OF tasks_due))
    RETURNING task_id
),
tickets AS MATERIALIZED (SELECT array_agg(task_id) AS ids FROM taken),
open AS MATERIALIZED (
    SELECT coalesce(tickets.ids, '{{{{}}}}') || ARRAY(
        SELECT t.id FROM tasks_mailtask t JOIN chosen USING (id)
        WHERE t.status IN ({Status.CANCELLED:d}, {Status.UNCERTAIN:d}) FOR UPDATE OF t SKIP LOCKED) AS ids
    FROM tickets
),
moved AS (
    UPDATE tasks_mailtask t
    SET status = {Status.QUEUED:d}, cancel_reason = NULL, finished_at = NULL, try_count = 0, lost_count = 0,
        put_off = NULL, has_failed = false, is_uncertain = false, due_at = now(), moved_at = now(),
        expires_at = CASE WHEN t.expires_at > now() THEN t.expires_at END
    FROM chosen, open WHERE t.id = ANY(open.ids) AND t.id = chosen.id AND t.moved_at = chosen.moved_at
        AND t.status IN {_UNSENT_OR_UNCERTAIN} AND NOT {_VOID}
    RETURNING t.id, t.owner_id, t.lane, t.due_at, t.expires_at, t.status, t.cancel_reason, t.try_count,
        {_COUNTS_AS.format("chosen.")} AS was
),
counted AS ({_COUNTED} SELECT now(), count(*), was, {Status.QUEUED:d} FROM moved GROUP BY was),
told AS ({_MOVED})
INSERT INTO tasks_due (task_id, owner_id, lane, due_at, expires_at)
SELECT id, owner_id, lane, due_at, expires_at FROM moved RETURNING task_id
"""
RESCHEDULE = f"""
WITH chosen AS MATERIALIZED ({{chosen}}),
wanted AS (SELECT greatest(%s::timestamptz, now()) AS due_at),
taken AS (
    DELETE FROM tasks_due WHERE task_id = ANY(ARRAY(
        SELECT d.task_id FROM tasks_due d, chosen, wanted
        WHERE d.task_id = chosen.id AND EXISTS (
            SELECT 1 FROM tasks_mailtask t WHERE t.id = d.task_id AND t.status = {Status.SCHEDULED:d}
            AND (t.expires_at IS NULL OR t.expires_at > wanted.due_at))
        ORDER BY d.task_id FOR UPDATE OF d))
    RETURNING task_id
),
moved AS (
    UPDATE tasks_mailtask t
    SET status = CASE WHEN wanted.due_at > now() THEN {Status.SCHEDULED:d} ELSE {Status.QUEUED:d} END,
        due_at = wanted.due_at, scheduled_at = %s::timestamptz, moved_at = now()
    FROM taken, wanted WHERE t.id = taken.task_id
    RETURNING t.id, t.owner_id, t.lane, t.due_at, t.expires_at, t.status, t.cancel_reason, t.try_count
),
counted AS ({_COUNTED} SELECT now(), count(*), {Status.SCHEDULED:d}, status FROM moved GROUP BY status),
told AS ({_MOVED})
INSERT INTO tasks_due (task_id, owner_id, lane, due_at, expires_at)
SELECT id, owner_id, lane, due_at, expires_at FROM moved RETURNING task_id
"""
ACCEPT = f"""
WITH moved AS (
    UPDATE tasks_mailtask SET status = {Status.SUCCESS:d}, is_uncertain = false, finished_at = now(), moved_at = now()
    WHERE id = ANY(ARRAY(
        SELECT id FROM tasks_mailtask WHERE id IN ({{chosen}}) AND status = {Status.UNCERTAIN:d}
        FOR UPDATE SKIP LOCKED))
    RETURNING id, owner_id, due_at, status, cancel_reason, try_count
),
counted AS ({_COUNTED} SELECT now(), count(*), {Status.UNCERTAIN:d}, status FROM moved GROUP BY status),
told AS ({_MOVED})
SELECT id FROM moved
"""
# What somebody may still send keeps its content, whoever holds it; nothing leaves these states for being sent again.
BLANK = f"""
WITH spent AS MATERIALIZED (
    SELECT o.task_id FROM tasks_onetime o JOIN tasks_mailtask t ON t.id = o.task_id
    WHERE NOT o.is_blanked
      AND (t.status IN {_FINAL} OR t.status = {Status.UNCERTAIN:d} AND t.expires_at <= now())
    ORDER BY o.task_id LIMIT %(limit)s::int FOR UPDATE OF o SKIP LOCKED
),
emptied AS (UPDATE tasks_mailcontent c SET raw = '' FROM spent WHERE c.task_id = spent.task_id)
UPDATE tasks_onetime o SET is_blanked = true FROM spent WHERE o.task_id = spent.task_id RETURNING o.task_id
"""
# Due long since and not touched, though nothing holds its account back.
FORGOTTEN = f"""
{_STEPS}
SELECT mail.task_id FROM step
JOIN accounts_smtpaccount account ON account.owner_id = step.owner_id
CROSS JOIN LATERAL (
    SELECT d.task_id FROM tasks_due d
    WHERE d.lane = step.lane AND d.owner_id = step.owner_id
      AND d.due_at <= now() - make_interval(secs => %(seconds)s::float8)
    ORDER BY d.due_at LIMIT %(limit)s::int) mail
JOIN tasks_mailtask t ON t.id = mail.task_id AND t.moved_at <= now() - make_interval(secs => %(seconds)s::float8)
WHERE (account.paused_until IS NULL OR account.paused_until <= now())
  AND (account.limited_until IS NULL OR account.limited_until <= now())
LIMIT %(limit)s::int
"""
# What has come to its end, for good.
FORGET = f"""
WITH gone AS (
    DELETE FROM tasks_mailtask WHERE id = ANY(%(ids)s::bigint[]) AND status IN {_FINAL}
    RETURNING status, cancel_reason, try_count
),
counted AS ({_COUNTED} SELECT now(), count(*), {_COUNTS_AS.format("")} AS was, NULL FROM gone GROUP BY was)
SELECT count(*) FROM gone
"""
# How many could be claimed now, `most` at most, and since when the first of them: of each owner's mails as many as
# the answer has room for, along the index.
DUE = f"""
{_STEPS},
open AS MATERIALIZED (
    SELECT step.lane, step.owner_id, step.due_at FROM step
    JOIN accounts_smtpaccount account ON account.owner_id = step.owner_id
    WHERE step.due_at <= now()
      AND (account.paused_until IS NULL OR account.paused_until <= now())
      AND (account.limited_until IS NULL OR account.limited_until <= now())
)
SELECT (SELECT count(*) FROM (
            SELECT FROM open CROSS JOIN LATERAL (
                SELECT FROM tasks_due d WHERE d.lane = open.lane AND d.owner_id = open.owner_id AND d.due_at <= now()
                ORDER BY d.due_at LIMIT %(most)s::int) mail
            LIMIT %(most)s::int) AS mails),
       (SELECT date_part('epoch', now() - min(due_at)) FROM open)
"""

#: For what is no mail, and is looked up as one. Asked for when it is wanted: a column's default would hold fast to
#: the sequence, which is another once there are partitions.
NEXT_ID = "SELECT nextval(pg_get_serial_sequence('tasks_mailtask', 'id'))"

# What was due or in a worker's hands when the database was as it is now again, after a restore.
HOLD = f"""
WITH taken AS (
    DELETE FROM tasks_due WHERE task_id = ANY(ARRAY(
        SELECT task_id FROM tasks_due WHERE due_at <= now() LIMIT %(limit)s::int FOR UPDATE SKIP LOCKED))
    RETURNING task_id
),
ended AS (
    DELETE FROM tasks_claim WHERE token = ANY(ARRAY(
        SELECT token FROM tasks_claim LIMIT 100 FOR UPDATE SKIP LOCKED))
    RETURNING token, task_ids
),
possible AS (
    SELECT task_id AS id, NULL::uuid AS token FROM taken UNION ALL SELECT unnest(task_ids), token FROM ended
),
moved AS (
    UPDATE tasks_mailtask t
    SET status = {Status.UNCERTAIN:d}, is_uncertain = true, has_failed = false, claim_token = NULL, put_off = NULL,
        last_reply = %(why)s::text, moved_at = now()
    FROM possible p WHERE t.id = p.id
        AND (p.token IS NULL AND t.status IN {_WAITING}
            OR t.claim_token = p.token AND t.status = {Status.PROCESSING:d})
    RETURNING t.id, t.owner_id, t.due_at, t.status, t.cancel_reason, t.try_count
),
counted AS ({_COUNTED_FROM_WAITING}),
told AS ({_MOVED})
SELECT count(*) FROM moved
"""

# Partitions (tasks/partitions.py, which runs these three). {leaf} is one of tasks_mailtask: what its mails count as,
# and whether all came to their end so long ago.
ENDED = f"""
SELECT {_COUNTS_AS.format("")} AS became, count(*), bool_and(status IN {_FINAL} AND finished_at < now() - {{keep}})
FROM {{leaf}} GROUP BY became
"""
#: Whether any mail with such an id waits, or is in a worker's hands.
MOVING = """
SELECT EXISTS (SELECT FROM tasks_due WHERE task_id >= %(first)s AND task_id < %(end)s)
    OR EXISTS (SELECT FROM tasks_claim c, unnest(c.task_ids) AS id WHERE id >= %(first)s AND id < %(end)s)
"""
#: So many that counted as this are gone.
LEFT = "INSERT INTO tasks_counter_line (at, mails, was) VALUES (now(), %s, %s)"
