"""The end of a stage: store what it made, prove what it must not have touched, write the manifest last."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from growtx import __version__
from growtx.exceptions import TrainingError
from growtx.growth.assembly import (
    HEAD_PREFIXES,
    SUBSTRATE_KEY,
    assemble,
    block_prefix,
    describe_model,
    split_state,
)
from growtx.growth.budget import active_parameters
from growtx.growth.lora import adapters_by_block
from growtx.models.causal_lm import GrowtxForCausalLM
from growtx.models.counting import num_params
from growtx.store.manifest import BlockRef, FrozenCheck, Manifest, write_manifest
from growtx.train.distributed import on_rank_zero, world_size
from growtx.train.engine import State
from growtx.train.kernels import use_bf16
from growtx.train.memory import peak_memory_bytes
from growtx.train.stage_run import StageRun

MERGE_TOLERANCE = 1e-4  # largest difference of logits that merging adapters may make in fp32
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class _Written:
    substrate: str
    blocks: tuple[BlockRef, ...]
    head: str
    new: tuple[str, ...]


def seal(run: StageRun, ended_by: str) -> Manifest:
    """Store a trained stage and return its manifest. Collective.

    Raises:
        TrainingError: a frozen tensor changed, or merging the adapters changed the logits.
    """
    after, num_tensors = run.engine.frozen_hash()
    if after != run.frozen_before:
        raise TrainingError(
            f"a frozen tensor changed during stage {run.stage.index} ({run.stage.name}); nothing of it was stored",
            "This must not happen: please report it with the run's configuration",
        )
    scores = run.evaluate("end")
    if not math.isfinite(scores[""].loss):
        raise TrainingError(
            f"the held-out loss of stage {run.stage.index} ({run.stage.name}) is not finite; nothing of it was stored",
            "Lower train.learning_rate",
        )
    probe_BT, logits_BTV = _probe(run)
    trained = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in run.engine.trainable_state().items()}
    frozen = FrozenCheck(num_tensors=num_tensors, before=run.frozen_before, after=after)
    seconds = run.position.seconds
    total = scores.pop("")
    metrics: dict[str, Any] = {
        "eval/loss": total.loss,
        "eval/bits_per_byte": total.bits_per_byte,
        "eval/bits_per_byte_start": run.position.first_score,
        "eval/bits_per_byte_by_source": {name: score.bits_per_byte for name, score in scores.items()},
        "eval/num_bytes": total.num_bytes,
        "seconds": seconds,
        "steps": run.position.step,
        "tokens_per_second": run.position.step * run.tokens_per_step / max(seconds, 1e-9),
        "peak_memory_bytes": peak_memory_bytes(),
        "num_workers": world_size(),
        "pause_seconds": run.pause_seconds,
        "prefix_cached": run.prefix_cached,
        **run.memory_metrics(),
    }

    def store() -> Manifest:
        written = _write_blobs(run, trained)
        manifest = _manifest(run, written, frozen, ended_by, metrics)
        model = assemble(run.store, manifest)  # read back from the store: what is sealed is what is checked
        difference = _difference(model, probe_BT, logits_BTV)
        if not use_bf16(run.settings):
            manifest.metrics["seal_max_logit_difference"] = difference
            _check_difference(run, difference)
        manifest = manifest.model_copy(update={"samples": tuple(_samples(run, model))})
        write_manifest(run.storage, manifest)
        return manifest

    return on_rank_zero(store)


def _write_blobs(run: StageRun, trained: State) -> _Written:
    """Put the tensors that trained into blobs; everything else keeps its parent's."""
    stage, parent, put = run.stage, run.parent, run.store.put
    before = parent.blobs() if parent else [run.job.substrate.blob]
    blocks = list(parent.blocks) if parent else []
    adapters = adapters_by_block(trained, stage.lora) if stage.lora else {}
    for index, tensors in adapters.items():
        old = blocks[index]
        blocks[index] = BlockRef(blob=old.blob, adapters=(*old.adapters, put(tensors)))
    for index in range(stage.num_frozen, stage.num_blocks):
        ref = BlockRef(blob=put(split_state(trained, block_prefix(index))))
        blocks[index : index + 1] = [ref]
    head = {name: tensor for name, tensor in trained.items() if name.startswith(HEAD_PREFIXES)}
    substrate = parent.substrate if parent else run.job.substrate.blob
    if stage.train_substrate:
        substrate = put({SUBSTRATE_KEY: trained[SUBSTRATE_KEY]})
    written = _Written(substrate, tuple(blocks), put(head) if head else _parent_head(run), ())
    blobs = [substrate, *(b for ref in blocks for b in (ref.blob, *ref.adapters)), written.head]
    new = tuple(dict.fromkeys(blob for blob in blobs if blob not in before))
    if parent is None:
        new = (run.job.substrate.blob, *(blob for blob in new if blob != run.job.substrate.blob))
    return _Written(substrate, tuple(blocks), written.head, new)


