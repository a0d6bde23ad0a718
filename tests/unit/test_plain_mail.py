"""The short way to read a mail says what the serializer says, or leaves it to the serializer."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounts.api.parsing import refuse_unstorable
from tasks.api.fields import LONGEST_BODY
from tasks.api.mails import EnqueueSerializer, plain_mail

A_MAIL = {"recipient_email": "jane@example.com", "subject": "hello", "body": "Hello."}
ADDRESSES = st.one_of(
    st.emails(),
    st.from_regex(r"[A-Za-z0-9_+-]{30,34}(\.[A-Za-z0-9_+-]{30,34}){0,1}@[a-z]{1,9}\.com", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_+.-]{1,20}@[a-z0-9.-]{1,30}", fullmatch=True),
    st.text(max_size=20),
)
VALUES = st.one_of(
    st.none(), st.integers(), st.just(""), st.text(max_size=20), st.lists(st.text(), max_size=1)
)
MAILS = st.fixed_dictionaries(
    {},
    optional={
        "recipient_email": st.one_of(ADDRESSES, VALUES),
        "subject": st.one_of(st.text(max_size=30), st.from_regex(r"[ -~]{0,30}", fullmatch=True), VALUES),
        "body": st.one_of(st.text(max_size=30), VALUES),
        "html_body": st.one_of(st.text(max_size=30), VALUES),
        "lane": st.sampled_from(["otp", "bulk", "fast"]),
        "unknown": VALUES,
    },
)


@given(MAILS)
def test_what_is_read_the_short_way_reads_the_same_the_long_way(mail: dict[str, Any]) -> None:
    short = plain_mail(mail)
    if short is not None:
        refuse_unstorable(mail)
        assert short == EnqueueSerializer()._any_mail(mail)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"html_body": "<p>Hello.</p>"},
        {"html_body": ""},
        {"recipient_email": "jane.doe+news@mail.example.co.uk"},
        {"recipient_email": "x" * 40 + "." + "y" * 23 + "@example.com"},
        {"body": "Grüße\r\n😀"},
    ],
)
def test_most_mails_take_the_short_way(changes: dict[str, Any]) -> None:
    assert plain_mail(A_MAIL | changes) == EnqueueSerializer()._any_mail(A_MAIL | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"recipient_email": "jane@-example.com"},
        {"recipient_email": "jane@example..com"},
        {"recipient_email": "jane@example"},
        {"recipient_email": "x" * 64 + "@" + "a." * 100 + "example.com"},
        {"recipient_email": "jane@example.com\n"},
        {"recipient_email": "x" * 65 + "@example.com"},
        {"recipient_email": "x" * 40 + "." + "y" * 24 + "@example.com"},
        {"subject": ""},
        {"subject": "x" * 999},
        {"subject": "a\tb"},
        {"body": ""},
        {"body": "x" * (LONGEST_BODY + 1)},
        {"html_body": "x" * (LONGEST_BODY + 1)},
        {"html_body": None},
        {"body": "a\0b"},
        {"body": "\ud800"},
        {"html_body": "a\0b"},
        {"html_body": "\ud800"},
        {"lane": "otp"},
        {"unknown": 1},
    ],
)
def test_what_is_not_plain_goes_the_long_way(changes: dict[str, Any]) -> None:
    assert plain_mail(A_MAIL | changes) is None


@pytest.mark.parametrize("mail", [None, 7, [], "x", {}, [A_MAIL]])
def test_what_is_no_mail_goes_the_long_way(mail: Any) -> None:
    assert plain_mail(mail) is None
