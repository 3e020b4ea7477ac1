"""Short clips: frames of 2 x 2 coloured digits that mostly stay as they are, some with a cut, and a dot.

Digits and colours are those of `collages`, in the same splits. In a clip with a cut all four cells change
at once; in one without, one or two cells change, each once. A cell that does not change has the same scan
at the same place, in the light of the frame and with its noise. The dot stays, or goes to another cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tokenzoo._core.validation import check_choice, check_count
from tokenzoo.evaluation.vqa.collages import COLOURS, disc, enlarged, uniform
from tokenzoo.tools import digits

FRAMES = 8
GRID = 2  # cells on a side of a frame
CELLS = GRID * GRID
SIDE = 42  # pixels on a side of a cell: 3 x 3 patches of the tower
CUT = 0.5  # share of the clips that have one
MOVE = 0.35  # chance that the dot is in another cell than in the frame before


@dataclass(frozen=True)
class Story:
    """What clips show, frame by frame.

    Attributes:
        digits: `[b, 2, 4]` int64 in 0..9, of each cell before and after its change; never the same.
        colours: `[b, 2, 4]` int64, indices into `COLOURS`; often the same.
        changes: `[b, 4]` int64, the first frame of the second digit; 0: the cell never changes.
        cuts: `[b]` int64, the first frame after the cut; 0: there is none.
        dots: `[b, f]` int64 in 0..3, the cell with the dot in each frame.
    """

    digits: Tensor
    colours: Tensor
    changes: Tensor
    cuts: Tensor
    dots: Tensor

    def now(self) -> Tensor:
        """Return whether each cell of each frame has changed by then, `[b, f, 4]` int64 0 or 1."""
        frames = torch.arange(self.dots.shape[1])[:, None]  # [f, 1]
        changes = self.changes[:, None]  # [b, 1, 4]
        return ((changes > 0) & (frames >= changes)).long()

    def seen(self, values: Tensor) -> Tensor:
        """Return what each cell of each frame has, `[b, f, 4]`, of values `[b, 2, 4]`."""
        return values.gather(1, self.now())


def story(count: int, frames: int, g: torch.Generator) -> Story:
    """Draw what `count` clips of so many frames show."""
    first = torch.randint(10, (count, CELLS), generator=g)
    second = (first + torch.randint(1, 10, (count, CELLS), generator=g)) % 10
    colours = torch.randint(len(COLOURS), (count, 2, CELLS), generator=g)
    stays = torch.rand(count, CELLS, generator=g) < 0.4
    colours[:, 1] = torch.where(stays, colours[:, 0], colours[:, 1])
    cut = torch.rand(count, generator=g) < CUT
    cuts = torch.randint(1, frames, (count,), generator=g) * cut
    order = torch.rand(count, CELLS, generator=g).argsort(1).argsort(1)
    some = order < torch.randint(1, 3, (count, 1), generator=g)  # one or two cells
    changes = torch.randint(1, frames, (count, CELLS), generator=g) * some
    # Two cells that happen to change together are not yet a cut.
    changes = torch.where(cut[:, None], cuts[:, None], changes)
    steps = torch.randint(1, CELLS, (count, frames), generator=g)
    steps = steps * (torch.rand(count, frames, generator=g) < MOVE)
    steps[:, 0] = torch.randint(CELLS, (count,), generator=g)
    return Story(torch.stack([first, second], 1), colours, changes, cuts, steps.cumsum(1) % CELLS)


@dataclass(frozen=True)
class Clips:
    """Clips, and what is in them.

    Attributes:
        images: `[b, f, 3, 84, 84]` in 0..1.
        story: what they show.
    """

    images: Tensor
    story: Story


def clips(
    split: str, count: int, *, seed: int, frames: int = FRAMES, augment: bool = False
) -> Clips:
    """Draw clips of one split; the same arguments give the same clips.

    Args:
        split: "train", "validation" or "test".
        count: number of clips.
        seed: of all that is drawn.
        frames: of each clip, 2 or more.
        augment: also turn, slant and stretch the digits, for training.

    Raises:
        BadArgumentError: no such split, or a number below 1.
        MissingDependencyError: scikit-learn is not installed.
    """
    check_choice("split", split, *SPLITS)
    check_count("count", count)
    check_count("frames", frames, least=2)
    g = torch.Generator().manual_seed(check_count("seed", seed, least=0))
    told = story(count, frames, g)
    cells = painted(split, told.digits.flatten(), told.colours.flatten(), g, augment=augment)
    cells = cells.reshape(count, 2, CELLS, 3, SIDE, SIDE)
    shown = cells.gather(1, told.now()[..., None, None, None].expand(-1, -1, -1, 3, SIDE, SIDE))
    marked = one_hot(told.dots, CELLS).bool()  # [b, f, 4]
    discs = disc(count, g, SIDE)[:, None].expand(-1, frames, -1, -1, -1)  # in one corner in a clip
    shown[marked] = torch.where(discs.flatten(0, 1), 1.0, shown[marked])
    images = lit(framed(shown.flatten(0, 1)), g)
    return Clips(images.reshape(count, frames, *images.shape[1:]), told)


SPLITS = ("train", "validation", "test")


def painted(
    split: str, labels: Tensor, colours: Tensor, g: torch.Generator, *, augment: bool = False
) -> Tensor:
    """Return cells `[n, 3, 42, 42]` of digits `[n]` in colours `[n]`, each with a scan of its own."""
    source = digits.splits()[split]
    weights = (source.labels == torch.arange(10)[:, None]).double()  # [10, scans]
    picks = torch.multinomial(weights[labels], 1, generator=g)[:, 0]  # [n]
    ink = enlarged(source.images[picks][:, None], g, augment, SIDE)  # [n, 1, 42, 42]
    paint = torch.tensor(list(COLOURS.values()))[colours] * uniform(g, 0.8, 1.0, len(labels), 1)
    paper = uniform(g, 0.03, 0.20, len(labels), 1, 1, 1)
    return paper + (paint[:, :, None, None] - paper) * ink


def framed(cells: Tensor) -> Tensor:
    """Put cells `[n, 4, 3, 42, 42]` together: `[n, 3, 84, 84]`."""
    grid = cells.reshape(len(cells), GRID, GRID, 3, SIDE, SIDE).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(len(cells), 3, GRID * SIDE, GRID * SIDE)


def lit(images: Tensor, g: torch.Generator) -> Tensor:
    """Give images `[n, 3, H, W]` a light and noise of their own."""
    light = uniform(g, 0.9, 1.0, len(images), 1, 1, 1)
    return (images * light + 0.02 * torch.randn(images.shape, generator=g)).clamp(0, 1)
