import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("tasks", "0006_idempotency")]

    operations = [
        migrations.AlterField(
            "mailcontent",
            "task",
            models.OneToOneField(
                db_constraint=False,
                on_delete=django.db.models.deletion.CASCADE,
                primary_key=True,
                related_name="content",
                serialize=False,
                to="tasks.mailtask",
            ),
        ),
    ]
