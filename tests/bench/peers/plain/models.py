"""The table that such an application usually has."""

from django.db import models


class Mail(models.Model):
    recipient = models.EmailField()
    subject = models.CharField(max_length=200)
    body = models.TextField()
    status = models.CharField(max_length=10, default="queued", db_index=True)
    sent_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.subject
