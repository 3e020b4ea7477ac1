"""What the examples share: a model, and its answers with all visual tokens and with fewer."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from typing import Any

import tiny_families
import tiny_llava
import tiny_qwen
import torch
import transformers

import tokenzoo
from tokenzoo.tools.timing import interleaved


def options(description: str | None, checkpoint: str, question: str) -> ArgumentParser:
    """The options that all examples have."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=checkpoint, help="a checkpoint (default: %(default)s)")
    parser.add_argument("--question", default=question, help="default: %(default)s")
    parser.add_argument("--recipe", default="evoprune", help="any of `tokenzoo list` that fits")
    parser.add_argument("--keep", type=_keep, help="tokens, or with a point a share of them")
    parser.add_argument("--new", type=int, default=60, help="most tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5, help="of the timing; 0: none")
    parser.add_argument("--tiny", action="store_true", help="a tiny model of random weights")
    return parser


def load(given: Namespace) -> tuple[Any, Any]:
    """The model that was asked for, on a GPU if there is one, and its processor."""
    if given.tiny:
        print("a tiny model of random weights: its answers are nonsense\n")
        makers = {
            "Qwen/": tiny_qwen.make,
            **dict.fromkeys(tiny_families.MAKERS, tiny_families.make),
        }
        fits = (make for start, make in makers.items() if given.model.startswith(start))
        return next(fits, tiny_llava.make)(given.model)
    gpu = torch.cuda.is_available()
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        given.model, dtype=torch.bfloat16 if gpu else torch.float32
    )
    processor = transformers.AutoProcessor.from_pretrained(given.model)
    return model.to("cuda" if gpu else "cpu").eval(), processor


def prompt(processor: Any, question: str, *kinds: str) -> str:
    """The text of a conversation that shows these, each an "image" or a "video", and asks a question."""
    content = [*({"type": kind} for kind in kinds), {"type": "text", "text": question}]
    conversation = [{"role": "user", "content": content}]
    return processor.apply_chat_template(conversation, add_generation_prompt=True)


def compare(
    model: Any, processor: Any, inputs: Any, given: Namespace, tokens: int | None = None
) -> None:
    """Print both answers, the plan, the tokens that the language model reads, and the time as a ratio.

    Args:
        model: nothing is attached to it.
        processor: of the model.
        inputs: what the processor returned.
        given: the options.
        tokens: of the image that the plan is said of; None: the model's own size.
    """
    inputs = inputs.to(model.device, model.dtype)

    def answer() -> str:
        out = model.generate(**inputs, max_new_tokens=given.new, do_sample=False)
        # The caller's own prompt comes back, however short the one was that the model read.
        new = out[:, inputs["input_ids"].shape[1] :]
        return processor.batch_decode(new, skip_special_tokens=True)[0].strip()

    print(f"all tokens: {answer()}")
    attached = tokenzoo.build(given.recipe, keep=given.keep).attach(model)
    print(f"{given.recipe}: {answer()}\n\n{attached.summary(tokens)}\n")
    whole, short = (len(one["input_ids"][0]) for one in (inputs, attached.shorten(inputs)))
    print(f"the language model reads a prompt of {short} tokens instead of {whole}")

    def first() -> None:
        model.generate(**inputs, max_new_tokens=1, do_sample=False)

    def bare() -> None:
        with attached.paused():
            first()

    if given.rounds:
        functions = {"bare": bare, "fewer": first, "bare again": bare}
        times = interleaved(functions, rounds=given.rounds, baseline="bare")
        print(
            f"time to the first token, relative to all tokens: {times['fewer']} "
            f"(median and quartiles of {given.rounds} rounds; all tokens again: {times['bare again']})"
        )


def _keep(text: str) -> int | float:
    return float(text) if "." in text else int(text)
