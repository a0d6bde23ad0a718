from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('tasks', '0013_request_id'),
    ]

    operations = [
        migrations.AddField(
            model_name='eventrow',
            name='account_state',
            field=models.CharField(db_default='', max_length=10),
        ),
    ]
