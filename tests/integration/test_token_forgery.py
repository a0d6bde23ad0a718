"""Tokens that somebody made, bent or kept: at no door is one let in, and none is a 500."""

import base64
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from rest_framework.test import APIClient
from rest_framework_simplejwt.tokens import AccessToken, Token

from accounts.api.authentication import SingleUseToken
from accounts.keys import ApiKey
from accounts.models import User
from tests.factories import UserFactory, client_of

pytestmark = pytest.mark.django_db

Maker = type[Token]


def payload_of(maker: Maker, user: User, **claims: Any) -> dict[str, Any]:
    """What a good token would say, with some of it changed; None takes a claim out."""
    payload = maker.for_user(user).payload | claims
    return {name: value for name, value in payload.items() if value is not None}


def part(data: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()


class Forger:
    """Has everything but the key; and, for what must hold even then, the key too."""

    def __init__(self, maker: Maker, key: str) -> None:
        self.maker, self.key = maker, key
        self.user, self.other = UserFactory(), UserFactory()
        self.good = self.signed()

    def signed(
        self, key: str | None = None, algorithm: str = "HS256", header: Any = None, **claims: Any
    ) -> str:
        payload = payload_of(self.maker, self.user, **claims)
        return jwt.encode(payload, self.key if key is None else key, algorithm=algorithm, headers=header)

    def of(self, user: User, end: str) -> str:
        """A good one, for a user who then went."""
        token = str(self.maker.for_user(user))
        if end == "deleted":
            user.delete()
        elif end == "closed":
            user.close()
        else:
            user.set_password("another password")
            user.save()
        return token

    def bent(self, place: int, change: Callable[[str], str]) -> str:
        parts = self.good.split(".")
        parts[place] = change(parts[place])
        return ".".join(parts)

    def signed_publicly(self) -> str:
        """RS256 confused with HS256: the public key, known to all, as a secret."""
        private = rsa.generate_private_key(65537, 2048)
        public = private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return self.signed(key=public.hex())

    def signed_by_rsa(self) -> str:
        private = rsa.generate_private_key(65537, 2048)
        return jwt.encode(payload_of(self.maker, self.user), private, algorithm="RS256")

    def payload(self, **claims: Any) -> str:
        return part(payload_of(self.maker, self.user, **claims))


FORGERIES: dict[str, Callable[[Forger], str]] = {
    # the algorithm
    "none": lambda f: jwt.encode(payload_of(f.maker, f.user), None, algorithm="none"),
    "none with a signature": lambda f: f.bent(0, lambda _: part({"alg": "none", "typ": "JWT"})),
    "NONE": lambda f: f"{part({'alg': 'NONE'})}.{f.payload()}.",
    "no algorithm": lambda f: f"{part({'typ': 'JWT'})}.{f.payload()}.x",
    "HS512": lambda f: f.signed(algorithm="HS512"),
    "HS384": lambda f: f.signed(algorithm="HS384"),
    "RS256": lambda f: f.signed_by_rsa(),
    "public key": lambda f: f.signed_publicly(),
    "algorithm is a list": lambda f: f.bent(0, lambda _: part({"alg": ["HS256"], "typ": "JWT"})),
    # the key
    "other key": lambda f: f.signed(key="k" * 64),
    "empty key": lambda f: f"{part({'alg': 'HS256'})}.{f.payload()}.",
    "key in the header": lambda f: f.signed(
        key="k" * 64, header={"jwk": {"kty": "oct", "k": "a2tr"}, "kid": "../../dev/null"}
    ),
    # bent
    "other user's payload": lambda f: f.bent(1, lambda _: f.payload(user_id=str(f.other.pk))),
    "later end": lambda f: f.bent(1, lambda _: f.payload(exp=2**33)),
    "first letter of the signature": lambda f: f.bent(2, lambda s: ("A" if s[0] != "A" else "B") + s[1:]),
    "no signature": lambda f: f.bent(2, lambda _: ""),
    "half a signature": lambda f: f.bent(2, lambda s: s[:20]),
    "two parts": lambda f: f.good.rpartition(".")[0],
    "five parts": lambda f: f"{f.good}.x.y",
    "no parts": lambda f: "..",
    "payload is no object": lambda f: f"{part({'alg': 'HS256'})}.{part([1])}.x",
    "payload is no JSON": lambda f: f.bent(1, lambda _: "e30x"),
    "not base64": lambda f: f.bent(1, lambda _: "?" * 8),
    "not ASCII": lambda f: f.bent(2, lambda _: "é" * 8),
    "NUL": lambda f: f"{f.good}\0",
    "huge": lambda f: "a" * 1_000_000 if f.maker is AccessToken else "a" * 1_999,
    # kept too long, or for something else
    "expired": lambda f: f.signed(exp=1),
    "not yet": lambda f: f.signed(nbf=2**33),
    "made in the future": lambda f: f.signed(iat=2**33),
    "of the other type": lambda f: f.signed(token_type="refresh" if f.maker is AccessToken else "access"),
    "of no type": lambda f: f.signed(token_type=None),
    "of a deleted user": lambda f: f.of(f.user, "deleted"),
    "of a closed user": lambda f: f.of(f.user, "closed"),
    "of before the password was changed": lambda f: f.of(f.user, "password"),
    # rightly signed, and still nonsense: whoever has the key can do anything but break the service
    "no user": lambda f: f.signed(user_id=None),
    "no such user": lambda f: f.signed(user_id="424242"),
    "user is a word": lambda f: f.signed(user_id="ada"),
    "user is a list": lambda f: f.signed(user_id=[1]),
    "user is too large": lambda f: f.signed(user_id=str(2**63)),
    "user is far too large": lambda f: f.signed(user_id="9" * 5_000 if f.maker is AccessToken else "9" * 900),
    "user is infinite": lambda f: f.signed(user_id=float("inf")),
    "user is negative": lambda f: f.signed(user_id="-1"),
    "no password's mark": lambda f: f.signed(hash_password=None),
    "password's mark of another": lambda f: f.signed(hash_password="x"),
    "no end": lambda f: f.signed(exp=None),
    "end is a word": lambda f: f.signed(exp="tomorrow"),
    "no id": lambda f: f.signed(jti=None),
}


#: An access token is not used up, so nobody looks at its id.
NOT_AN_ID: dict[str, Any] = {"a list": [1], "a number": 5, "too long": "x" * 300, "NUL": "\0", "empty": ""}


def at_the_api(token: str) -> Any:
    client = APIClient(raise_request_exception=False)
    return client.get("/api/v1/task/queue", HTTP_AUTHORIZATION=f"Bearer {token}")


def at_refresh(token: str) -> Any:
    client = APIClient(raise_request_exception=False)
    return client.post("/api/v1/token/refresh", {"refresh": token}, format="json")


DOORS: dict[str, tuple[Maker, Callable[[str], Any]]] = {
    "access": (AccessToken, at_the_api),
    "refresh": (SingleUseToken, at_refresh),
}


@pytest.fixture
def forger(door: str, settings: Any) -> Forger:
    return Forger(DOORS[door][0], settings.SIMPLE_JWT["SIGNING_KEY"])


def test_there_are_so_many_forgeries_for_two_doors() -> None:
    assert len(FORGERIES) * len(DOORS) == 94


@pytest.mark.parametrize("door", DOORS)
def test_a_good_token_opens(forger: Forger, door: str) -> None:
    """The control: it is what is wrong with the others that keeps them out."""
    assert DOORS[door][1](forger.good).status_code == 200


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_bad_token_does_not(forger: Forger, door: str, forgery: str) -> None:
    token = FORGERIES[forgery](forger)
    answer = DOORS[door][1](token)
    assert answer.status_code in ((401,) if door == "access" else (400, 401)), answer.content[:300]
    assert answer["Content-Type"] == "application/problem+json"
    if len(token) > 10:
        assert token[:200] not in answer.content.decode()


@pytest.mark.parametrize("door", ["refresh"])
@pytest.mark.parametrize("jti", NOT_AN_ID)
def test_what_cannot_be_noted_as_used_does_not_open(forger: Forger, jti: str) -> None:
    assert at_refresh(forger.signed(jti=NOT_AN_ID[jti])).status_code == 401


@pytest.mark.parametrize(
    "header", ["Bearer", "bearer x y", "Bearer  ", "JWT x", "Basic YTpi", "Bearer é", "Bearer \x00"]
)
def test_a_header_that_holds_no_token_is_refused(header: str) -> None:
    client = APIClient(raise_request_exception=False)
    answer = client.get("/api/v1/task/queue", HTTP_AUTHORIZATION=header)
    assert answer.status_code == 401
    assert answer["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_scheme_may_be_in_any_case(scheme: str) -> None:
    # RFC 9110, 11.1; for access tokens and keys alike.
    user = UserFactory()
    token, (_, key) = SingleUseToken.for_user(user).access_token, ApiKey.mint(user, "x", ["read"])
    for each in (token, key):
        answer = APIClient().get("/api/v1/task/queue", HTTP_AUTHORIZATION=f"{scheme} {each}")
        assert answer.status_code == 200, answer.content


def test_a_token_is_for_its_own_user_alone() -> None:
    ada, bob = UserFactory(), UserFactory()
    assert client_of(ada).get(f"/api/v1/user/{bob.pk}").status_code == 404
