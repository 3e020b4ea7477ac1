"""Cells of the image's own grid: the controls that look at no feature.

A grid of rows x columns is cut into k cells, as square and as equal as k allows: bands of rows, and each
band into cells; where k does not divide, some bands have one cell more. So every k is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.sorting import choose
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Assigner, Selector
from tokenzoo.token_map import take


def bands(rows: int, columns: int, cells: int) -> int:
    """Into how many bands of rows a grid is cut for that many cells.

    The cells come out as square as possible; a number that divides `cells` is preferred.
    """
    best, least = 1, math.inf
    for count in range(1, min(rows, cells) + 1):  # a loop: torch 2.11 cannot compile min(..., key=)
        stretch = abs(math.log(rows * cells / (columns * count * count)))
        cost = stretch + (0.75 if cells % count else 0.0)  # uneven cells cost more than 2 : 1
        if -(-cells // count) <= columns and cost < least:
            best, least = count, cost
    return best


def centres(rows: int, columns: int, cells: int, device: torch.device) -> Tensor:
    """The token in the middle of each cell, `[cells]`, in the order of the cells."""
    t = bands(rows, columns, cells)
    slot = torch.arange(cells, device=device)
    band = ((slot + 1) * t + cells - 1) // cells - 1
    first = band * cells // t
    size = (band + 1) * cells // t - first  # cells in this band
    top, bottom = _edge(band, rows, t), _edge(band + 1, rows, t)
    left, right = _edge(slot - first, columns, size), _edge(slot - first + 1, columns, size)
    return (top + bottom - 1) // 2 * columns + (left + right - 1) // 2


def cell_of(rows: int, columns: int, cells: int, device: torch.device) -> Tensor:
    """The cell of each token of the grid, `[rows * columns]`."""
    t = bands(rows, columns, cells)
    place = torch.arange(rows * columns, device=device)
    band = place // columns * t // rows
    first = band * cells // t
    size = (band + 1) * cells // t - first
    return first + place % columns * size // columns


def _edge(index: Tensor, length: int, parts: Tensor | int) -> Tensor:
    """Where part `index` of `parts` equal parts of a length begins."""
    return (index * length + parts - 1) // parts


@dataclass(frozen=True)
class GridCentres(Selector):
    """Keep the middle token of each of k cells of the grid; the pool is the whole grid."""

    def __post_init__(self) -> None:
        self.require("grid")

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose the centres, in the order of the cells."""
        rows, columns = evidence.grid
        return choose(pool, centres(rows, columns, k, pool.device).expand(pool.shape[0], k))


@dataclass(frozen=True)
class SameCell(Assigner):
    """Each token joins the kept token of its own cell; only after `GridCentres`."""

    def __post_init__(self) -> None:
        self.require("grid")

    def assign(
        self, evidence: Evidence, kept: Tensor, rest: Tensor, groups: tuple[int, ...]
    ) -> Tensor:
        """The slot is the number of the cell."""
        rows, columns = evidence.grid
        cell = cell_of(rows, columns, kept.shape[1], rest.device)
        return take(cell.expand(rest.shape[0], -1), rest)
