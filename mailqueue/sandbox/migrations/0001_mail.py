import django.contrib.postgres.fields
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
    ]

    operations = [
        migrations.CreateModel(
            name='SandboxMail',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('received_at', models.DateTimeField()),
                ('sender', models.TextField()),
                ('recipients', django.contrib.postgres.fields.ArrayField(base_field=models.TextField(), size=None)),
                ('subject', models.TextField()),
                ('size', models.IntegerField()),
                ('raw', models.BinaryField()),
            ],
        ),
    ]
