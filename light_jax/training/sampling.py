"""`sample_prompts`: what the model writes, while it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from light_jax.config import TrainingConfig
from light_jax.generate import generate_batch
from light_jax.models.transformer import Transformer
from light_jax.parallel.devices import out_of_memory
from light_jax.parallel.hosts import is_main
from light_jax.parallel.sharding import replicated
from light_jax.reporting.log import Log
from light_jax.reporting.tracking import Sample
from light_jax.state import Run
from light_llm.checkpoint.tokenizer import TOKENIZER, Found, check_vocabulary
from light_llm.errors import UserError, one_line
from light_llm.sampling import Sampling, check_prompts
from light_llm.text import decoded, encode_prompt
from light_llm.tokenizer import Tokenizer, load_tokenizer

MAX_TOKENS = 64
TEMPERATURE = 0.8  # llm-run's


def sampling_of(seed: int, step: int) -> Sampling:
    """How text is sampled after a step: by draws that are its own, in a resumed run too."""
    drawn = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
    return Sampling(MAX_TOKENS, TEMPERATURE, seed=int(drawn >> np.uint64(1)))


@dataclass(frozen=True)
class Prompts:
    """The prompts of a run, encoded."""

    texts: list[str]
    ids: list[list[int]]
    tokenizer: Tokenizer


def prompts_of(cfg: TrainingConfig) -> Prompts | None:
    """The prompts that are continued, if any, encoded by the run's tokenizer.

    That is the one of tokenizer_path, without it the copy in checkpoint_dir.

    Raises:
        UserError: there is no tokenizer, it is another model's, or the model cannot continue them.
    """
    if not cfg.sample_prompts:
        return None
    copy = Path(cfg.checkpoint_dir) / TOKENIZER
    path = cfg.tokenizer_path or (str(copy) if copy.is_dir() else None)
    if path is None:
        raise UserError("sample_prompts needs a tokenizer; set tokenizer_path, or leave it out")
    if cfg.model.attention.mask_type == "bidirectional":
        raise UserError(
            "sample_prompts needs a model that writes from left to right; leave it out with "
            "model.attention.mask_type=bidirectional"
        )
    try:
        tokenizer = load_tokenizer(path, fetch=False)
    except UserError as error:
        raise UserError(f"sample_prompts needs the tokenizer of tokenizer_path: {error}") from None
    check_vocabulary(Found(tokenizer, path), cfg.model, "set tokenizer_path to this model's")
    try:
        ids = [encode_prompt(tokenizer, prompt) for prompt in cfg.sample_prompts]
        check_prompts(cfg.model, ids, sampling_of(cfg.seed, 0))
    except UserError as error:
        raise UserError(f"sample_prompts: {error}") from None
    return Prompts(cfg.sample_prompts, ids, tokenizer)


class Sampler:
    """Continues the prompts with the weights of a run, where they lie; every process calls it."""

    def __init__(self, run: Run) -> None:
        self._run, self._prompts = run, prompts_of(run.cfg)
        cfg = run.cfg
        # Not the placement of training: its kernels want whole blocks of positions.
        self._graphdef = nnx.graphdef(
            nnx.eval_shape(
                lambda: Transformer(cfg.model, dtype=jnp.dtype(cfg.dtype), rngs=nnx.Rngs(0))
            )
        )

    def show(self, step: int, log: Log) -> None:
        """Sample after `step`, if it is time. No text is worth a run: what fails is a warning."""
        if self._prompts is None or not self._run.cfg.samples_after(step):
            return
        with log.paused("sampling"):
            try:
                with out_of_memory("sampling"):
                    rows = self._written(self._prompts, step)
                samples = _decoded(self._prompts, rows) if is_main() else []
            except (UserError, ValueError, KeyError, IndexError) as error:
                log.reporter.line(f"warning: no text was sampled at step {step}: {one_line(error)}")
                return
            log.samples(step, samples)

    def _written(self, prompts: Prompts, step: int) -> list[list[int]]:
        """The ids that continue each prompt."""
        run = self._run
        several = jax.process_count() > 1
        model = nnx.merge(self._graphdef, run.state.params)  # the arrays themselves, no copies
        steps = generate_batch(
            model,
            prompts.ids,
            sampling_of(run.cfg.seed, step),
            prompts.tokenizer.eos_id,
            everywhere=replicated(run.mesh) if several else None,
        )
        rows: list[list[int]] = [[] for _ in prompts.ids]
        for ids in steps:
            for row, id in zip(rows, ids, strict=True):
                if id is not None:
                    row.append(id)
        return rows


def _decoded(prompts: Prompts, rows: Sequence[Sequence[int]]) -> list[Sample]:
    return [
        Sample(prompt, "".join(decoded(prompts.tokenizer, prompt_ids, ids)))
        for prompt, prompt_ids, ids in zip(prompts.texts, prompts.ids, rows, strict=True)
    ]
