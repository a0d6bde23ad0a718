"""What `manage.py loadtest` cannot do it says, before anything is sent."""

import pytest
from django.core.management import CommandError, call_command


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--lanes", "fast=1"], "'fast' is no lane: otp, default, bulk"),
        (["--lanes", "otp=0"], "must be 1 or more"),
        (["--batch", "1001"], "a batch has 1,000 mails at most"),
        (["--count", "0"], "must be 1 or more"),
        (["--url", "http://127.0.0.1:1"], "Nothing answers at http://127.0.0.1:1: start it with `make run`."),
    ],
)
def test_what_cannot_be_done_is_said(options: list[str], complaint: str) -> None:
    with pytest.raises(CommandError) as refused:
        call_command("loadtest", *options)
    assert complaint in str(refused.value)
