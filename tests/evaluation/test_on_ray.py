"""A sweep on a Ray cluster of two workers: the rows of one process, also when a worker is killed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tokenzoo.errors import BadArgumentError, MissingDependencyError
from tokenzoo.evaluation import Row, Subject, TaskOptions, jobs, run
from tokenzoo.evaluation.on_ray import run_on_ray
from tokenzoo.evaluation.tasks import prepare

OPTIONS = TaskOptions(samples=3)
WANTED = jobs(["tome", "random", "fastv"], [16], seeds=2)


@pytest.fixture(scope="module")
def digits() -> Subject:
    return prepare("digits", OPTIONS)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        yield ray
        ray.shutdown()


def sorted_rows(rows: list[Row]) -> list[Row]:
    return sorted((replace(row, time=[]) for row in rows), key=lambda row: row.key.label)


def kill_a_worker() -> None:
    psutil = pytest.importorskip("psutil")
    children = psutil.Process().children(recursive=True)
    workers = [child for child in children if child.name().startswith("ray::_row")]
    assert workers
    workers[0].kill()


def test_the_rows_of_one_process_also_when_a_worker_is_killed(
    two_workers: Any, digits: Subject
) -> None:
    expected = list(run(digits, WANTED, rounds=0))
    first = expected[1].key
    found = [row for row in expected if row.key == first]
    for number, row in enumerate(run_on_ray(digits, OPTIONS, WANTED, rounds=0, done=[first])):
        found.append(row)
        if number == 0:
            kill_a_worker()
    assert sorted_rows(found) == sorted_rows(expected)
    assert two_workers.is_initialized()  # it was not started by the sweep


def test_a_worker_with_other_images(two_workers: Any, digits: Subject) -> None:
    elsewhere = replace(digits, facts={**digits.facts, "seed": 5})
    with pytest.raises(BadArgumentError, match="differs on a worker"):
        list(run_on_ray(elsewhere, OPTIONS, WANTED, rounds=0))


def test_more_threads_than_the_cluster_has(two_workers: Any, digits: Subject) -> None:
    with pytest.raises(BadArgumentError, match=r"threads=64.*at most 2"):
        list(run_on_ray(digits, OPTIONS, WANTED, rounds=0, threads=64))


def test_without_ray(monkeypatch: pytest.MonkeyPatch, digits: Subject) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"tokenzoo\[ray\]"):
        list(run_on_ray(digits, OPTIONS, WANTED))
