"""A sweep on Ray: the jobs of a task run on all workers of a cluster, and give the rows of `sweep.run`."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch

from tokenzoo._core.needs import need
from tokenzoo.errors import BadArgumentError, TokenzooError
from tokenzoo.evaluation.results import Key, Row
from tokenzoo.evaluation.sweep import Bare, Job, bare_of, bare_row, row_of
from tokenzoo.evaluation.task import Subject, TaskOptions
from tokenzoo.evaluation.tasks import prepare

RETRIES = 3
"""Times that a job whose worker has died runs again."""


def run_on_ray(
    subject: Subject,
    options: TaskOptions,
    wanted: Sequence[Job],
    *,
    rounds: int = 5,
    done: Container[Key] = (),
    threads: int = 1,
) -> Iterator[Row]:
    """Yield the rows of `sweep.run` as they are measured, in any order; only their times differ.

    The cluster is that of the environment variable RAY_ADDRESS, or one of this machine, which is started
    and stopped. Each worker prepares the task once; it needs the same libraries, and the images under the
    same path.

    Args:
        subject: the task, as it was prepared here.
        options: of the task, from which the workers prepare it.
        wanted: the jobs.
        rounds: of the timing; 0: no time is measured.
        done: keys of rows that exist.
        threads: of torch, for each job; Ray counts as many CPUs.

    Raises:
        MissingDependencyError: Ray is not installed.
        BadArgumentError: a worker has other images, or the cluster has fewer CPUs than `threads`.
        TokenzooError: the workers that ran a job died, `RETRIES` + 1 times.
    """
    ray = need("ray", "ray")
    started = not ray.is_initialized()
    if started:
        _connect(ray)
    pending: dict[Any, Job | None] = {}
    try:
        _check_cpus(ray, threads)
        remote = ray.remote(num_cpus=threads, max_retries=RETRIES)(_row)
        missing: list[Job | None] = [job for job in wanted if job.key(subject) not in done]
        if Key(subject.task, subject.model_name) not in done:
            missing.insert(0, None)
        facts = dict(subject.facts)
        for job in missing:
            pending[remote.remote(subject.task, options, facts, job, rounds, threads)] = job
        while pending:
            (first,), _ = ray.wait(list(pending), num_returns=1)
            yield _result(ray, first, pending.pop(first))
    finally:
        for task in pending:
            ray.cancel(task)
        if started:
            ray.shutdown()


def _connect(ray: Any) -> None:
    """Connect to the cluster of RAY_ADDRESS, or start one that only this machine can reach."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports over the network
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False)
    else:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )


def _check_cpus(ray: Any, threads: int) -> None:
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    most = max(cpus, default=0)
    if threads > most:
        raise BadArgumentError(
            f"threads={threads}: a job would wait for ever, as no machine of the Ray cluster has more "
            f"than {most} CPUs; it must be at most {most}"
        )


def _result(ray: Any, task: Any, job: Job | None) -> Row:
    """Wait for a row; raise what the worker raised."""
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        name = "the bare model" if job is None else f"{job.recipe!r} at keep={job.keep}"
        raise TokenzooError(
            f"the worker that ran {name} died {RETRIES + 1} times ({type(error).__name__}), perhaps for "
            "want of memory; the same command goes on with what is missing"
        ) from error


def _row(
    task: str,
    options: TaskOptions,
    facts: dict[str, Any],
    job: Job | None,
    rounds: int,
    threads: int,
) -> Row:
    """Measure one row, in a worker; None: that of the bare model."""
    torch.set_num_threads(threads)
    subject, bare = _prepared(task, options)
    if dict(subject.facts) != facts:
        raise BadArgumentError(
            f"the task {task} differs on a worker: {dict(subject.facts)}, here {facts}; each machine "
            "needs the same images under the same path"
        )
    return bare_row(subject, bare) if job is None else row_of(subject, job, bare, rounds)


@lru_cache(maxsize=1)
def _prepared(task: str, options: TaskOptions) -> tuple[Subject, Bare]:
    """Load a task, once in each worker."""
    subject = prepare(task, options)
    return subject, bare_of(subject)
