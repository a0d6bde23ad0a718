from django.urls import path

from tasks.api import views
from tasks.api.batch import BatchView
from tasks.api.bulk import BulkView
from tasks.api.live import EventsView, TaskEventsView

urlpatterns = [
    path("enqueue", views.EnqueueView.as_view()),
    path("enqueue/batch", BatchView.as_view()),
    path("bulk", BulkView.as_view()),
    path("queue", views.QueueView.as_view()),
    path("queue/fail", views.FailedQueueView.as_view()),
    path("events", EventsView.as_view()),
    path("<int:pk>/events", TaskEventsView.as_view()),
]
