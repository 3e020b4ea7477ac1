"""`knn` and `linear`: what a frozen model's features say of labelled images.

A reference set with labels and a test set both go through the model as it is attached: that is what would
be deployed. `knn` asks the 20 nearest reference images by cosine, `linear` is a logistic regression. Both
read the class token ("cls", if there is one) and the mean of the patches ("mean"), in which a merged token
counts as often as it stands for patches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenzoo._core.needs import need
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import data
from tokenzoo.evaluation.focus_vit import PATCH
from tokenzoo.evaluation.models import FOCUS, normalised, vision_model
from tokenzoo.evaluation.task import Outcome, Subject, TaskOptions, batches
from tokenzoo.hooks import get_state
from tokenzoo.hooks.attach import find_adapter

SIZE = 8 * PATCH  # 64 patches of the packaged ViT-S, which is enough for small pictures
TEST, QUICK_TEST = 200, 10  # test images
REFERENCES = 2  # reference images for each test image
NEIGHBOURS = 20
BATCH = 16
TIMED = 8  # images of the call that is timed

Features = dict[str, Tensor]
"""By the name of what is read, `[s, c]`."""


@dataclass(frozen=True, eq=False)
class Store:
    """A model, its images, and the features that were computed under each label.

    Attributes:
        model: bare.
        prefix: CLS and register tokens in front of the patches.
        reference: images and labels of the reference set.
        test: those of the test set.
        facts: for the rows.
        known: features of the reference set and of the test set, by label.
    """

    model: Any
    prefix: int
    reference: data.Labelled
    test: data.Labelled
    facts: dict[str, Any]
    known: dict[str, tuple[Features, Features]] = field(
        default_factory=dict[str, tuple[Features, Features]]
    )

    def features(self, model: Any, label: str) -> tuple[Features, Features]:
        """Return the features of the reference images and of the test images."""
        if label not in self.known:
            found = [read(model, one.images, self.prefix) for one in (self.reference, self.test)]
            self.known[label] = (found[0], found[1])
        return self.known[label]


def prepare(task: str, options: TaskOptions) -> Subject:
    """Return the task on the labelled images in `data`, or on scikit-learn's digits.

    The default model is the packaged ViT-S.

    Raises:
        BadArgumentError: too few images of a class, or only one class.
        MissingDependencyError: scikit-learn, or what the model needs, is not installed.
    """
    name = options.model or FOCUS
    default = SIZE if name == FOCUS else None
    count = options.count(TEST, QUICK_TEST)
    store = loaded(name, options.data, options.size or default, count, options.seed)
    return subject_of(task, name, store, options.batch(TIMED))


@lru_cache(maxsize=1)
def loaded(name: str, path: Path | None, size: int | None, count: int, seed: int) -> Store:
    """Return the model and the images; the same store for both tasks."""
    known = vision_model(name, size)
    total = (1 + REFERENCES) * count
    if path is None:
        source, images = "scikit-learn's digits", data.sample_digits(total, known.size, seed)
    else:
        source, images = path.name, data.labelled(path, total, known.size, seed)
    if len(images.classes) < 2:
        raise BadArgumentError(f"{path} has 1 class; at least 2 are needed to tell apart")
    reference, test = divided(images)
    facts = {"data": source, "size": known.size, "samples": len(test.labels), "seed": seed}
    facts["reference"] = len(reference.labels)
    adapter = find_adapter(known.model)
    parts = [
        data.Labelled(normalised(one.images, known), one.labels, one.classes)
        for one in (reference, test)
    ]
    return Store(known.model, adapter.prefix, parts[0], parts[1], facts)


def divided(images: data.Labelled) -> tuple[data.Labelled, data.Labelled]:
    """Divide images, sorted by class, into references and test images: a third of every class."""
    total = len(images.labels) // len(images.classes)
    test = torch.arange(len(images.labels)) % total < max(total // (1 + REFERENCES), 1)
    first, second = (
        data.Labelled(images.images[chosen], images.labels[chosen], images.classes)
        for chosen in (~test, test)
    )
    return first, second


def read(model: Any, images: Tensor, prefix: int) -> Features:
    """Return "cls", if the model has a class token, and "mean", `[s, c]` each, of `images [s, 3, H, W]`."""
    found: dict[str, list[Tensor]] = {"mean": []}
    for batch in batches(images, BATCH):
        tokens = tokens_of(model, batch)  # [b, prefix + n, c]
        mass = masses(tokens, prefix)  # [b, n, 1]
        found["mean"].append((tokens[:, prefix:] * mass).sum(1) / mass.sum(1))
        if prefix:
            found.setdefault("cls", []).append(tokens[:, 0])
    return {name: torch.cat(found[name]) for name in sorted(found)}


def tokens_of(model: Any, images: Tensor) -> Tensor:
    """Return the tokens `[b, prefix + n, c]` that leave a model.

    Raises:
        BadArgumentError: its class is not known to return them.
    """
    if hasattr(model, "forward_features"):
        found = model.forward_features(images)
    else:
        found = getattr(model(images), "last_hidden_state", None)
    if not isinstance(found, Tensor) or found.ndim != 3:
        raise BadArgumentError(
            f"{type(model).__name__} does not return its tokens: take a model of timm, or a vision tower "
            "of transformers"
        )
    return found


def masses(tokens: Tensor, prefix: int) -> Tensor:
    """Return how many patches each patch token stands for, `[b, n, 1]`; 1 where nothing was merged."""
    state = get_state(tokens)
    if state is None or state.mass is None:
        return tokens.new_ones(len(tokens), tokens.shape[1] - prefix, 1)
    return state.mass[:, prefix:, None]


def subject_of(task: str, name: str, store: Store, batch: int) -> Subject:
    """Return the subject of a store: `knn` or `linear`; `batch` images are in the call that is timed."""
    predict = PREDICTORS[task]

    def score(model: Any, which: range, label: str) -> Outcome:
        part = slice(which.start, which.stop)
        reference, test = store.features(model, label)
        labels = store.reference.labels
        answers = {what: predict(reference[what], labels, test[what][part]) for what in reference}
        wanted = store.test.labels[part]
        scores = {what: found == wanted for what, found in answers.items()}
        return Outcome(scores, next(iter(answers.values())))

    return Subject(
        task,
        name,
        store.model,
        len(store.test.labels),
        score,
        call=lambda model: tokens_of(model, store.test.images[:batch]),
        facts=store.facts,
        per_patch=True,
    )


def nearest(reference: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Return the majority `[s]` of the 20 nearest references (fewer, if there are fewer), by cosine."""
    neighbours = need("sklearn.neighbors", "eval")
    count = min(NEIGHBOURS, len(labels))
    model = neighbours.KNeighborsClassifier(count, metric="cosine", weights="distance")
    return _fitted(model, reference, labels, test)


def regressed(reference: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Return the classes `[s]` by logistic regression on standardised features."""
    linear, pipeline = need("sklearn.linear_model", "eval"), need("sklearn.pipeline", "eval")
    scaler = need("sklearn.preprocessing", "eval").StandardScaler()
    model = pipeline.make_pipeline(scaler, linear.LogisticRegression(C=0.1, max_iter=1000))
    return _fitted(model, reference, labels, test)


def _fitted(model: Any, reference: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    model.fit(reference.double().numpy(), labels.numpy())
    return torch.tensor(model.predict(test.double().numpy()))


PREDICTORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "knn": nearest,
    "linear": regressed,
}
