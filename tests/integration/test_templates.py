"""Templates over HTTP: kept, changed, read, tried out, and mails made from them."""

import re
from email import message_from_bytes, policy
from typing import Any
from urllib.parse import quote

import pytest
from django.test import Client
from rest_framework.test import APIClient

from tasks import templates, versions
from tasks.models import MailTask, MailTemplate, TemplateVersion
from tests.factories import UserFactory, client_of

pytestmark = pytest.mark.django_db

TEMPLATES = "/api/v1/templates"
WELCOME = {"subject": "Welcome, {{ name }}", "html_body": "<p>Hello <b>{{ name }}</b></p>"}
MAIL = {"recipient_email": "jane@example.com", "template": "welcome", "context": {"name": "<Jane>"}}


@pytest.fixture
def welcome(api: APIClient) -> dict[str, Any]:
    return make(api).json()


def make(api: APIClient, **changes: Any) -> Any:
    return api.post(TEMPLATES, {"name": "welcome", **WELCOME} | changes, format="json")


def enqueue(api: APIClient, **changes: Any) -> Any:
    return api.post("/api/v1/task/enqueue", MAIL | changes, format="json")


def complaints(response: Any) -> list[tuple[str, str]]:
    assert response.status_code == 400, response.content
    return [(each["field"], each["code"]) for each in response.json()["errors"]]


# Kept -------------------------------------------------------------------------------------------------


def test_a_new_template_is_its_version_1(api: APIClient) -> None:
    made = make(api)
    assert made.status_code == 201
    assert made.json().items() >= {"name": "welcome", "version": 1, "body": "", **WELCOME}.items()
    assert api.get(f"{TEMPLATES}/welcome").json() == made.json()
    (listed,) = api.get(TEMPLATES).json()["results"]
    assert (listed["name"], listed["version"]) == ("welcome", 1)


def test_a_change_is_a_new_version_and_the_old_one_stays(api: APIClient, welcome: dict[str, Any]) -> None:
    changed = api.put(f"{TEMPLATES}/welcome", {"subject": "Hi", "body": "Hi"}, format="json").json()
    assert (changed["version"], changed["body"], changed["html_body"]) == (2, "Hi", "")
    assert api.get(f"{TEMPLATES}/welcome").json() == changed
    assert api.get(f"{TEMPLATES}/welcome?version=1").json() == welcome
    assert api.get(f"{TEMPLATES}/welcome?version=3").status_code == 404
    assert complaints(api.get(f"{TEMPLATES}/welcome?version=x")) == [("version", "invalid")]


def test_its_versions_are_listed(api: APIClient, welcome: dict[str, Any]) -> None:
    api.put(f"{TEMPLATES}/welcome", {"subject": "Hi", "body": "Hi"}, format="json")
    listed = api.get(f"{TEMPLATES}/welcome/versions").json()["results"]
    assert [(each["version"], each["subject"]) for each in listed] == [(2, "Hi"), (1, "Welcome, {{ name }}")]
    assert api.get(f"{TEMPLATES}/other/versions").status_code == 404


def test_a_rollback_is_a_new_version_that_says_what_an_older_one_said(
    api: APIClient, welcome: dict[str, Any]
) -> None:
    api.put(f"{TEMPLATES}/welcome", {"subject": "Hi", "body": "Hi"}, format="json")
    rolled = api.post(f"{TEMPLATES}/welcome/rollback", {"version": 1}, format="json").json()
    assert rolled.items() >= {"version": 3, "body": "", **WELCOME}.items()
    assert api.get(f"{TEMPLATES}/welcome").json() == rolled
    assert api.post(f"{TEMPLATES}/welcome/rollback", {"version": 9}, format="json").status_code == 404
    assert complaints(api.post(f"{TEMPLATES}/welcome/rollback", {}, format="json")) == [
        ("version", "required")
    ]


def test_staff_see_what_a_template_says(api: APIClient, welcome: dict[str, Any]) -> None:
    staff = Client()
    staff.force_login(UserFactory(is_staff=True, is_superuser=True))
    page = staff.get("/admin/tasks/mailtemplate/?q=welc").content.decode()
    assert f"/admin/tasks/mailtemplate/{welcome['id']}/change/" in page
    assert "welcome" not in staff.get("/admin/tasks/mailtemplate/?q=other").content.decode()
    shown = staff.get(f"/admin/tasks/mailtemplate/{welcome['id']}/change/").content.decode()
    assert "Welcome, {{ name }}" in shown
    assert "&lt;p&gt;Hello &lt;b&gt;{{ name }}" in shown
    (frame,) = re.findall(r"<iframe[^>]*>", shown)
    assert 'sandbox=""' in frame
    assert "default-src &#x27;none&#x27;" in frame
    assert (
        staff.post(f"/admin/tasks/mailtemplate/{welcome['id']}/delete/", {"post": "yes"}).status_code == 403
    )


