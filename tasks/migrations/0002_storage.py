from django.db import migrations

# Each mail changes its row three times: room on the page and an eager vacuum keep the claim's index short.
TUNE = """
ALTER TABLE tasks_mailtask SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
"""
UNTUNE = """
ALTER TABLE tasks_mailtask RESET (fillfactor, autovacuum_vacuum_scale_factor,
    autovacuum_analyze_scale_factor, autovacuum_vacuum_cost_delay);
"""


class Migration(migrations.Migration):
    dependencies = [("tasks", "0001_initial")]

    operations = [migrations.RunSQL(TUNE, UNTUNE)]
