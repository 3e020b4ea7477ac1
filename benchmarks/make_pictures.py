"""The pictures of docs/pictures.md: `python benchmarks/make_pictures.py`, with the extra `demo`.

Those of the shipped model are made by `tokenzoo viz`. There is no trained model for photographs here, so in
place of keys the photograph's map uses what can be said of a patch without any: colours and gradients.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

import tokenzoo
from tokenzoo.cli import app
from tokenzoo.token_map import TokenMap
from tokenzoo.tools.viz import Panel, gallery, merged_groups

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
PATCH, GRID = 16, (26, 26)
KEEPS = (169, 64)
RECIPES = ("tome", "evoprune", "pool")
TITLE = "Which patches share a token, by their colours and gradients"
CAPTION = (
    "One colour of outline is one token, filled with the mean colour of its patches. No model is involved: "
    "colours and gradients of a patch are in place of its keys. Photograph by danielbuechele, CC BY 2.0, "
    "cropped."
)
COLLAGES = (
    "viz collage:0 collage:1 --recipe evoprune,tome,pool --keep 32 --see-through 0 --out collage.png",
    "viz collage:1 --recipe evoprune --keep 32 --sites --see-through 0 --out sites.png",
)


def photograph() -> Tensor:
    """The left of china.jpg, `[3, 416, 416]` in 0..1."""
    pixels = torch.from_numpy(load_sample_image("china.jpg").copy())  # [427, 640, 3]
    return pixels[:416, :416].permute(2, 0, 1).float() / 255


def described(image: Tensor) -> Tensor:
    """What is seen in each patch: mean and spread of its colours, size of its gradients: `[1, n, 8]`.

    Each number is on the scale of its own spread over the image.
    """
    grey = image.mean(0, keepdim=True)
    across = F.pad((grey[:, :, 1:] - grey[:, :, :-1]).abs(), (0, 1))
    down = F.pad((grey[:, 1:] - grey[:, :-1]).abs(), (0, 0, 0, 1))
    maps = torch.cat([image, across, down])  # [5, h, w]
    patches = maps.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).flatten(3).flatten(1, 2)
    mean, spread = patches.mean(-1), patches[:3].std(-1)  # [5, n], [3, n]
    features = torch.cat([mean, spread]).T  # [n, 8]
    return ((features - features.mean(0)) / features.std(0))[None]


def merged(recipe: str, features: Tensor, keep: int, sites: int = 12) -> TokenMap:
    """Reduce `[1, n, c]` to `keep` tokens in equal steps, as the blocks of a tower would.

    The features are in place of queries and keys.
    """
    n = features.shape[1]
    counts = (
        [keep] if recipe == "pool" else [n - (n - keep) * (i + 1) // sites for i in range(sites)]
    )
    x, mass, plan = features, None, TokenMap.identity(1, n)
    for count in counts:
        grid = GRID if mass is None else None
        zoo = tokenzoo.build(recipe, keep=count)
        reduced = zoo.reduce(x, queries=x, keys=x, mass=mass, grid=grid)
        x, mass, plan = reduced.x, reduced.mass, plan.then(reduced.plan)
    return plan


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    image = photograph()
    features = described(image)
    rows = []
    for keep in KEEPS:
        plans = [merged(recipe, features, keep) for recipe in RECIPES]
        pictures = [merged_groups(image, plan, GRID, 0) for plan in plans]
        rows.append([Panel(image), *(Panel(picture, f"{keep} tokens") for picture in pictures)])
    columns = [("original", f"{GRID[0] * GRID[1]} patches"), *((name, "") for name in RECIPES)]
    path = gallery(rows, columns, FOLDER / "photograph.png", title=TITLE, caption=CAPTION)
    Image.open(path).convert("RGB").quantize(255).save(path, optimize=True)  # a third of the size
    for command in COLLAGES:
        *arguments, name = command.split()
        app([*arguments, str(FOLDER / name)], standalone_mode=False)


if __name__ == "__main__":
    main()