def test_the_oldest_versions_leave(
    api: APIClient, welcome: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "VERSIONS_KEPT", 2)
    for _ in range(3):
        api.put(f"{TEMPLATES}/welcome", WELCOME, format="json")
    assert list(TemplateVersion.objects.order_by("number").values_list("number", flat=True)) == [3, 4]


def test_a_deleted_template_is_gone_with_its_versions(api: APIClient, welcome: dict[str, Any]) -> None:
    assert api.delete(f"{TEMPLATES}/welcome").status_code == 204
    assert api.get(f"{TEMPLATES}/welcome").status_code == 404
    assert api.put(f"{TEMPLATES}/welcome", WELCOME, format="json").status_code == 404
    assert not TemplateVersion.objects.exists()
    assert complaints(enqueue(api)) == [("template", "unknown_template")]


def test_a_name_is_an_owners_own(api: APIClient, welcome: dict[str, Any]) -> None:
    again = make(api)
    assert (again.status_code, again.json()["code"]) == (409, "name_taken")
    other = client_of(UserFactory())
    assert complaints(enqueue(other)) == [("template", "unknown_template")]
    assert make(other, subject="other").status_code == 201
    assert api.get(f"{TEMPLATES}/welcome").json() == welcome


def test_an_owner_has_so_many_and_no_more(api: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "TEMPLATES_PER_OWNER", 2)
    assert [make(api, name=name).status_code for name in "abc"] == [201, 201, 409]
    assert MailTemplate.objects.count() == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "Not This"}, ("name", "invalid_name")),
        ({"name": "a/b"}, ("name", "invalid_name")),
        ({"html_body": ""}, ("body", "required")),
        ({"subject": ""}, ("subject", "blank")),
        ({"subject": "a\nBcc: x@example.com"}, ("subject", "control_character")),
        ({"subject": "{{ a"}, None),
        ({"subject": "{{ a|safe }}"}, ("subject", "template_error")),
        ({"body": "{% include 'x' %}"}, ("body", "template_error")),
        ({"html_body": "{% for %}"}, ("html_body", "template_error")),
        ({"html_body": "x" * 100_001}, ("html_body", "max_length")),
        ({"html_body": "{{ x }}" * 2_001}, ("html_body", "template_error")),
        ({"body": 5}, ("body", "invalid")),
    ],
)
def test_what_is_wrong_with_a_template_is_named(api: APIClient, changes: Any, expected: Any) -> None:
    response = make(api, **changes)
    if expected is None:
        assert response.status_code == 201
    else:
        assert complaints(response) == [expected]
        assert not MailTemplate.objects.exists()


def test_the_line_of_a_mistake_is_named(api: APIClient) -> None:
    assert (
        "line 3: Invalid block tag: 'load'"
        in make(api, body="a\nb\n{% load x %}").json()["errors"][0]["detail"]
    )


# Tried out --------------------------------------------------------------------------------------------


def preview(api: APIClient, **body: Any) -> Any:
    return api.post(f"{TEMPLATES}/welcome/preview", body, format="json")


def test_a_preview_shows_what_a_mail_would_say(api: APIClient, welcome: dict[str, Any]) -> None:
    api.put(f"{TEMPLATES}/welcome", {"subject": "Hi {{ name }}", "body": "Hi {{ name }}"}, format="json")
    assert preview(api, context={"name": "<Jane>"}).json() == {
        "version": 2, "subject": "Hi <Jane>", "body": "Hi <Jane>", "html_body": "",
    }  # fmt: skip
    assert preview(api, context={"name": "<Jane>"}, version=1).json() == {
        "version": 1,
        "subject": "Welcome, <Jane>",
        "body": "Hello <Jane>\n",
        "html_body": "<p>Hello <b>&lt;Jane&gt;</b></p>",
    }
    assert preview(api, version=9).status_code == 404
    assert not MailTask.objects.exists()


