import django.contrib.postgres.fields
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models
from django.db.models import F, Q

# What waits and what is in a worker's hands moves to the narrow tables.
MOVE = """
UPDATE tasks_mailtask SET has_failed = status <> 6, is_uncertain = status = 6 WHERE status IN (3, 4, 6);
INSERT INTO tasks_due (task_id, owner_id, lane, due_at, expires_at)
    SELECT id, owner_id, lane, due_at, expires_at FROM tasks_mailtask WHERE status IN (0, 3, 5);
INSERT INTO tasks_claim (token, lease_until, held, task_ids, owner_ids)
    SELECT claim_token, max(lease_until), count(*), array_agg(id), array_agg(DISTINCT owner_id)
    FROM tasks_mailtask WHERE status = 1 GROUP BY claim_token;
"""
MOVE_BACK = """
UPDATE tasks_mailtask t SET lease_until = c.lease_until FROM tasks_claim c WHERE t.claim_token = c.token;
"""

# A claim and a result write a new version of the row each: with as much room on its page as rows, beside the old one.
# The narrow tables lose and gain a row for each mail, and are read at their busy end: they are vacuumed all the time.
TUNE = """
ALTER TABLE tasks_mailtask SET (fillfactor = 50);
ALTER TABLE tasks_due SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE tasks_claim SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);
"""
UNTUNE = "ALTER TABLE tasks_mailtask SET (fillfactor = 80);"

FAILED_OR_CANCELLED, PROCESSING, UNCERTAIN = [3, 4], 1, 6


class Migration(migrations.Migration):
    dependencies = [
        ("tasks", "0004_message_details"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Due",
            fields=[
                (
                    "task",
                    models.OneToOneField(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="due",
                        serialize=False,
                        to="tasks.mailtask",
                    ),
                ),
                ("lane", models.SmallIntegerField(choices=[(0, "otp"), (1, "default"), (2, "bulk")])),
                ("due_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField(null=True)),
                (
                    "owner",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index("lane", "owner", "due_at", name="due_claim"),
                    models.Index("expires_at", name="due_expiry", condition=Q(expires_at__isnull=False)),
                ]
            },
        ),
        migrations.CreateModel(
            name="Claim",
            fields=[
                ("token", models.UUIDField(primary_key=True, serialize=False)),
                ("lease_until", models.DateTimeField()),
                ("held", models.SmallIntegerField()),
                (
                    "task_ids",
                    django.contrib.postgres.fields.ArrayField(models.BigIntegerField()),
                ),
                (
                    "owner_ids",
                    django.contrib.postgres.fields.ArrayField(models.BigIntegerField()),
                ),
            ],
        ),
        migrations.AddField("mailtask", "has_failed", models.BooleanField(default=False)),
        migrations.AddField("mailtask", "is_uncertain", models.BooleanField(default=False)),
        migrations.RemoveConstraint("mailtask", "task_lease_while_processing_only"),
        migrations.RunSQL(MOVE, MOVE_BACK),
        migrations.RemoveIndex("mailtask", "task_claim"),
        migrations.RemoveIndex("mailtask", "task_due"),
        migrations.RemoveIndex("mailtask", "task_lease"),
        migrations.RemoveIndex("mailtask", "task_expiry"),
        migrations.RemoveIndex("mailtask", "task_failures"),
        migrations.RemoveIndex("mailtask", "task_uncertain"),
        migrations.RemoveField("mailtask", "lease_until"),
        migrations.AddIndex(
            "mailtask",
            models.Index("owner", F("id").desc(), name="task_failures", condition=Q(has_failed=True)),
        ),
        migrations.AddIndex(
            "mailtask", models.Index("id", name="task_uncertain", condition=Q(is_uncertain=True))
        ),
        migrations.AddConstraint(
            "mailtask",
            models.CheckConstraint(
                name="task_claimed_while_processing_only",
                condition=Q(status=PROCESSING, claim_token__isnull=False)
                | (~Q(status=PROCESSING) & Q(claim_token=None)),
            ),
        ),
        migrations.AddConstraint(
            "mailtask",
            models.CheckConstraint(
                name="task_failure_marked",
                condition=Q(status__in=FAILED_OR_CANCELLED, has_failed=True)
                | Q(status=PROCESSING)
                | (~Q(status__in=FAILED_OR_CANCELLED) & Q(has_failed=False)),
            ),
        ),
        migrations.AddConstraint(
            "mailtask",
            models.CheckConstraint(
                name="task_uncertain_marked",
                condition=Q(status=UNCERTAIN, is_uncertain=True)
                | (~Q(status=UNCERTAIN) & Q(is_uncertain=False)),
            ),
        ),
        migrations.RunSQL(TUNE, UNTUNE),
    ]
