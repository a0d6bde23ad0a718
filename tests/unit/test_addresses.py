"""An address is what it looks like, and has a form for the wire."""

import pytest
from django.core.exceptions import ValidationError

from accounts.addresses import checked_address, must_be_sendable, wire_address

ANYWHERE = [
    ("jane@example.com", "jane@example.com"),
    ("jane+tag@sub.example.com", "jane+tag@sub.example.com"),
    ("jane@bücher.example", "jane@xn--bcher-kva.example"),
]
INTERNATIONAL = ["jürgen@example.com", "用户@example.com", "дмитрий@example.com", "josé.garcía@example.com"]
NOWHERE = [
    "", "jane", "@example.com", "jane@", "jane@@example.com", "jane doe@example.com", "<jane@example.com>",
    "jane@example..com", "jane@" + "ü" * 70 + ".example", "jane@example.com\r\nRCPT TO:<eve@example.com>",
    "ja\0ne@example.com", "ja>ne@example.com", "x" * 250 + "@example.com", "ü" * 125 + "@example.com",
    "\u017fam@example.com", "\u212aarl@example.com", "ja\u202ene@example.com", "ja\u200bne@example.com",
    "ja\u00a0ne@example.com", "ja\u2028ne@example.com", "j\u0308\x85@example.com", "\uff4aane@example.com",
    "ü@-example.com", "ü\r\n@example.com", "ü,eve@example.com", "ü>@example.com", "\ud800@example.com",
    "x" * 65 + "@example.com", "x" * 32 + "." + "y" * 32 + "@example.com", "ü" * 33 + "@example.com",
    '"' + "x" * 63 + '"@example.com',
    '"ja\x0bne"@example.com', '"ja\\\tne"@example.com', '"ja\x01ne"@example.com', '"ja\x7fne"@example.com',
]  # fmt: skip


@pytest.mark.parametrize(("address", "wire"), ANYWHERE)
def test_a_domain_goes_out_in_a_labels(address: str, wire: str) -> None:
    assert wire_address(address) == checked_address(address) == wire
    must_be_sendable(address)


@pytest.mark.parametrize("address", INTERNATIONAL)
def test_other_letters_are_for_recipients_only(address: str) -> None:
    assert checked_address(address, international=True) == address
    with pytest.raises(ValidationError):
        must_be_sendable(address)


def test_both_sides_may_be_international() -> None:
    assert checked_address("jürgen@bücher.example", international=True) == "jürgen@xn--bcher-kva.example"


def test_what_stands_before_the_at_has_64_octets() -> None:
    # RFC 5321, 4.5.3.1.1; in UTF-8 where it is not ASCII (RFC 6531, 3.3).
    for address in ("x" * 64 + "@example.com", '"' + "x" * 62 + '"@example.com'):
        assert checked_address(address) == address
    assert checked_address("ü" * 32 + "@example.com", international=True)


@pytest.mark.parametrize("address", NOWHERE)
@pytest.mark.parametrize("international", [False, True])
def test_what_is_no_address_is_refused(address: str, international: bool) -> None:
    with pytest.raises(ValidationError) as refused:
        checked_address(address, international=international)
    assert refused.value.code == "invalid_address"
