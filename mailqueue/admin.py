"""Celery's periodic jobs and their results, in the look of the rest of the admin."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django_celery_beat import admin as beat
from django_celery_beat import models as beat_models
from django_celery_results import models as results_models
from unfold.admin import ModelAdmin
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

for model in (
    beat_models.PeriodicTask,
    beat_models.IntervalSchedule,
    beat_models.CrontabSchedule,
    beat_models.SolarSchedule,
    beat_models.ClockedSchedule,
    results_models.TaskResult,
    results_models.GroupResult,  # nothing here makes groups
):
    admin.site.unregister(model)


class TaskSelectWidget(UnfoldAdminSelectWidget, beat.TaskSelectWidget):
    pass


class PeriodicTaskForm(beat.PeriodicTaskForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["task"].widget = UnfoldAdminTextInputWidget()
        self.fields["regtask"].widget = TaskSelectWidget()


@admin.register(beat_models.PeriodicTask)
class PeriodicTaskAdmin(beat.PeriodicTaskAdmin, ModelAdmin):
    form = PeriodicTaskForm
    date_hierarchy = None
    list_display = ("name", "task", "enabled", "scheduler", "last_run_at", "total_run_count")
    list_filter = ("enabled",)


@admin.register(beat_models.IntervalSchedule)
class IntervalScheduleAdmin(ModelAdmin):
    pass


@admin.register(beat_models.CrontabSchedule)
class CrontabScheduleAdmin(beat.CrontabScheduleAdmin, ModelAdmin):
    inlines = ()


@admin.register(beat_models.SolarSchedule)
class SolarScheduleAdmin(ModelAdmin):
    pass


@admin.register(beat_models.ClockedSchedule)
class ClockedScheduleAdmin(beat.ClockedScheduleAdmin, ModelAdmin):
    inlines = ()


@admin.register(results_models.TaskResult)
class TaskResultAdmin(ModelAdmin):
    """A tick a second makes many rows: no filter that looks for DISTINCT values, no date hierarchy."""

    list_display = ("periodic_task_name", "task_name", "status", "date_done", "worker")
    list_filter = ("status",)
    search_fields = ("task_id__exact", "task_name__startswith", "periodic_task_name__startswith")
    show_full_result_count = False
    fields = (
        ("task_name", "periodic_task_name"),
        ("status", "worker"),
        "result",
        "traceback",
        ("date_started", "date_done"),
        "task_id",
    )

    def has_add_permission(self, _request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, *_: Any) -> bool:
        return False
