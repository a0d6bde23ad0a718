"""Mounted at /api/v1/subscriptions."""

from django.urls import path

from mailqueue.subscriptions import api

urlpatterns = [
    path("", api.SubscriptionsView.as_view()),
    path("/<int:pk>", api.SubscriptionView.as_view()),
    path("/<int:pk>/pause", api.PauseView.as_view()),
    path("/<int:pk>/resume", api.ResumeView.as_view()),
]
