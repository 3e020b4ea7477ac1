"""Evaluation: what a recipe keeps of a model's answers, against what it saves.

    subject = tasks.prepare("digits", TaskOptions())
    rows = list(run(subject, jobs(["evoprune", "random"], [0.25, 16])))

A task (`tasks/`) makes a `Subject`: a bare model, samples, and how each answer is scored. `run` attaches
each recipe to the model, scores every sample and measures the time. A row holds the scores of all samples,
so that two recipes can be compared on the same ones (`statistics`). `ResultsFile` keeps rows as JSON lines
and lets an interrupted sweep go on.
"""

from tokenzoo.evaluation.results import Key, ResultsFile, Row
from tokenzoo.evaluation.sweep import Job, jobs, run
from tokenzoo.evaluation.task import Outcome, Subject, TaskOptions

__all__ = ["Job", "Key", "Outcome", "ResultsFile", "Row", "Subject", "TaskOptions", "jobs", "run"]
