"""Mounted at /sandbox/ in DEBUG only: the pages ask nobody who they are."""

from django.urls import path

from mailqueue.sandbox import api, views

app_name = "sandbox"
urlpatterns = [
    path("", views.inbox, name="inbox"),
    path("newest", views.newest, name="newest"),
    path("delete", views.delete_all, name="delete"),
    path("<int:pk>", views.mail, name="mail"),
    path("<int:pk>/html", views.html, name="html"),
    path("<int:pk>/source", views.source, name="source"),
    path("<int:pk>/attachment/<int:number>", views.attachment, name="attachment"),
    path("api/messages", api.messages, name="api-messages"),
    path("api/messages/<int:pk>", api.message, name="api-message"),
]
