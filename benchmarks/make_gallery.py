"""One photograph, and what every recipe leaves of it: `python -m benchmarks.make_gallery`.

With the extra `eval`. Recipes inside or after a tower run on the trained ViT-S of the extra, those that
need a prompt or a language model on the LLaVA of the task collage-vqa, whose tower is that ViT-S. It was
trained on collages, so what its language model attends to in a photograph means little. Recipes over frames
are drawn in docs/video.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from PIL import Image
from torch.nn.functional import interpolate

from benchmarks.make_pictures import FOLDER, photograph
from tokenzoo.errors import TokenzooError
from tokenzoo.evaluation import Job, Subject, TaskOptions
from tokenzoo.evaluation.candidates import ready_recipes
from tokenzoo.evaluation.maps import drawn
from tokenzoo.evaluation.sweep import patch_tokens
from tokenzoo.evaluation.tasks import prepare
from tokenzoo.tools.viz import Panel, gallery

KEEP, COLUMNS, SIDE, WIDTH = 64, 6, 224, 1080
TASKS = {"dense": "", "collage-vqa": " (LLaVA)"}
TITLE = "One photograph, and what each recipe leaves of its 256 patches at keep=64"
CAPTION = (
    "One colour of outline is one token, filled with the mean colour of its patches; dropped patches are "
    "dark and hatched. Made by benchmarks/make_gallery.py. Photograph by danielbuechele, CC BY 2.0, "
    "cropped."
)


def subjects() -> dict[str, Subject]:
    """The models, each with the photograph as its one sample, and the question of the task about it."""
    image = interpolate(photograph()[None], (SIDE, SIDE), mode="bicubic", antialias=True)
    found = {task: prepare(task, TaskOptions(samples=1)) for task in TASKS}
    for subject in found.values():
        if subject.shown is not None:
            mean, std = subject.shown.mean, subject.shown.std
            subject.shown.images.copy_((image.clamp(0, 1) - mean) / std)
    return found


def panels() -> Iterator[Panel]:
    """A panel for each recipe that runs on one of the models, in the order of their names."""
    models = subjects()
    patches = {task: patch_tokens(subject) for task, subject in models.items()}
    for recipe in ready_recipes():
        refused: list[str] = []
        for task, note in TASKS.items():
            try:
                [(picture, _)] = drawn(Job(recipe, KEEP), models[task], [0], patches[task])
            except TokenzooError as error:
                refused.append(str(error))
                continue
            yield Panel(picture, f"{recipe}{note}")
            break
        else:
            print(f"{recipe} is not drawn: {refused[-1]}")


def main() -> None:
    """Draw and write."""
    found = [Panel(photograph(), "the photograph"), *panels()]
    blank = Panel(torch.ones(3, SIDE, SIDE))
    found += [blank] * (-len(found) % COLUMNS)
    rows = [found[start : start + COLUMNS] for start in range(0, len(found), COLUMNS)]
    path = gallery(rows, [("", "")] * COLUMNS, FOLDER / "gallery.png", title=TITLE, caption=CAPTION)
    large = Image.open(path).convert("RGB")
    small = large.resize((WIDTH, large.height * WIDTH // large.width), Image.Resampling.LANCZOS)
    small.quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    main()
