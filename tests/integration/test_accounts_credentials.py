"""manage.py rotate_credentials, and users that come in by other doors."""

from io import StringIO

import pytest
from cryptography.fernet import Fernet
from django.core.management import CommandError, call_command

from accounts.models import SmtpAccount, User
from tests.factories import UserFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def keys():
    return [Fernet.generate_key().decode() for _ in range(2)]


def _sealed(password: str) -> SmtpAccount:
    account = UserFactory().smtp
    account.password = password
    account.save()
    return account


def test_after_a_rotation_the_old_key_can_go(settings, keys):
    settings.CREDENTIAL_KEYS = keys[:1]
    account, without = _sealed("relay-secret"), _sealed("")
    settings.CREDENTIAL_KEYS = [keys[1], keys[0]]
    out = StringIO()
    call_command("rotate_credentials", stdout=out)
    settings.CREDENTIAL_KEYS = keys[1:]
    account.refresh_from_db()
    without.refresh_from_db()
    assert (account.password, without.password) == ("relay-secret", "")
    assert out.getvalue().startswith("1 passwords")


def test_a_password_whose_key_is_gone_is_named_and_the_others_rotated(settings, keys):
    settings.CREDENTIAL_KEYS = keys[:1]
    lost = _sealed("lost")
    settings.CREDENTIAL_KEYS = keys[1:]
    kept = _sealed("kept")
    before = kept.sealed_password
    with pytest.raises(CommandError, match=str(lost.pk)):
        call_command("rotate_credentials", stdout=StringIO())
    kept.refresh_from_db()
    assert kept.sealed_password != before
    assert kept.password == "kept"


def test_a_user_made_by_any_door_has_an_account():
    user = User(email="Admin@Example.com")
    user.set_unusable_password()
    user.full_clean()
    user.save()
    user.save()
    assert user.smtp.from_email == "admin@example.com"
    assert User.objects.create_superuser("root@example.com", "correct horse battery").smtp.uses_default_relay