@pytest.mark.parametrize("way", ["preview", "enqueue", "dry run"])
@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({"name": "a\r\nBcc: x@example.com"}, ("context", "control_character")),
        ({"name": "a\u2028b"}, ("context", "control_character")),
        ({"name": "x" * 1_000}, ("context", "template_error")),
        ({"name": ["a list"]}, ("context", "template_error")),
        ({"name": "x" * 65_536}, ("context", "too_large")),
        (["no object"], ("context", "invalid")),
    ],
)
def test_a_context_that_does_not_fit_is_refused(
    api: APIClient, welcome: dict[str, Any], way: str, context: Any, expected: Any
) -> None:
    if way == "preview":
        response = preview(api, context=context)
    else:
        address = f"/api/v1/task/enqueue{'?dry_run=true' if way == 'dry run' else ''}"
        response = api.post(address, MAIL | {"context": context}, format="json")
    assert complaints(response) == [expected]
    assert not MailTask.objects.exists()


# Mails ------------------------------------------------------------------------------------------------


def test_a_mail_is_made_from_the_newest_version_and_notes_it(api: APIClient, welcome: dict[str, Any]) -> None:
    first = enqueue(api)
    assert first.status_code == 202
    api.put(f"{TEMPLATES}/welcome", {"subject": "Now", "body": "Now"}, format="json")
    second = enqueue(api)
    shown = [api.get(each["Location"]).json() for each in (first, second)]
    assert [each["template"] for each in shown] == [
        {"name": "welcome", "version": 1},
        {"name": "welcome", "version": 2},
    ]
    assert [each["subject"] for each in shown] == ["Welcome, <Jane>", "Now"]
    mail: Any = message_from_bytes(
        bytes(MailTask.objects.order_by("id")[0].content.raw), policy=policy.default
    )
    assert mail["Subject"] == "Welcome, <Jane>"
    assert mail.get_body(("html",)).get_content().strip() == "<p>Hello <b>&lt;Jane&gt;</b></p>"
    assert mail.get_body(("plain",)).get_content().strip() == "Hello <Jane>"


def test_a_mail_without_a_template_notes_none(api: APIClient) -> None:
    plain = {"recipient_email": "jane@example.com", "subject": "hello", "body": "Hello."}
    answer = api.post("/api/v1/task/enqueue", plain, format="json")
    assert api.get(answer["Location"]).json()["template"] is None


def test_all_else_goes_with_a_template(api: APIClient, welcome: dict[str, Any]) -> None:
    answer = enqueue(api, tags=["a"], lane="bulk", from_name="Ada")
    shown = api.get(answer["Location"]).json()
    assert (shown["tags"], shown["lane"], shown["from_name"]) == (["a"], "bulk", "Ada")


