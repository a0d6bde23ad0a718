import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('accounts', '0005_daily_quota'),
        ('tasks', '0009_templates'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='Listener',
            fields=[
                ('owner', models.OneToOneField(db_constraint=False, on_delete=django.db.models.deletion.CASCADE, primary_key=True, related_name='+', serialize=False, to=settings.AUTH_USER_MODEL)),
                ('until', models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name='EventRow',
            fields=[
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('task_id', models.BigIntegerField(null=True)),
                ('at', models.DateTimeField()),
                ('status', models.SmallIntegerField(null=True)),
                ('cancel_reason', models.SmallIntegerField(null=True)),
                ('outcome', models.SmallIntegerField(null=True)),
                ('try_count', models.SmallIntegerField(null=True)),
                ('code', models.SmallIntegerField(null=True)),
                ('reply', models.CharField(default='', max_length=500)),
                ('until', models.DateTimeField(null=True)),
                ('account', models.CharField(db_default='', max_length=10)),
                ('owner', models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='+', to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'db_table': 'tasks_event',
                'indexes': [models.Index(models.F('owner'), models.F('id'), name='event_of_owner')],
            },
        ),
    ]