def _parent_head(run: StageRun) -> str:
    if run.parent is not None:
        return run.parent.head
    state = run.engine.model.state_dict()  # a first stage whose head stays as it was drawn
    return run.store.put({name: tensor for name, tensor in state.items() if name.startswith(HEAD_PREFIXES)})


def _manifest(
    run: StageRun, written: _Written, frozen: FrozenCheck, ended_by: str, metrics: dict[str, Any]
) -> Manifest:
    job = run.job
    return Manifest(
        name=run.stage.name,
        index=run.stage.index,
        parent=run.parent.digest() if run.parent else None,
        stage=run.stage.model_dump(mode="json"),
        model=describe_model(run.config),
        substrate=written.substrate,
        blocks=written.blocks,
        head=written.head,
        tokenizer_fingerprint=job.architecture["tokenizer_fingerprint"],
        substrate_fingerprint=job.architecture["substrate_fingerprint"],
        data_fingerprint=job.data_fingerprint,
        config_fingerprint=job.config_fingerprint,
        active_parameters=active_parameters(run.config, run.stage),
        total_parameters=num_params(run.config).total,
        num_tokens=run.num_tokens,
        new_blobs=written.new,
        frozen_check=frozen,
        ended_by=ended_by,
        metrics=metrics,
        versions={
            "python": platform.python_version(),
            "growtx": __version__,
            **{name: version(name) for name in ("torch", "ray", "deepspeed", "transformers", "peft")},
        },
    )


def _probe(run: StageRun) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the model as trained, adapters unmerged, on the first held-out window. Collective."""
    probe_BT = run.context.held_out.tokens_NT[:1]
    model = run.engine.evaluation_model()
    model.eval()
    with torch.no_grad():
        logits_BTV = model(input_ids=probe_BT.to(run.engine.device), use_cache=False).logits
    return probe_BT, logits_BTV.float().cpu()


@torch.no_grad()
def _difference(model: GrowtxForCausalLM, probe_BT: torch.Tensor, logits_BTV: torch.Tensor) -> float:
    model.eval()
    return float((model(input_ids=probe_BT, use_cache=False).logits - logits_BTV).abs().max())


def _check_difference(run: StageRun, difference: float) -> None:
    if not difference <= MERGE_TOLERANCE:  # also when it is not a number
        raise TrainingError(
            f"stage {run.stage.index}: the stored model's logits differ by {difference:.2g} from the trained one's",
            "Lower the adapters' alpha or rank; the stage before is kept",
        )


@torch.no_grad()
def _samples(run: StageRun, model: GrowtxForCausalLM) -> list[dict[str, str]]:
    """Continuations of the configured prompts, or of the beginnings of held-out windows."""
    settings, tokenizer = run.settings.evaluation, run.context.tokenizer
    windows_NT = run.context.held_out.tokens_NT
    length = min(16, windows_NT.shape[1] // 2)
    chosen = torch.unique(torch.linspace(0, len(windows_NT) - 1, settings.num_samples).round().long())
    prompts = [tokenizer(prompt)["input_ids"] for prompt in settings.prompts] or [
        windows_NT[row, :length].tolist() for row in chosen
    ]
    room = run.config.max_position_embeddings - settings.sample_tokens
    samples = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.job.seed)
        for prompt in prompts:
            prompt_1T = torch.tensor([prompt[-max(1, room) :]])
            sampling: dict[str, Any] = {"do_sample": settings.temperature > 0}
            if settings.temperature > 0:
                sampling["temperature"] = settings.temperature
            output_1T = model.generate(
                prompt_1T,
                attention_mask=torch.ones_like(prompt_1T),
                max_new_tokens=settings.sample_tokens,
                pad_token_id=run.config.pad_token_id,
                **sampling,
            )
            text = tokenizer.decode(output_1T[0, prompt_1T.shape[1] :], skip_special_tokens=True)
            samples.append({"prompt": tokenizer.decode(prompt_1T[0], skip_special_tokens=True), "text": text})
    return samples
