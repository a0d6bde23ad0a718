from django.db import migrations, models


# What is there already. Programs of before that still run meanwhile count nothing; the daily recount mends that.
COUNT = """
INSERT INTO tasks_counter_total (name, value)
SELECT 'task.' || CASE WHEN status = 4 AND (cancel_reason IN (0, 1) OR cancel_reason = 3 AND try_count > 0) THEN 7
    ELSE status END, count(*)
FROM tasks_mailtask GROUP BY 1
"""


class Migration(migrations.Migration):

    dependencies = [
        ('tasks', '0011_one_time'),
    ]

    operations = [
        migrations.CreateModel(
            name='Line',
            fields=[
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('at', models.DateTimeField()),
                ('mails', models.IntegerField()),
                ('was', models.SmallIntegerField(null=True)),
                ('became', models.SmallIntegerField(null=True)),
                ('outcome', models.SmallIntegerField(null=True)),
                ('phase', models.SmallIntegerField(null=True)),
                ('smtp_le', models.SmallIntegerField(null=True)),
                ('smtp_seconds', models.FloatField(null=True)),
                ('delivery_le', models.SmallIntegerField(null=True)),
                ('delivery_seconds', models.FloatField(null=True)),
                ('rescued', models.IntegerField(null=True)),
            ],
            options={
                'db_table': 'tasks_counter_line',
            },
        ),
        migrations.CreateModel(
            name='Minute',
            fields=[
                ('pk', models.CompositePrimaryKey('at', 'name', blank=True, editable=False, primary_key=True, serialize=False)),
                ('at', models.DateTimeField()),
                ('name', models.CharField(max_length=40)),
                ('value', models.FloatField()),
            ],
            options={
                'db_table': 'tasks_counter_minute',
            },
        ),
        migrations.CreateModel(
            name='Total',
            fields=[
                ('name', models.CharField(max_length=40, primary_key=True, serialize=False)),
                ('value', models.FloatField()),
            ],
            options={
                'db_table': 'tasks_counter_total',
            },
        ),
        migrations.RunSQL(COUNT, migrations.RunSQL.noop),
    ]
