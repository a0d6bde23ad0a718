"""Mounted at /api/v1/."""

from django.urls import path

from mailqueue.subscriptions import api

urlpatterns = [
    path("subscriptions", api.SubscriptionsView.as_view()),
    path("subscriptions/<int:pk>", api.SubscriptionView.as_view()),
    path("subscriptions/<int:pk>/pause", api.PauseView.as_view()),
    path("subscriptions/<int:pk>/resume", api.ResumeView.as_view()),
]
