"""The tasks of `tokenzoo eval`, one file each; a file is imported when its task is prepared."""

from __future__ import annotations

from importlib import import_module

from tokenzoo._core.validation import check_choice
from tokenzoo.evaluation.task import Subject, TaskOptions

# The file of each task, and the question that it answers. Each file has a function
# `prepare(name, options) -> Subject`.
TASKS = {
    "digits": "digits",
    "dense": "dense",
    "knn": "probe",
    "linear": "probe",
    "collage-vqa": "collage_vqa",
    "documents": "documents",
    "clips": "clips",
    "classify": "classify",
}
NO_MODEL = ("classify",)
"""Tasks without a model of their own, which "all" leaves out."""

OWN_IMAGES = ("digits", "collage-vqa", "documents", "clips")
"""Tasks whose images cannot be chosen."""

OWN_CONTROLS = ("fewer-frames", "smaller-frames")
"""Names of the controls that tasks have of their own, which are no recipes."""


def prepare(task: str, options: TaskOptions) -> Subject:
    """Load the model and the samples of a task.

    Raises:
        BadArgumentError: there is no such task, or its options do not fit.
        MissingDependencyError: the task needs a library that is not installed.
    """
    check_choice("task", task, *TASKS)
    return import_module(f"{__name__}.{TASKS[task]}").prepare(task, options)
