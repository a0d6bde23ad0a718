from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('tasks', '0012_counters'),
    ]

    operations = [
        migrations.AddField(
            model_name='mailcontent',
            name='request_id',
            field=models.CharField(db_default='', default='', max_length=128),
        ),
    ]
