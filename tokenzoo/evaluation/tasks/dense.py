"""`dense`: the features of all patches, put back on the grid, and what a decoder makes of them.

The model is the trained ViT-S of `tokenzoo.evaluation.focus_vit`, the images are photographs without
labels, and what is scored is likeness to the bare model: of the features, of the features in the tenth of
the patches that the bare model finds most salient, and of the saliency maps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cosine_similarity, interpolate

from tokenzoo._core.needs import need
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import data
from tokenzoo.evaluation.focus_vit import PATCH, SIZE, channels, images_of, load_focus_vit
from tokenzoo.evaluation.patch_grid import enlarged
from tokenzoo.evaluation.task import Outcome, Shown, Subject, TaskOptions, batches

SAMPLES = 48
BATCH = 4
SALIENT = 0.1  # the share of patches that counts as salient


def prepare(task: str, options: TaskOptions) -> Subject:
    """Return the task, on the photographs in `data`, or else on crops of scikit-learn's two photographs.

    Raises:
        BadArgumentError: another model was asked for, or the data cannot be read.
        MissingDependencyError: see `load_focus_vit`.
    """
    if options.model is not None:
        raise BadArgumentError(
            f"model={options.model!r} with the task {task}: its decoder fits one model; leave model away"
        )
    size = (options.size or SIZE) // PATCH * PATCH
    count = options.count(SAMPLES)
    if options.data is None:
        source, images = "crops of scikit-learn's photographs", sample_crops(count, size)
    else:
        images = data.photographs(options.data, count, size, options.seed)
        source = options.data.name
    images = images_of(images)
    focus = load_focus_vit()
    with torch.inference_mode():
        bare = features(focus.backbone, images, (size // PATCH) ** 2)  # [s, n, c]
        maps = _maps(focus, bare, size)  # [s, 1, H, W]
        salient = avg_pool2d(maps, PATCH).flatten(1)  # [s, n]
        best = salient.topk(max(round(SALIENT * salient.shape[1]), 1)).indices  # [s, k]

    def score(model: Any, which: range, label: str) -> Outcome:
        del label
        part = slice(which.start, which.stop)
        found = features(model, images[part], bare.shape[1])
        likeness = cosine_similarity(found, bare[part], dim=2)  # [s, n]
        own = _maps(focus, found, size)
        return Outcome(
            {
                "features": likeness.mean(1),
                "salient features": likeness.gather(1, best[part]).mean(1),
                "saliency": correlation(own.flatten(1), maps[part].flatten(1)),
            }
        )

    return Subject(
        task,
        "focus-vit-s",
        focus.backbone,
        len(images),
        score,
        call=lambda model: model(pixel_values=images[: options.batch(BATCH)]),
        facts={"data": source, "samples": len(images), "size": size, "seed": options.seed},
        attach={"restore": True},
        per_patch=True,
        shown=Shown(
            images,
            lambda model, place: model(pixel_values=images[place : place + 1]),
            *channels(),
        ),
    )


def features(model: Any, images: Tensor, patches: int) -> Tensor:
    """Return the features `[b, n, c]` of all n patches of `images [b, 3, H, W]`.

    Raises:
        BadArgumentError: see `patch_grid.enlarged`.
    """
    found = torch.cat(
        [model(pixel_values=batch).last_hidden_state[:, 1:] for batch in batches(images, BATCH)]
    )
    return enlarged(found, patches)


def _maps(focus: Any, found: Tensor, size: int) -> Tensor:
    return torch.cat([focus.saliency(batch, (size, size)) for batch in batches(found, BATCH)])


def correlation(ours: Tensor, other: Tensor) -> Tensor:
    """Return Pearson's correlation of each row of `[s, n]`; 0 if one of the two is constant."""
    ours, other = (one.double() - one.double().mean(1, keepdim=True) for one in (ours, other))
    return cosine_similarity(ours, other, dim=1)


def sample_crops(count: int, size: int) -> Tensor:
    """Return overlapping crops `[s, 3, size, size]` in 0..1 of the two photographs of scikit-learn.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    arrays = need("sklearn.datasets", "eval").load_sample_images().images
    crops: list[Tensor] = []
    each = -(-count // len(arrays))
    for array in arrays:
        image = torch.tensor(array).permute(2, 0, 1) / 255  # [3, H, W]
        room = image.shape[2] - image.shape[1]
        for left in (room * place // max(each - 1, 1) for place in range(each)):
            square = image[:, :, left : left + image.shape[1]][None]
            crops.append(interpolate(square, (size, size), mode="bicubic", antialias=True)[0])
    return torch.stack(crops[:count]).clamp(0, 1)
