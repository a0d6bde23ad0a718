"""Users, below /api/v1/."""

from django.urls import path

from accounts.api import keys, signup, views

urlpatterns = [
    path("register", views.RegisterView.as_view()),
    path("login", views.LoginView.as_view()),
    path("token/refresh", views.RefreshView.as_view()),
    path("user/<int:pk>", views.UserView.as_view()),
    path("auth/signup", signup.SignupView.as_view()),
    path("auth/deregister", signup.DeregisterView.as_view()),
    path("keys", keys.KeysView.as_view()),
    path("keys/<int:pk>", keys.KeyView.as_view()),
]
