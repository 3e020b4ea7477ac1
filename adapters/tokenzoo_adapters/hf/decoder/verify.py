"""Checking at attach time, on random tokens, that a language model runs as `decoder.layers` expects.

A version of transformers that hands its layers the cache, the masks or the positions in another way, or a
layer that reads them in another way, would give wrong answers silently. Here it is a refusal. Three prompts
of random features run through the first layer and the two layers at each step:

- through the bare layers, without a cache, with the two tokens of an answer at the end;
- with a cache and steps that keep all tokens of the first prompt and every second visual token of the
  others: the prompts, then one token of the answer, then the other;
- the same without a cache, in one pass.

The first prompt must come out as from the bare layers, and the others with a cache as without.
These are five passes of at most 54 tokens through two layers for each step and one more: for a model of 32
layers together about half a pass. Hooks on these layers are called. Modes, random numbers, gradients and
caches are as before afterwards.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenzoo.errors import AttachError, TokenzooError
from tokenzoo.recipe import Step
from tokenzoo_adapters.hf.decoder.language_model import MROPE
from tokenzoo_adapters.hf.decoder.layers import Decoder
from tokenzoo_adapters.hf.decoder.state import prompt_of
from tokenzoo_adapters.hf.decoder.trial import TrialTokens, trial_decoder
from tokenzoo_adapters.hf.names import (
    EMBEDS,
    MASK,
    POSITIONS,
    USES,
    cache_in,
    last_of,
    runs_on,
    takes,
)

PROMPT, ANSWER = 16, 2
"""Tokens of each prompt, padding included, and of each answer."""

PADDED = (5, 0, 2)
"""Columns of padding at the left of each prompt."""

FIRST, VISUAL = 6, (4, 8, 8)
"""The column of the first visual token, and the number of visual tokens of each prompt."""


def prove(decoder: Decoder) -> None:
    """Compare a language model with itself, with and without steps and a cache.

    Args:
        decoder: of the recipe, before it is installed.

    Raises:
        AttachError: they differ, or the model does not run; names the language model and the difference.
    """
    if not decoder.works:
        return
    language, steps = decoder.language, decoder.steps.by_layer
    layers: list[nn.Module] = language.layers
    kinds: dict[type, int] = {}
    for i, layer in enumerate(layers):
        kinds.setdefault(type(layer), i)
    near = {i for layer in steps for i in (layer - 1, layer)}
    used = sorted({0, *near, *kinds.values()})
    tried = {used.index(layer): step for layer, step in steps.items()}
    module = cast("Any", language.module)
    with _only(module, [layers[i] for i in used]), _quiet(module) as device:
        _compare(module, language.name, tried, _sample(module, device))


@dataclass(frozen=True)
class Sample:
    """Three prompts and their answers: features `[3, n, c]`, mask `[3, n]`, positions `[..., 3, n]`."""

    x: Tensor
    mask: Tensor
    positions: Tensor

    def run(self, language: Any, begin: int, end: int, **options: Any) -> tuple[Tensor, Any]:
        """Run the columns from `begin` to `end`; returns features `[3, end - begin, c]` and the output."""
        output = language(
            **{
                EMBEDS: self.x[:, begin:end],
                MASK: self.mask[:, :end],
                POSITIONS: self.positions[..., begin:end],
                **options,
            }
        )
        return last_of(output), output

    def decoded(self, language: Any, name: str, own: str) -> tuple[Tensor, Any]:
        """Run all columns with a cache: the prompts, then one token of the answers at a time."""
        out, output = self.run(language, 0, PROMPT, **{USES: True})
        cache = cache_in(output, name)
        if cache is None:
            raise AttachError(f"{name} returns no cache, though {USES}=True. {REFUSED}")
        outs = [out]
        for column in range(PROMPT, PROMPT + ANSWER):
            options = {own: cache, USES: True}
            outs.append(self.run(language, column, column + 1, **options)[0])
        return torch.cat(outs, 1), cache


def _sample(language: Any, device: torch.device) -> Sample:
    generator = torch.Generator("cpu").manual_seed(0)
    config, n = language.config, PROMPT + ANSWER
    x = torch.randn(len(PADDED), n, int(config.hidden_size), generator=generator, device="cpu")
    # No larger than embeddings are, so that a difference in what the layers add is seen.
    x = x * float(getattr(config, "initializer_range", None) or 0.02)
    place = torch.arange(n, device="cpu")
    mask = (place >= torch.tensor(PADDED, device="cpu")[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    if type(language).__name__ in MROPE:  # time, row and column, as in an image
        axes = torch.stack([place * 0, place % 3, place % 2])
        positions = positions + axes[:, None]
    weights = (language.embed_tokens.weight, language.norm.weight)  # the first may be quantised
    dtype = next((w.dtype for w in weights if w.is_floating_point()), x.dtype)
    return Sample(x.to(device, dtype), mask.to(device), positions.to(device))


def _compare(language: Any, name: str, steps: Mapping[int, Step], sample: Sample) -> None:
    """Raise unless the first prompt is as without steps, and the others as without a cache."""
    bare, cached, whole = _passes(language, name, steps, sample)
    real = sample.mask.bool()
    cases = (
        (KEPT, cached[:1], bare[:1], real[:1]),
        (HALF, cached[1:], whole[1:], real[1:]),
    )
    scale = max(1.0, float(bare.abs().max()))
    gaps = {what: _gap(a, b, there) / scale for what, a, b, there in cases}
    limit = min(256 * torch.finfo(bare.dtype).eps, 1 / 16)
    if not all(gap <= limit for gap in gaps.values()):
        # Where numbers are coarse (8 bits), the bare layers with and without a cache say how coarse: with
        # one scale for all tokens of a call they differ by tenths.
        again = sample.decoded(language, name, takes(language.__class__).own or "")[0]
        limit = max(limit, min(4 * _gap(again, bare, real) / scale, WORST))
    for what, gap in gaps.items():
        if not gap <= limit:
            raise AttachError(
                f"{name} differs from itself by {gap:.1e} of its largest output when {what}: it takes its "
                f"cache, masks or positions in a way that is not supported. {REFUSED}"
            )


def _passes(
    language: Any, name: str, steps: Mapping[int, Step], sample: Sample
) -> tuple[Tensor, Tensor, Tensor]:
    """All columns `[3, n, c]`: by the bare layers; with steps and a cache; with steps and no cache."""
    trial, n = trial_decoder(language, steps), PROMPT + ANSWER
    own = trial.language.takes.own
    if own is None:
        raise AttachError(f"{name} has no argument for a cache with a known name. {REFUSED}")
    ids = torch.zeros(len(PADDED), n, dtype=torch.int64, device="cpu")
    for row, count in enumerate(VISUAL):
        ids[row, FIRST : FIRST + count] = 1
    layers = tuple(steps)
    visuals = {1: [TrialTokens(full, layers if row else ()) for row, full in enumerate(VISUAL)]}
    mask, what = sample.mask.cpu(), "without any step"
    try:
        bare = sample.run(language, 0, n, **{USES: False})[0]
        undo = trial.install()
        try:
            what = "with a cache"
            trial.prompt(prompt_of(ids[:, :PROMPT], mask[:, :PROMPT], visuals))
            cached, cache = sample.decoded(language, name, own)
            held = int(cache.get_seq_length(trial.language.cache_layers[-1]))
            what = "without a cache"
            trial.prompt(prompt_of(ids, mask, visuals, PROMPT))
            whole = sample.run(language, 0, n, **{USES: False})[0]
        finally:
            undo()
    except TokenzooError:
        raise
    except Exception as error:
        raise AttachError(
            f"{name} does not run on random tokens {what} ({type(error).__name__}: {error}). {REFUSED}"
        ) from error
    gone = [0, *(count - (count >> len(steps)) for count in VISUAL[1:])]
    wanted = max(n - padded - less for padded, less in zip(PADDED, gone, strict=True))
    if held != wanted:
        raise AttachError(
            f"the cache of {name} holds {held} tokens where {wanted} are left: its layers are not "
            f"supported. {REFUSED}"
        )
    return bare, cached, whole


KEPT = "all random tokens are kept, with a cache"
HALF = "half of the random tokens are dropped, with a cache and without one"
WORST = 1 / 2  # of the largest output, where the bare layers differ from themselves
REFUSED = (
    "Nothing was attached. Take transformers 5.20 to 5.24, or a recipe that reduces before the "
    "language model"
)


def _gap(a: Tensor, b: Tensor, there: Tensor) -> float:
    """The largest difference of `[b, n, c]` where `there [b, n]`; NaN if a difference is NaN."""
    return float((a.float() - b.float()).abs()[there.to(a.device)].max())


@contextmanager
def _only(language: Any, layers: list[nn.Module]) -> Generator[None]:
    """Within the context the language model has these of its layers alone."""
    whole = language.layers
    language.layers = nn.ModuleList(layers)
    try:
        yield
    finally:
        language.layers = whole


@contextmanager
def _quiet(language: nn.Module) -> Generator[torch.device]:
    """Run a model in eval mode, without gradients and autocast; yields the device of its input."""
    training = [module for module in language.modules() if module.training]
    device = runs_on(cast("Any", language).embed_tokens)
    language.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield device
    finally:
        for module in training:
            module.training = True
