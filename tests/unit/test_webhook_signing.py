"""What is signed is what the library at the receiving side verifies."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from mailqueue.webhooks import signing

#: The example of the specification's own libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE = "msg_p5jXN8AQM9LWM0D4loKWxJek"
BODY = '{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_it_is_the_known_signature():
    at = datetime.fromtimestamp(1614265330, UTC)
    assert signing.headers(MESSAGE, BODY, at, [SECRET]) == {
        "webhook-id": MESSAGE,
        "webhook-timestamp": "1614265330",
        "webhook-signature": SIGNATURE,
    }


def test_a_part_of_a_second_does_not_spoil_it():
    body = '{"text":"Grüße 🙂"}'
    headers = signing.headers("m", body, datetime.now(UTC).replace(microsecond=999_999), [SECRET])
    assert Webhook(SECRET).verify(body.encode(), headers) == {"text": "Grüße 🙂"}


def test_either_of_two_secrets_verifies_it_and_no_third():
    new, old, other = (signing.new_secret() for _ in range(3))
    headers = signing.headers("m", "{}", datetime.now(UTC), [new, old])
    assert headers["webhook-signature"].count("v1,") == 2
    assert Webhook(new).verify("{}", headers) == Webhook(old).verify("{}", headers) == {}
    with pytest.raises(WebhookVerificationError):
        Webhook(other).verify("{}", headers)


@pytest.mark.parametrize("spoil", ["webhook-id", "webhook-timestamp", "body"])
def test_whoever_changes_anything_is_noticed(spoil):
    headers, body = signing.headers("m", "{}", datetime.now(UTC), [SECRET]), "{}"
    if spoil == "body":
        body = "[]"
    elif spoil == "webhook-id":
        headers[spoil] = "n"
    else:
        headers[spoil] = str(int((datetime.now(UTC) - timedelta(seconds=9)).timestamp()))
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body, headers)


def test_secrets_are_long_and_each_is_another():
    first, second = signing.new_secret(), signing.new_secret()
    assert first != second
    assert first.startswith("whsec_")
    assert len(base64.b64decode(first.removeprefix("whsec_"), validate=True)) == 32
