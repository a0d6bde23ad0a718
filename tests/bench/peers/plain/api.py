"""POST /mails as Django REST framework's tutorial has it: a row, then `delay()`."""

from django.contrib.auth.models import User
from django.urls import path
from rest_framework import generics, serializers
from rest_framework_simplejwt.views import TokenObtainPairView

from plain.models import Mail
from plain.tasks import send


class MailSerializer(serializers.ModelSerializer):
    class Meta:
        model = Mail
        fields = ("id", "recipient", "subject", "body", "status")
        read_only_fields = ("status",)


class MailsView(generics.CreateAPIView):
    queryset = Mail.objects.all()
    serializer_class = MailSerializer

    def perform_create(self, serializer: MailSerializer) -> None:
        send.delay(serializer.save().pk)


def make_user(email: str, password: str) -> None:
    User.objects.create_user(email, email, password)


urlpatterns = [path("login", TokenObtainPairView.as_view()), path("mails", MailsView.as_view())]
