"""Every address of the service, where the contract says it is."""

from django.conf import settings
from django.contrib import admin
from django.urls import include, path, re_path

from accounts.api import problems
from accounts.api.problems import reads_only
from config import health, metrics
from config.openapi import DocsView, SchemaView
from mailqueue import api as mailqueue_api
from mailqueue import dashboard
from mailqueue.otp.api import VerifyView
from mailqueue.subscriptions.api import ContentsView
from mailqueue.subscriptions.pages import unsubscribe
from mailqueue.typed import AnyTaskView, CancelAnyView, ResolveAnyView, RetryAnyView, TypedTaskView
from tasks.api import suppressions, templates

handler400 = "accounts.api.problems.bad_request"
handler404 = "accounts.api.problems.not_found"
handler500 = "accounts.api.problems.server_error"

urlpatterns = [
    # First, for most calls go there, and each pattern before it would be tried.
    path("api/v1/task/", include("tasks.api.urls")),
    path("", reads_only(dashboard.page)),
    path("dashboard.json", reads_only(dashboard.figures), name="dashboard-figures"),
    path("admin/", admin.site.urls),
    path("healthz/live", reads_only(health.live)),
    path("healthz/ready", reads_only(health.ready)),
    path("healthz/ping", reads_only(health.ping)),
    path("health/ping", reads_only(health.ping)),
    path("health/metrics", reads_only(health.metrics)),
    path("metrics", reads_only(metrics.metrics)),
    path("stats", mailqueue_api.StatsView.as_view()),
    path("api/schema", SchemaView.as_view(), name="schema"),
    path("api/docs", DocsView.as_view(url_name="schema"), name="docs"),
    path("api/v1/", include("accounts.api.urls")),
    path("api/v1/user/<int:pk>/smtp/test", mailqueue_api.SmtpTestView.as_view()),
    path("api/v1/task/", TypedTaskView.as_view()),
    # The same without the slash: a redirect would lose the body.
    path("api/v1/task", TypedTaskView.as_view(schema=None)),
    path("api/v1/task/<int:pk>", AnyTaskView.as_view(), name="task"),
    path("api/v1/task/<int:pk>/cancel", CancelAnyView.as_view()),
    path("api/v1/task/<int:pk>/retry", RetryAnyView.as_view()),
    path("api/v1/task/<int:pk>/resolve", ResolveAnyView.as_view()),
    path("api/v1/task/verify", VerifyView.as_view()),
    path("api/v1/workers", mailqueue_api.WorkersView.as_view()),
    path("api/v1/task/subscriptionContent", ContentsView.as_view()),
    path("api/v1/templates", templates.TemplatesView.as_view()),
    path("api/v1/templates/<str:name>", templates.TemplateView.as_view()),
    path("api/v1/templates/<str:name>/versions", templates.VersionsView.as_view()),
    path("api/v1/templates/<str:name>/rollback", templates.RollbackView.as_view()),
    path("api/v1/templates/<str:name>/preview", templates.PreviewView.as_view()),
    path("api/v1/suppressions", suppressions.SuppressionsView.as_view()),
    path("api/v1/suppressions/<str:entry>", suppressions.SuppressionView.as_view()),
    path("api/v1/", include("mailqueue.webhooks.urls")),
    path("api/v1/", include("mailqueue.subscriptions.urls")),
    path("unsubscribe/<str:token>", unsubscribe),
    # After everything: an unknown address answers problem+json, with DEBUG as without; but not where pages are.
    re_path(r"^(?!(?:admin|sandbox)(?:/|$)|static/)", problems.unknown_route),
]

if settings.DEBUG:
    urlpatterns += [path("sandbox/", include("mailqueue.sandbox.urls"))]
