"""`classify`: any classifier of timm on images whose folders are named after its classes.

A folder is named after the index of the class ("207"), its label ("n02099601" for ImageNet) or its whole
description. Images are resized, cropped and normalised as timm does it for the model's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tokenzoo._core.needs import need
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import data
from tokenzoo.evaluation.models import trained
from tokenzoo.evaluation.task import Outcome, Subject, TaskOptions, batches
from tokenzoo.tools import model_loading

SAMPLES = 1000
BATCH = 16


def prepare(task: str, options: TaskOptions) -> Subject:
    """Return the task.

    Raises:
        BadArgumentError: no model or no data, a model that is not a classifier, or a folder that is not
            named after one of its classes.
        UnknownNameError, MissingDependencyError: see `model_loading.create`.
    """
    if options.model is None or options.data is None:
        raise BadArgumentError(
            f"the task {task} needs a classifier of timm and labelled images: --model "
            "vit_base_patch16_224.augreg_in1k --data FOLDER, with a folder for each class"
        )
    model = classifier(options.model, options.size)
    timm_data = need("timm.data", "eval")
    config = timm_data.resolve_data_config({}, model=model)
    if options.size is not None:
        config["input_size"] = (3, options.size, options.size)
    transform = timm_data.create_transform(**config)
    rows, size = config["input_size"][1:]
    count = options.count(SAMPLES)
    found = data.labelled(options.data, count, size, options.seed, transform)
    index = torch.tensor(class_indices(model, found.classes))  # [k]
    labels = index[found.labels]  # [s]

    def score(model: Any, which: range, label: str) -> Outcome:
        del label
        part = slice(which.start, which.stop)
        answers = torch.cat(
            [model(batch).argmax(1) for batch in batches(found.images[part], BATCH)]
        )
        return Outcome({"top-1": answers == labels[part]}, answers)

    facts = {"data": options.data.name, "samples": len(labels), "size": [rows, size]}
    return Subject(
        task,
        options.model,
        model,
        len(labels),
        score,
        call=lambda model: model(found.images[: options.batch(BATCH)]),
        facts={**facts, "seed": options.seed},
    )


def classifier(name: str, size: int | None) -> Any:
    """Return a classifier of timm with trained weights, in eval mode.

    Args:
        name: of timm, with the tag of its trained weights; without a tag the weights are random. Or a
            folder with `config.json` and weights, as `timm.models.save_for_hf` writes it.
        size: pixels on a side; None: the model's own.

    Raises:
        BadArgumentError: it cannot be made, or is not a classifier.
        UnknownNameError, MissingDependencyError: see `model_loading.create`.
    """
    options: dict[str, Any] = {} if size is None else {"img_size": size}
    if Path(name).is_dir():
        try:
            made = (
                need("timm", "eval")
                .create_model(f"local-dir:{name}", pretrained=True, **options)
                .eval()
            )
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, AssertionError) as error:
            raise BadArgumentError(
                f"{name} cannot be read as a checkpoint of timm ({type(error).__name__}: {error}); it is a "
                "folder with config.json and model.safetensors, as timm.models.save_for_hf writes it"
            ) from error
    elif ":" in name:
        raise BadArgumentError(
            f"model={name!r} with the task classify, which takes models of timm: a name, or a folder with "
            "a checkpoint. The tasks knn and linear take others"
        )
    else:
        made = model_loading.create(name, **trained(name), **options).model
    if not getattr(made, "num_classes", 0):
        raise BadArgumentError(
            f"{name} has no classes: its head returns features. The tasks knn and linear are for it"
        )
    return made


def class_indices(model: Any, folders: Sequence[str]) -> list[int]:
    """Return the class of the model that each folder is named after.

    Raises:
        BadArgumentError: a name is not one of the model's classes, or two folders are the same class.
    """
    classes = int(model.num_classes)
    known = {**names_of(model), **{str(index): index for index in range(classes)}}
    found: dict[int, str] = {}
    for folder in folders:
        plain = folder.lstrip("0") or "0" if folder.isdigit() else folder
        if plain not in known:
            raise BadArgumentError(
                f"{folder!r} is not a class of the model; a folder is named after the index, 0 to "
                f"{classes - 1}, or the name of a class: {', '.join(list(known)[:3])}"
            )
        index = known[plain]
        if index in found:
            raise BadArgumentError(f"{found[index]!r} and {folder!r} are both class {index}")
        found[index] = folder
    return list(found)


def names_of(model: Any) -> dict[str, int]:
    """Return the index of each class by its label and by its description, as far as timm knows them."""
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    labels: Sequence[str] = config.get("label_names") or ()
    texts: dict[str, str] = config.get("label_descriptions") or {}
    timm_data = need("timm.data", "eval")
    subset = timm_data.infer_imagenet_subset(model)
    if not labels and subset is not None:
        info = timm_data.ImageNetInfo(subset)
        labels = info.label_names()
        texts = {label: info.label_name_to_description(label) for label in labels}
    found: dict[str, int] = {}
    for index, label in enumerate(labels):
        found[label] = index
    for index, label in enumerate(labels):
        found.setdefault(texts.get(label, label), index)
    return found
