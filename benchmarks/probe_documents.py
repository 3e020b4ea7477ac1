"""Which blocks of the tower tell the printed words of the task documents apart, by linear probes.

    python benchmarks/probe_documents.py --pages 200

Four fifths of the pages train a probe, the others test it. A probe reads the eight patches where the ink of
a word is, one of them, or their mean.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from train_documents import CELL_OF, NAMES, PATCH

from tokenzoo.evaluation import focus_vit
from tokenzoo.evaluation.task import batches
from tokenzoo.evaluation.vqa.documents import pages, printed
from tokenzoo.evaluation.vqa.page_questions import cells

BLOCKS = (4, 6, 8, 10, 12)
EPOCHS, BATCH = 20, 64
# The patches of each cell in which words are, two rows of four: [16, 8]
NEAR = torch.stack(
    [PATCH[(cell == CELL_OF) & (PATCH % 8 >= 1) & (PATCH % 8 <= 4)] for cell in range(16)]
)


def accuracy(x: Tensor, labels: Tensor, test: Tensor) -> float:
    """Train on some of the words `[n, c]`, and return the share of the others that are named right."""
    torch.manual_seed(0)
    x = (x - x[~test].mean(0)) / x[~test].std(0)
    probe = nn.Linear(x.shape[1], len(NAMES))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=0.1)
    train = (~test).nonzero()[:, 0]
    for _ in range(EPOCHS):
        for some in train[torch.randperm(len(train))].split(BATCH):
            optimizer.zero_grad()
            cross_entropy(probe(x[some]), labels[some]).backward()
            optimizer.step()
    with torch.no_grad():
        return (probe(x[test]).argmax(1) == labels[test]).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--pages", type=int, default=200)
    count = parser.parse_args().pages
    drawn = pages("validation", count, seed=1)
    images = focus_vit.images_of(printed(drawn, seed=1))
    tower = focus_vit.load_focus_vit().backbone
    with torch.inference_mode():
        shown = [
            torch.stack(tower(pixel_values=some, output_hidden_states=True).hidden_states)[:, :, 1:]
            for some in batches(images, 8)
        ]
    states = torch.cat(shown, 1)  # [blocks + 1, b, 256, c]
    places = [
        (page, cell, NAMES.index(word))
        for page, one in enumerate(drawn)
        for cell, word in enumerate(cells(one))
        if word
    ]
    page, cell, labels = torch.tensor(places).unbind(1)
    test = page >= 0.8 * count
    print(f"{int((~test).sum())} words for training, {int(test.sum())} for testing")
    for block in BLOCKS:
        near = states[block][page[:, None], NEAR[cell]].clone()  # [n, 8, c]
        parts = {"eight": near.flatten(1), "one": near[:, 5], "mean": near.mean(1)}
        found = " ".join(f"{name} {accuracy(x, labels, test):.3f}" for name, x in parts.items())
        print(f"block {block}: {found}", flush=True)


if __name__ == "__main__":
    main()
