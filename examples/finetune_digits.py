"""Win back accuracy at an eighth of the tokens: fine-tune a model with reduction on.

    python examples/finetune_digits.py            # minutes on two cores
    python examples/finetune_digits.py --tiny     # three steps, to see that it runs

The shipped ViT reads collages of digits. A recipe leaves it 32 of its 256 tokens, which costs accuracy.
Trained for a while with the recipe attached, on the labels and on its own outputs with all tokens, it wins
some of that back. The number of tokens falls to 32 in the first half of the steps. In a loop of your own:

    with method.attach(model, when="train"):    # or "always", to reduce in evaluation, too
        for images, labels in batches:
            loss(model(images), labels).backward()
            ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tokenzoo
from tokenzoo.evaluation.training import DigitsTask, Progress, Training, as_json, train


def main() -> None:
    """Score, train, and score again."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--recipe", default="pool")
    parser.add_argument("--keep", type=int, default=32)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, help="a JSON file for the losses and scores")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    steps = 3 if given.tiny else given.steps
    task = DigitsTask(batch=2 if given.tiny else 12, samples=8 if given.tiny else 500)
    method = tokenzoo.build(given.recipe, keep=given.keep)

    scores = {"all tokens": task.score(task.model)}
    with method.attach(task.model) as attached:
        print(attached.summary())
        scores["reduced"] = task.score(task.model)

    how = Training(steps=steps, tune_model=True, model_rate=2e-4, anneal=0.5, every=steps)

    def tell(now: Progress) -> None:
        if now.step % max(1, steps // 10) == 0:
            print(
                f"step {now.step}: loss {now.noted['loss']:.3f} at {now.noted['keep']:.0f} tokens",
                flush=True,
            )

    curve = train(method, task, how, tell=tell)
    with method.attach(task.model):
        scores["reduced, fine-tuned"] = task.score(task.model)
    for name, found in scores.items():
        print(f"{name:<22}" + "  ".join(f"{what} {value:.3f}" for what, value in found.items()))
    if given.out is not None:
        about = {"recipe": given.recipe, "keep": given.keep, "steps": steps, "task": task.name}
        given.out.write_text(as_json({**about, "scores": scores}, curve))


if __name__ == "__main__":
    main()
