"""Does `tokenzoo tune`, which sees no labels, rank recipes as labelled accuracy does?

    python benchmarks/tune_validation.py --labelled cifar10/test.parquet \\
        --unlabelled cifar10/train.parquet --known docs/results/leaderboard.jsonl \\
        --out docs/results/tune-validation.json

Every candidate of `tune` (each recipe that fits the model, `VARIANTS` of some, the controls) is scored
twice at each budget: as `tune` scores it, by likeness to the bare model on unlabelled images, and by
accuracy on other, labelled images. `digits` has the shipped ViT; `knn` and `linear` have the packaged
ViT-S, with small images; `collage-vqa` has the small LLaVA, which is asked prompts as in `tune --prompts`.
`tune` itself runs too, and what its choice loses against the best candidate is its regret. The same command
goes on where it was stopped. `collage-vqa` has a file of its own:

    python benchmarks/tune_validation.py --only collage-vqa --images 64 \\
        --rows docs/results/tune-prompts.jsonl --out docs/results/tune-prompts.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rank_agreement import Agreement, agreement, regret
from recorded import provenance

from tokenzoo.evaluation import Job, ResultsFile, Row, Subject, TaskOptions, data, run
from tokenzoo.evaluation.answers import subject_of_prompts
from tokenzoo.evaluation.focus_vit import images_of
from tokenzoo.evaluation.models import FOCUS, normalised, vision_model
from tokenzoo.evaluation.results import OK
from tokenzoo.evaluation.summary import name_of
from tokenzoo.evaluation.target import Target
from tokenzoo.evaluation.tasks import prepare
from tokenzoo.evaluation.tasks.collage_vqa import questions_of
from tokenzoo.evaluation.tasks.probe import SIZE
from tokenzoo.evaluation.tune import VARIANTS, tune
from tokenzoo.evaluation.unlabelled import subject_of
from tokenzoo.evaluation.vqa.collages import collages
from tokenzoo.evaluation.vqa.model import load_collage_llava
from tokenzoo.evaluation.vqa.questions import KINDS
from tokenzoo.recipes.controls import CONTROLS
from tokenzoo.tools import digits
from tokenzoo.zoo import list_recipes

DIGITS, PROBES, PROMPTS = ("digits",), ("knn", "linear"), ("collage-vqa",)
SAVES = 0.99  # operations relative to bare below which a recipe saves something
# Of the 64 patches of small images 0.25 are 16, and 0.125 are 8.
RUNS = ((PROBES, 0.25), (DIGITS, 0.25), (DIGITS, 16), (PROBES, 0.125), (PROMPTS, 16))
# Images, chosen for 20 minutes of one core in all; and collages with eight questions each.
LABELLED = {DIGITS: 300, PROBES: 200, PROMPTS: 16}
QUICK = ("evoprune", "tome", "topk")


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parsed(arguments)
    torch.set_num_threads(1)
    recipes = list(QUICK) if given.quick else list_recipes()
    file, known = (
        ResultsFile(given.rows),
        [] if given.known is None else ResultsFile(given.known).rows(),
    )
    content = {**provenance("benchmarks/tune_validation.py", arguments), "comparisons": list[Any]()}
    subjects: dict[Sequence[str], tuple[Subject, list[Subject]]] = {}
    for tasks, keep in RUNS:
        if tasks == PROBES and (given.quick or given.labelled is None):
            continue
        if given.only not in (None, *tasks) or (given.only is None and tasks == PROMPTS):
            continue
        if tasks not in subjects:
            subjects[tasks] = _subjects(tasks, given)
        blind, judged = subjects[tasks]
        rows = list(measured(file, known, [blind, *judged], candidates(recipes, keep)))
        tuned = tune(blind, Target("tokens", keep), recipes, rounds=given.rounds)
        choice = name_of(tuned.winner.job.key(blind))
        tried = [name_of(one.job.key(blind)) for one in (*tuned.finalists, *tuned.dropped)]
        print(*tasks, keep, choice, flush=True)
        for subject in judged:
            content["comparisons"] += compared(rows, subject, blind, keep, choice, tried)
        given.out.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def candidates(recipes: Iterable[str], keep: int | float) -> list[Job]:
    """Return what `tune` tries at a budget."""
    return [
        Job(name, keep, options=options)
        for name in dict.fromkeys([*recipes, *CONTROLS])
        for options in VARIANTS.get(name, ({},))
    ]


def measured(
    file: ResultsFile, known: Iterable[Row], subjects: Sequence[Subject], jobs: Sequence[Job]
) -> Iterable[Row]:
    """Yield the rows of all subjects; what the file has, or is known, is not run again."""
    done = file.check({(one.task, one.model_name): one.facts for one in subjects})
    for subject in subjects:
        here = {
            row.key: row
            for row in known
            if (row.key.task, row.key.model) == (subject.task, subject.model_name)
            and row.facts == subject.facts
        } | done
        for row in run(subject, jobs, rounds=0, done=here):
            file.append(row)
            here[row.key] = row
        yield from (here[job.key(subject)] for job in jobs)


def compared(
    rows: Iterable[Row],
    judged: Subject,
    blind: Subject,
    keep: int | float,
    choice: str,
    tried: Sequence[str],
) -> Iterable[dict[str, Any]]:
    """Yield the comparison of each labelled metric with each score without labels, at one budget.

    `tried` are the candidates of `tune`, `choice` is its winner.
    """
    here = [row for row in rows if row.status == OK]
    seen = {name_of(row.key): row for row in here if row.key.task == blind.task}
    right = {name_of(row.key): row for row in here if row.key.task == judged.task}
    names = [name for name in tried if name in seen and name in right]
    saving = [
        name
        for name in names
        # In a vision-language model every recipe saves something in the language model.
        if (blind.read_on or (right[name].flops or 0) < SAVES)
        and right[name].key.recipe not in CONTROLS
    ]
    for metric in right[names[0]].scores:
        if metric in KINDS:  # of questions: too few of each
            continue
        scores = scores_of(names, right, metric)
        without = {"likeness": scores_of(names, seen, "likeness")}
        if all(seen[name].agreement for name in names):
            without["same answer"] = np.array([seen[name].agreement for name in names])
        places = [names.index(name) for name in saving]
        chosen = {
            "tune": names.index(choice),
            "most alike": int(without["likeness"].mean(1).argmax()),
            "tome": names.index("tome"),
        }
        yield {
            "task": judged.task,
            "model": judged.model_name,
            "metric": metric,
            "keep": keep,
            "images": {"labelled": scores.shape[1], "unlabelled": blind.samples},
            "best": names[int(scores.mean(1).argmax())],
            "choices": {
                name: {"recipe": names[place], **asdict(regret(scores, place))}
                for name, place in chosen.items()
            },
            "mean regret of methods that save": round(
                float(scores.mean(1).max() - scores[places].mean()), 4
            ),
            "agreement": {
                score: {
                    "all": asdict(agreement(scores, values)),
                    "methods that save": asdict(agreement(scores[places], values[places])),
                }
                for score, values in without.items()
            },
            "candidates": {
                name: {
                    "accuracy": round(float(scores[place].mean()), 4),
                    **{
                        one: round(float(values[place].mean()), 4)
                        for one, values in without.items()
                    },
                    "flops": right[name].flops,
                }
                for place, name in enumerate(names)
            },
        }


def scores_of(names: Iterable[str], rows: Mapping[str, Row], metric: str) -> np.ndarray:
    """Return the scores `[k, s]` of k candidates on s images."""
    return np.array([rows[name].scores[metric] for name in names], dtype=float)


def ranking(rows: Sequence[Row], metric: str, blind: str = "prompts") -> Agreement:
    """Compare the rankings of all candidates in rows of two tasks, one of them `blind`: without labels."""
    fitting = [row for row in rows if row.status == OK and row.key.recipe is not None]
    seen = {name_of(row.key): row for row in fitting if row.key.task == blind}
    right = {name_of(row.key): row for row in fitting if row.key.task != blind}
    names = [name for name in seen if name in right]
    return agreement(scores_of(names, right, metric), scores_of(names, seen, "likeness"))


def rankings(content: Mapping[str, Any]) -> list[str]:
    """Return the agreement of the rankings as a table in Markdown, by line."""
    lines = _heads(
        "| task, metric | keep | all | ceiling | methods that save | over recipes | ceiling |"
    )
    for one in content["comparisons"]:
        whole, saving = one["agreement"]["likeness"].values()
        cells = [_text(whole["value"], whole["over_images"]), _text(whole["ceiling"])]
        cells += [_text(saving["value"], saving["over_images"])]
        cells += [_text(None, saving["over_candidates"]), _text(saving["ceiling"])]
        lines.append(f"{_where(one)} {' | '.join(cells)} |")
    return lines


def regrets(content: Mapping[str, Any]) -> list[str]:
    """Return what choices lose as a table in Markdown, by line."""
    lines = _heads(
        "| task, metric | keep | best | choice of tune | regret | crossed | most alike | tome | any |"
    )
    for one in content["comparisons"]:
        tuned, alike, tome = one["choices"].values()
        best = one["candidates"][one["best"]]["accuracy"]
        cells = [f"{one['best']} {best:.3f}", tuned["recipe"], f"{tuned['seen']:.3f}"]
        cells += [f"{choice['crossed']:+.3f}" for choice in (tuned, alike, tome)]
        lines.append(
            f"{_where(one)} {' | '.join(cells)} | {one['mean regret of methods that save']:.3f} |"
        )
    return lines


def _heads(line: str) -> list[str]:
    return [line, "|---" * (line.count("|") - 1) + "|"]


def _where(one: Mapping[str, Any]) -> str:
    return f"| {one['task']}, {one['metric']} | {one['keep']} |"


def _text(value: float | None, interval: Sequence[float] | None = None) -> str:
    parts = [] if value is None else [f"{value:.2f}"]
    return ", ".join(parts + ([f"{interval[0]:.2f} to {interval[1]:.2f}"] if interval else []))


def _subjects(tasks: Sequence[str], given: argparse.Namespace) -> tuple[Subject, list[Subject]]:
    """Return the subject without labels, and those with them, on other images."""
    if tasks == PROMPTS:
        judged = [
            prepare(name, TaskOptions(samples=given.samples or LABELLED[tasks])) for name in tasks
        ]
        return _prompts(given.images), judged
    options = TaskOptions(
        data=given.labelled if tasks != DIGITS else None,
        samples=given.samples or LABELLED[tasks],
    )
    judged = [prepare(name, options) for name in tasks]
    seed = 1  # another draw of images than that of the labelled ones
    if tasks == DIGITS:
        images = digits.collages("test", given.images, seed=seed).images
        model, name, source = digits.load_digits_vit(), judged[0].model_name, "collages"
    else:
        known = vision_model(FOCUS, SIZE)
        photos = data.labelled(given.unlabelled, given.images, SIZE, seed).images
        images, model = normalised(photos, known), known.model
        name, source = FOCUS, given.unlabelled.name
    return subject_of(model, images, name, {"data": source, "seed": seed}), judged


def _prompts(count: int, seed: int = 1) -> Subject:
    """Return the subject of collages with a question each, of the eight kinds in turn."""
    drawn = collages("test", count, seed=seed)
    words, _ = questions_of(drawn, seed)  # [s, 8, t]
    pixels = images_of(drawn.images)
    given = [
        {"input_ids": words[place, place % words.shape[1], None], "pixel_values": image[None]}
        for place, image in enumerate(pixels)
    ]
    facts = {"data": "collages", "seed": seed}
    return subject_of_prompts(load_collage_llava(), given, "collage-llava", facts, answer_tokens=1)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labelled", type=Path, help="parquet or folder for knn and linear")
    parser.add_argument("--unlabelled", type=Path, help="the same form; its labels are not read")
    parser.add_argument("--samples", type=int, help="labelled images")
    parser.add_argument("--images", type=int, default=100, help="unlabelled images")
    parser.add_argument("--rounds", type=int, default=3, help="of the timing in tune")
    parser.add_argument("--rows", type=Path, default=Path("tune-rows.jsonl"))
    parser.add_argument("--known", type=Path, help="results that are not measured again")
    parser.add_argument("--out", type=Path, default=Path("tune-validation.json"))
    parser.add_argument("--only", choices=[*DIGITS, *PROBES, *PROMPTS], help="one task")
    parser.add_argument("--quick", action="store_true", help="digits, and a few recipes")
    given = parser.parse_args(arguments)
    if (given.labelled is None) != (given.unlabelled is None):
        parser.error("--labelled and --unlabelled come together")
    return given


if __name__ == "__main__":
    main()
