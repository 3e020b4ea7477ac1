"""`clips`: questions about short clips of digits, answered by a small LLaVA.

A sample is a clip of eight frames with one question of each kind, each in a prompt of its own: coarse ones
about colours, which fill a cell, and a cut, which changes a frame; fine ones about digits and a dot of less
than a patch. An answer is one word, the most likely next token. Frames are images of the prompt, each
after its number in words. Two controls of the task show the bare model less: fewer frames, and smaller
ones. See `tokenzoo.evaluation.vqa`.
"""

from __future__ import annotations

from tokenzoo.evaluation.focus_vit import images_of
from tokenzoo.evaluation.task import Subject, TaskOptions
from tokenzoo.evaluation.vqa import subject as vqa
from tokenzoo.evaluation.vqa.clip_controls import fewer_frames, smaller_frames
from tokenzoo.evaluation.vqa.clip_model import load_clip_llava
from tokenzoo.evaluation.vqa.clip_samples import asked_of, questions_of
from tokenzoo.evaluation.vqa.clips import FRAMES, clips

SAMPLES = 24
BATCH = 1  # prompts of the call that is timed: eight frames are enough


def prepare(task: str, options: TaskOptions) -> Subject:
    """Return the task, on clips of the digits that had no part in the training.

    Raises:
        BadArgumentError: another model, other data or another size was given.
        MissingDependencyError: see `load_clip_llava`; or scikit-learn is not installed.
    """
    options.refuse_choices(task)
    return subject_of("test", options.count(SAMPLES), seed=options.seed)


def subject_of(split: str, samples: int, *, seed: int = 0, batch: int = BATCH) -> Subject:
    """Return the task on clips of one split of the digits: no digit is in two of them.

    Args:
        split: "train", "validation" or "test".
        samples: number of clips.
        seed: of clips and questions.
        batch: prompts of the call that is timed.

    Raises:
        BadArgumentError: no such split, or a number below 1.
        MissingDependencyError: see `load_clip_llava`; or scikit-learn is not installed.
    """
    drawn = clips(split, samples, seed=seed)
    images, questions = images_of(drawn.images), questions_of(drawn, seed)
    facts = {"split": split, "samples": samples, "frames": FRAMES, "seed": seed}
    return vqa.subject_of(
        "clips",
        "clip-llava",
        load_clip_llava(),
        asked_of(images, questions),
        batch=batch,
        facts=facts,
        controls={
            "fewer-frames": lambda keep: fewer_frames(images, questions, keep, batch),
            "smaller-frames": lambda keep: smaller_frames(images, questions, keep, batch),
        },
    )