def said(task_id: int) -> tuple[str, str, str]:
    """Subject, text and HTML of a mail."""
    raw = bytes(MailTask.objects.get(pk=task_id).content.raw)
    mail: Any = message_from_bytes(raw, policy=policy.default)
    html = mail.get_body(("html",))
    text = mail.get_body(("plain",)).get_content().strip()
    return mail["Subject"], text, html.get_content().strip() if html else ""


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"subject": "{{ mine }}"}, ("{{ mine }}", "Hello <Jane>", "<p>Hello <b>&lt;Jane&gt;</b></p>")),
        ({"body": "{{ mine }}"}, ("Welcome, <Jane>", "{{ mine }}", "<p>Hello <b>&lt;Jane&gt;</b></p>")),
        ({"html_body": "<p>mine"}, ("Welcome, <Jane>", "mine", "<p>mine")),
        (
            {"subject": "", "body": None, "html_body": ""},
            ("Welcome, <Jane>", "Hello <Jane>", "<p>Hello <b>&lt;Jane&gt;</b></p>"),
        ),
    ],
)
def test_what_a_mail_brings_itself_takes_the_place_of_the_templates_part(
    api: APIClient, welcome: dict[str, Any], own: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    answer = enqueue(api, **own)
    assert answer.status_code == 202, answer.content
    assert said(answer.json()["task_id"]) == expected


def test_a_mails_own_subject_is_looked_at_as_ever(api: APIClient, welcome: dict[str, Any]) -> None:
    assert complaints(enqueue(api, subject="a\nBcc: x@example.com")) == [("subject", "control_character")]


def test_a_mail_may_ask_for_a_version(api: APIClient, welcome: dict[str, Any]) -> None:
    api.put(f"{TEMPLATES}/welcome", {"subject": "Now", "body": "Now"}, format="json")
    first = enqueue(api, template="welcome@1")
    assert said(first.json()["task_id"])[0] == "Welcome, <Jane>"
    assert api.get(first["Location"]).json()["template"] == {"name": "welcome", "version": 1}
    assert complaints(enqueue(api, template="welcome@3")) == [("template", "unknown_template")]
    assert complaints(enqueue(api, template="welcome@x")) == [("template", "invalid_name")]


def test_an_id_stands_for_a_name(api: APIClient, welcome: dict[str, Any]) -> None:
    pk = welcome["id"]
    assert api.get(f"{TEMPLATES}/{pk}").json() == welcome
    for reference in (pk, str(pk), f"{pk}@1"):
        answer = enqueue(api, template=reference)
        assert api.get(answer["Location"]).json()["template"] == {"name": "welcome", "version": 1}
    assert client_of(UserFactory()).get(f"{TEMPLATES}/{pk}").status_code == 404


@pytest.mark.parametrize("name", ["9" * 30, "\u0663", "a\0b", "-1", "welcome@1"])
def test_what_can_be_no_name_is_not_found(api: APIClient, welcome: dict[str, Any], name: str) -> None:
    assert api.get(f"{TEMPLATES}/{quote(name)}").status_code == 404


def test_a_context_without_a_template_is_a_mistake(api: APIClient) -> None:
    plain = {"recipient_email": "jane@example.com", "subject": "Hi {{ name }}", "body": "Hi"}
    for template in ({}, {"template": None}):
        response = api.post(
            "/api/v1/task/enqueue", plain | {"context": {"name": "Jane"}} | template, format="json"
        )
        assert complaints(response) == [("template", "required")]
    for nothing in ({"context": {}}, {"context": None, "template": None}):
        assert api.post("/api/v1/task/enqueue", plain | nothing, format="json").status_code == 202


def test_markup_without_end_is_refused_before_a_text_is_made_of_it(api: APIClient) -> None:
    many = "{% for a in l %}" + "<" * 1_000 + "{% endfor %}"
    make(api, html_body=many)
    assert complaints(enqueue(api, context={"l": [1] * 2_000})) == [("context", "template_error")]


def test_a_batch_may_mix_and_names_what_does_not_fit(api: APIClient, welcome: dict[str, Any]) -> None:
    plain = {"recipient_email": "joe@example.com", "subject": "hello", "body": "Hello."}
    messages = [
        MAIL,
        plain,
        MAIL | {"template": "nothing"},
        MAIL | {"context": {"name": "a\nb"}},
        MAIL | {"template": ["welcome"]},
        plain | {"context": {"name": "Joe"}},
    ]
    answer = api.post("/api/v1/task/enqueue/batch", {"messages": messages}, format="json")
    results = answer.json()["results"]
    assert ["task_id" in each for each in results] == [True, True, False, False, False, False]
    codes = [each["error"]["errors"][0]["code"] for each in results[2:]]
    assert codes == ["unknown_template", "control_character", "invalid_name", "required"]
    assert set(MailTask.objects.values_list("subject", flat=True)) == {"Welcome, <Jane>", "hello"}


def test_the_mails_of_a_batch_share_what_templates_may_take(api: APIClient) -> None:
    make(api, subject="x", html_body="{% for a in l %}{% for b in l %}{{ b }}{% endfor %}{% endfor %}")
    mail = MAIL | {"context": {"l": [1] * 150}}
    assert enqueue(api, **mail).status_code == 202
    answer = api.post("/api/v1/task/enqueue/batch", {"messages": [mail] * 40}, format="json")
    kept = ["task_id" in each for each in answer.json()["results"]]
    assert kept == sorted(kept, reverse=True)
    assert 5 < sum(kept) < 40


def test_a_batch_reads_a_template_once(
    api: APIClient, welcome: dict[str, Any], django_assert_max_num_queries: Any
) -> None:
    with django_assert_max_num_queries(20):
        answer = api.post("/api/v1/task/enqueue/batch", {"messages": [MAIL] * 50}, format="json")
    assert all("task_id" in each for each in answer.json()["results"])


def test_no_context_is_an_empty_one(api: APIClient, welcome: dict[str, Any]) -> None:
    for nothing in ({}, None):
        assert preview(api, context=nothing).json()["subject"] == "Welcome, "
        assert said(enqueue(api, context=nothing).json()["task_id"])[0].strip() == "Welcome,"


def test_a_dry_run_renders_the_template(api: APIClient, welcome: dict[str, Any]) -> None:
    seen = api.post("/api/v1/task/enqueue?dry_run=true", MAIL, format="json").json()
    assert [part["text"].strip() for part in seen["mail"]["parts"]] == [
        "Hello <Jane>",
        "<p>Hello <b>&lt;Jane&gt;</b></p>",
    ]
