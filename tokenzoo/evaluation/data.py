"""Images of a user: a folder of photographs, a folder a class, or a parquet file; always the same ones.

Pillow reads the images and pyarrow the parquet files (`pip install 'tokenzoo[eval]'`).
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tokenzoo._core.needs import need
from tokenzoo._core.validation import is_kind
from tokenzoo.errors import BadArgumentError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
Transform = Callable[[Any], Tensor]
"""From an RGB image of Pillow to `[3, H, W]`."""
IMAGE_COLUMNS, LABEL_COLUMN = ("image", "img"), "label"


@dataclass(frozen=True)
class Labelled:
    """Images with labels.

    Attributes:
        images: `[s, 3, size, size]` in 0..1.
        labels: `[s]` int64, indices into `classes`.
        classes: names.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def photographs(folder: Path, count: int | None, size: int, seed: int = 0) -> Tensor:
    """Read photographs of a folder and the folders in it, `[s, 3, size, size]` in 0..1.

    Args:
        folder: that is searched.
        count: how many at most, drawn at random; None: all.
        size: pixels on a side: the shorter side is scaled to it, and the middle is cut out.
        seed: of the draw.

    Raises:
        BadArgumentError: no such folder, no image in it, or a file that is not an image; names it.
    """
    paths = image_files(folder)
    if count is not None and count < len(paths):
        paths = sorted(random.Random(seed).sample(paths, count))
    return torch.stack([read_image(path, path, size) for path in paths])


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder and in the folders in it, sorted.

    Raises:
        BadArgumentError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise BadArgumentError(f"{folder} is not a folder; name a folder with photographs")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise BadArgumentError(f"{folder} holds no image; there are {', '.join(SUFFIXES)}")
    return paths


def read_image(source: Any, name: object, size: int, transform: Transform | None = None) -> Tensor:
    """Read one image, `[3, size, size]` in 0..1: the middle, after the shorter side was scaled to `size`.

    Args:
        source: a path or an open binary file.
        name: of the image, for the message.
        size: pixels on a side.
        transform: applied to the RGB image instead of all this, e.g. that of timm.

    Raises:
        BadArgumentError: it cannot be read as an image.
    """
    whole = open_image(source, name)
    if transform is not None:
        return transform(whole)
    image = need("PIL.ImageOps", "eval").fit(whole, (size, size), need("PIL.Image", "eval").BICUBIC)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(size, size, 3).permute(2, 0, 1) / 255


def open_image(source: Any, name: object) -> Any:
    """Open an image as Pillow's, in RGB and upright.

    Args:
        source: a path or an open binary file.
        name: of the image, for the message.

    Raises:
        BadArgumentError: it cannot be read as an image.
    """
    try:
        with need("PIL.Image", "eval").open(source) as file:
            return need("PIL.ImageOps", "eval").exif_transpose(file).convert("RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
    ) as error:  # Pillow raises SyntaxError for a broken PNG
        raise BadArgumentError(f"{name} cannot be read as an image: {error}") from error


def labelled(
    path: Path, count: int, size: int, seed: int = 0, transform: Transform | None = None
) -> Labelled:
    """Read labelled images, equally many of each class, sorted by class.

    Args:
        path: a folder with a folder for each class, or a parquet file with the columns `image` or `img`
            (bytes, or a struct with `bytes`) and `label`.
        count: images in all, drawn at random; as many of each class as it has room for, at least 1.
        size: pixels on a side, see `read_image`.
        seed: of the draw.
        transform: see `read_image`.

    Raises:
        BadArgumentError: it is neither, or a class has fewer images; names the class.
    """
    groups = _of_parquet(path) if path.is_file() else _of_folders(path)
    names = sorted(groups)
    per_class = max(count // len(names), 1)
    images: list[Tensor] = []
    labels: list[int] = []
    for index, name in enumerate(names):
        if len(groups[name]) < per_class:
            raise BadArgumentError(
                f"class {name!r} of {path} has {len(groups[name])} images, {per_class} are needed: ask for "
                "fewer samples"
            )
        for place in sorted(random.Random(seed).sample(range(len(groups[name])), per_class)):
            source = groups[name][place]
            opened = io.BytesIO(source) if isinstance(source, bytes) else source
            what = f"image {place} of class {name!r}"
            images.append(read_image(opened, what, size, transform))
            labels.append(index)
    return Labelled(torch.stack(images), torch.tensor(labels), tuple(names))


def sample_digits(count: int, size: int, seed: int = 0) -> Labelled:
    """Read handwritten digits of scikit-learn, equally many of each, as `labelled` reads images.

    Args:
        count: images in all.
        size: pixels on a side; the scans have 8.
        seed: of the draw.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
        BadArgumentError: more images than there are.
    """
    scans = need("sklearn.datasets", "eval").load_digits()
    images, labels = torch.tensor(scans.images).float() / 16, torch.tensor(scans.target)
    per_class, picked = max(count // 10, 1), list[Tensor]()
    generator = torch.Generator().manual_seed(seed)
    for digit in range(10):
        places = (labels == digit).nonzero()[:, 0]
        if len(places) < per_class:
            raise BadArgumentError(
                f"scikit-learn has {len(places)} images of the digit {digit}, {per_class} are needed: ask "
                "for fewer samples"
            )
        picked.append(places[torch.randperm(len(places), generator=generator)[:per_class]])
    index = torch.cat(picked)
    large = interpolate(images[index][:, None], (size, size), mode="bicubic").clamp(0, 1)
    return Labelled(large.expand(-1, 3, -1, -1), labels[index], tuple(map(str, range(10))))


def _of_folders(path: Path) -> dict[str, Sequence[Any]]:
    """Return the files of each class."""
    if not path.is_dir():
        raise BadArgumentError(f"{path}: there is no such file or folder")
    folders = sorted(one for one in path.iterdir() if one.is_dir())
    if not folders:
        raise BadArgumentError(
            f"{path} has no folders; there is one for each class, with its images in it"
        )
    return {one.name: image_files(one) for one in folders}


def _of_parquet(path: Path) -> dict[str, Sequence[Any]]:
    """Return the encoded images of each class."""
    parquet = need("pyarrow.parquet", "eval")
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise BadArgumentError(f"{path} cannot be read as parquet: {error}") from error
    column = next((name for name in IMAGE_COLUMNS if name in table.column_names), None)
    if column is None or LABEL_COLUMN not in table.column_names:
        raise BadArgumentError(
            f"{path} has the columns {table.column_names}; needed are {' or '.join(IMAGE_COLUMNS)}, and "
            f"{LABEL_COLUMN}"
        )
    found: dict[str, list[Any]] = {}
    for image, label in zip(
        table.column(column).to_pylist(), table.column(LABEL_COLUMN).to_pylist(), strict=True
    ):
        found.setdefault(str(label), []).append(image["bytes"] if is_kind(image, dict) else image)
    return dict(found)
