"""Mounted at /api/v1/webhooks."""

from django.urls import path

from mailqueue.webhooks import api

urlpatterns = [
    path("", api.WebhooksView.as_view()),
    path("/<int:pk>", api.WebhookView.as_view()),
    path("/<int:pk>/rotate", api.RotateView.as_view()),
    path("/<int:pk>/test", api.TestView.as_view()),
    path("/<int:pk>/deliveries", api.DeliveriesView.as_view()),
    path("/<int:pk>/deliveries/<int:delivery_id>/replay", api.ReplayOneView.as_view()),
    path("/<int:pk>/replay", api.ReplayView.as_view()),
]
