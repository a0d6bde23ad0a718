import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('tasks', '0007_content_without_check'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='Suppression',
            fields=[
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('address', models.CharField(db_collation='C', max_length=320)),
                ('reason', models.SmallIntegerField(choices=[(0, 'hard_bounce'), (1, 'manual')])),
                ('reply', models.CharField(default='', max_length=500)),
                ('task_id', models.BigIntegerField(null=True)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('owner', models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='+', to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'indexes': [models.Index(models.F('owner'), models.OrderBy(models.F('id'), descending=True), name='suppression_newest'), models.Index(models.F('owner'), models.F('reason'), models.OrderBy(models.F('id'), descending=True), name='suppression_reason')],
                'constraints': [models.UniqueConstraint(fields=('owner', 'address'), name='suppression_address'), models.CheckConstraint(condition=models.Q(('reason__in', [0, 1])), name='suppression_reason_known')],
            },
        ),
    ]
