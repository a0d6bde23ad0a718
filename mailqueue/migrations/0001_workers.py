from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
    ]

    operations = [
        migrations.CreateModel(
            name='Worker',
            fields=[
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('name', models.CharField(max_length=120, unique=True)),
                ('host', models.CharField(max_length=100)),
                ('pid', models.IntegerField()),
                ('started_at', models.DateTimeField()),
                ('heartbeat_at', models.DateTimeField()),
                ('doing', models.CharField(max_length=10)),
                ('in_flight', models.IntegerField(default=0)),
                ('sent', models.BigIntegerField(default=0)),
            ],
        ),
    ]
