"""Users and their SMTP accounts in the admin. No password, token or sealed value is ever shown."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from rest_framework_simplejwt.token_blacklist.models import BlacklistedToken, OutstandingToken
from unfold.admin import ModelAdmin
from unfold.forms import (
    AdminPasswordChangeForm,
    AuthenticationForm,
    UserChangeForm,
    UserCreationForm,
)
from unfold.utils import display_for_label
from unfold.widgets import UnfoldAdminPasswordWidget

from accounts import login
from accounts.addresses import must_be_sendable
from accounts.api.authentication import forget
from accounts.caller import address_of
from accounts.keys import ApiKey
from accounts.models import AccountChange, AccountState, SmtpAccount, User
from accounts.quota import used_today

STATE_COLOURS = {
    AccountState.UNVERIFIED.label: "info",
    AccountState.ACTIVE.label: "success",
    AccountState.PAUSED.label: "warning",
    AccountChange.RESUMED.label: "success",
}

for shown_by_others in (Group, OutstandingToken, BlacklistedToken):
    admin.site.unregister(shown_by_others)  # the token pages would show refresh tokens


class LoginForm(AuthenticationForm):
    """Counts wrong passwords together with those of the API."""

    def clean(self) -> dict[str, Any]:
        email, address = self.cleaned_data.get("username"), address_of(self.request)
        if not email or not self.cleaned_data.get("password"):
            unfinished: dict[str, Any] = super().clean()  # no attempt, so neither wrong nor right
            return unfinished
        verdict = login.begin(email, address)
        if not verdict.granted:
            raise forms.ValidationError(
                f"Too many wrong passwords. Try again in {verdict.wait} s.", "throttled"
            )
        try:
            cleaned: dict[str, Any] = super().clean()
        except forms.ValidationError:
            login.failed(address)
            raise
        login.succeeded(email, address)
        return cleaned


admin.site.login_form = LoginForm


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):
    filter_horizontal = ()


def _label(account: SmtpAccount) -> SafeString:
    return SafeString(display_for_label(AccountState(account.state).label, "", STATE_COLOURS))


class NewUserForm(UserCreationForm):
    usable_password = None

    class Meta:
        model = User
        fields = ("email",)

    def clean_email(self) -> str:
        """Mail comes from it, until the account says otherwise."""
        must_be_sendable(self.cleaned_data["email"])
        return str(self.cleaned_data["email"])


class ChangedUserForm(UserChangeForm):
    class Meta:
        model = User
        fields = "__all__"


@admin.register(User)
class UserAdmin(DjangoUserAdmin[User], ModelAdmin):
    form = ChangedUserForm
    add_form = NewUserForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("email", "is_active", "is_staff", "relay", "shown_state", "created_at")
    list_select_related = ("smtp",)
    list_filter = ("is_active", "is_staff")
    search_fields = ("email__startswith",)
    search_help_text = "How the address begins"
    ordering = ("-id",)
    sortable_by = ("email",)
    show_full_result_count = False
    readonly_fields = ("last_login", "created_at", "mail_tasks", "api_keys", "relay", "accepted_today")
    filter_horizontal = ()
    autocomplete_fields = ("groups",)
    actions = ("close",)
    fieldsets = (
        (None, {"fields": ("email", "password", "is_active", "relay", "mail_tasks", "api_keys")}),
        ("Quota", {"fields": ("daily_quota", "accepted_today"), "classes": ("tab",)}),
        ("Permissions", {"fields": ("is_staff", "is_superuser", "groups"), "classes": ("tab",)}),
        ("Times", {"fields": ("created_at", "last_login"), "classes": ("tab",)}),
    )
    add_fieldsets = ((None, {"fields": ("email", "password1", "password2")}),)

    def has_delete_permission(self, *_: Any) -> bool:
        """A user is closed; the ledger keeps what was sent."""
        return False

    def save_model(self, request: HttpRequest, obj: User, form: forms.ModelForm[User], change: bool) -> None:
        with transaction.atomic():
            super().save_model(request, obj, form, change)
            if change and "is_active" in form.changed_data and not obj.is_active:
                obj.close()

    @admin.action(description="Close: deactivate, and cancel what waits", permissions=["change"])
    def close(self, request: HttpRequest, users: QuerySet[User]) -> None:
        open_users = users.filter(is_active=True).exclude(email=request.user.get_username())
        with transaction.atomic():
            for user in open_users:
                user.close()
        self.message_user(request, f"{len(open_users)} closed.", messages.SUCCESS)

    @admin.display(description="SMTP account")
    def relay(self, user: User) -> SafeString:
        address = reverse("admin:accounts_smtpaccount_change", args=[user.pk])
        return format_html('<a class="text-link" href="{}">{}</a>', address, user.smtp)

    @admin.display(description="mail goes out")
    def shown_state(self, user: User) -> SafeString:
        return _label(user.smtp)

    @admin.display(description="handed over today (UTC), if there is a quota")
    def accepted_today(self, user: User) -> int:
        return used_today(user, timezone.now())

    @admin.display(description="API keys")
    def api_keys(self, user: User) -> SafeString:
        address = reverse("admin:accounts_apikey_changelist", query={"owner__id__exact": user.pk})
        return format_html('<a class="text-link" href="{}">Show them</a>', address)

    @admin.display(description="mail tasks")
    def mail_tasks(self, user: User) -> SafeString:
        address = reverse("admin:tasks_mailtask_changelist", query={"owner__id__exact": user.pk})
        return format_html('<a class="text-link" href="{}">Show them</a>', address)


class SmtpAccountForm(forms.ModelForm[SmtpAccount]):
    new_password = forms.CharField(
        required=False,
        strip=False,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}),
        help_text="Left empty, the one that is kept stays. It is never shown.",
    )

    class Meta:
        model = SmtpAccount
        fields = ("host", "port", "username", "security", "from_email", "max_connections")

    def clean_from_email(self) -> str:
        must_be_sendable(self.cleaned_data["from_email"])
        return str(self.cleaned_data["from_email"])

    def clean_port(self) -> int:
        port = int(self.cleaned_data["port"])
        if not 1 <= port <= 65535:
            raise forms.ValidationError("A port is between 1 and 65535.")
        return port


@admin.register(SmtpAccount)
class SmtpAccountAdmin(ModelAdmin):
    form = SmtpAccountForm
    list_display = ("owner", "host", "port", "username", "shown_state", "reason", "paused_until")
    list_select_related = ("owner",)
    list_filter = ("state", "security")
    search_fields = ("owner__email__startswith", "host__startswith")
    search_help_text = "How the owner's address or the host begins"
    ordering = ("-owner_id",)
    sortable_by = ("host",)
    show_full_result_count = False
    readonly_fields = ("owner", "shown_state", "reason", "paused_until", "faults", "history")
    actions = ("reopen",)
    fieldsets = (
        (None, {"fields": (("owner", "shown_state"), "reason", ("paused_until", "faults"))}),
        ("History", {"fields": ("history",), "classes": ("tab",)}),
        (
            "Relay",
            {
                "description": "With an empty host, mail goes through the default relay. "
                "Addresses are checked when a worker connects.",
                "fields": (
                    ("host", "port"),
                    ("username", "new_password"),
                    ("security", "max_connections"),
                    "from_email",
                ),
            },
        ),
    )

    def has_add_permission(self, *_: Any) -> bool:
        """It comes with its user."""
        return False

    def has_delete_permission(self, *_: Any) -> bool:
        return False

    @admin.display(description="state")
    def shown_state(self, account: SmtpAccount) -> SafeString:
        return _label(account)

    @admin.display(description="paused and resumed")
    def history(self, account: SmtpAccount) -> SafeString:
        """Not an inline: this page's form is about the settings, and nobody edits what has happened."""
        rows = (
            (
                date_format(event.at, "SHORT_DATETIME_FORMAT"),
                SafeString(display_for_label(AccountChange(event.what).label, "", STATE_COLOURS)),
                event.reason,
                f"until {date_format(event.until, 'SHORT_DATETIME_FORMAT')}" if event.until else "",
            )
            for event in account.events.all()
        )
        cell = '<td class="pr-4 py-1 align-top{}">{{}}</td>'
        row = cell.format(" whitespace-nowrap") * 2 + cell.format("") + cell.format(" whitespace-nowrap")
        shown = format_html_join("", f"<tr>{row}</tr>", rows)
        return format_html("<table>{}</table>", shown) if shown else SafeString("—")

    def save_model(
        self, request: HttpRequest, obj: SmtpAccount, form: forms.ModelForm[SmtpAccount], change: bool
    ) -> None:
        if form.cleaned_data["new_password"]:
            obj.password = form.cleaned_data["new_password"]
        if set(form.changed_data) & {"host", "port", "username", "security", "new_password"}:
            obj.reopen()
        super().save_model(request, obj, form, change)

    @admin.action(description="Reopen: forget what went wrong and try again", permissions=["change"])
    def reopen(self, request: HttpRequest, accounts: QuerySet[SmtpAccount]) -> None:
        with transaction.atomic():
            # Ordered and locked, for couriers write these rows meanwhile; none of the joins for the list.
            for account in accounts.select_related(None).select_for_update().order_by("pk"):
                account.reopen("Staff reopened it.").save(update_fields=SmtpAccount.REOPENED)
        self.message_user(request, f"{len(accounts)} reopened.", messages.SUCCESS)


@admin.register(ApiKey)
class ApiKeyAdmin(ModelAdmin):
    """To see who may do what, and to revoke it. Keys are made by their owners: nobody else is to see one."""

    list_display = ("owner", "name", "prefix", "shown_scopes", "created_at", "last_used_at", "expires_at")
    list_select_related = ("owner",)
    fields = ("owner", "name", "prefix", "shown_scopes", "created_at", "last_used_at", "expires_at")
    search_fields = ("owner__email__startswith", "prefix__startswith", "name__startswith")
    search_help_text = "How the owner's address, the key or its name begins"
    ordering = ("-id",)
    sortable_by = ("last_used_at",)
    show_full_result_count = False

    def has_add_permission(self, *_: Any) -> bool:
        return False

    def has_change_permission(self, *_: Any) -> bool:
        return False

    @admin.display(description="scopes")
    def shown_scopes(self, key: ApiKey) -> str:
        return ", ".join(key.scopes)

    def delete_model(self, request: HttpRequest, obj: ApiKey) -> None:
        super().delete_model(request, obj)
        forget(obj.owner_id)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        owners = {key.owner_id for key in queryset}
        super().delete_queryset(request, queryset)
        for owner in owners:
            forget(owner)
