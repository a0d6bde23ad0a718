"""Mounted at /api/v1/."""

from django.urls import path

from mailqueue.webhooks import api

urlpatterns = [
    path("webhooks", api.WebhooksView.as_view()),
    path("webhooks/<int:pk>", api.WebhookView.as_view()),
    path("webhooks/<int:pk>/rotate", api.RotateView.as_view()),
    path("webhooks/<int:pk>/test", api.TestView.as_view()),
    path("webhooks/<int:pk>/deliveries", api.DeliveriesView.as_view()),
    path("webhooks/<int:pk>/deliveries/<int:delivery_id>/replay", api.ReplayOneView.as_view()),
    path("webhooks/<int:pk>/replay", api.ReplayView.as_view()),
]
