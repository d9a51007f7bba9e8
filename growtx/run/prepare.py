"""Before the first stage: tokenizer, substrate and packed data, each made once and identified by a fingerprint."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedTokenizerFast

from growtx.config import build_config, fingerprint, parse_yaml
from growtx.data.packing import PackedData
from growtx.data.packing_job import PlanNeed, pack
from growtx.data.sources import PARTS_OF_A_SAMPLE, iterate_documents
from growtx.data.tokenizer import build_tokenizer, load_tokenizer, start_token_id, token_surfaces, tokenizer_fingerprint
from growtx.exceptions import ConfigError
from growtx.growth.assembly import SUBSTRATE_KEY, check_same, describe_model
from growtx.growth.flops import check_budget
from growtx.growth.lineage import TOKENIZER_DIR, import_lineage
from growtx.growth.plan import PlanConfig, Stage, resolve
from growtx.growth.results import find_result
from growtx.growth.scaling import plan_cost, resolve_matched
from growtx.models.configuration import GrowtxConfig
from growtx.models.saving import save_tokenizer
from growtx.run.config import JobConfig, RunConfig
from growtx.run.data_check import check_data
from growtx.storage import Storage, resolve_address
from growtx.store.blobs import BlobStore
from growtx.store.manifest import Manifest
from growtx.store.run_records import SourceReading, read_changes, read_data_record
from growtx.substrate.build import SUBSTRATE_FILE, SubstrateRecord, build_substrate
from growtx.train.data_proof import PREFIX_DIR
from growtx.train.job import TrainJob

_SHAPE_KEYS = (
    "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings", "rope_theta",
    "layer_norm_eps", "lm_head_bias", "substrate_width", "substrate_expansion", "substrate_reinjection",
)  # fmt: skip

_TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Prepared:
    """What all stages of a run share."""

    job: TrainJob  # with all stages of the plan
    tokenizer: PreTrainedTokenizerFast
    data: PackedData


def prepare(config: RunConfig, run: Storage) -> Prepared:
    """Build or reopen everything that training depends on, and check the budget.

    Raises:
        ConfigError, BudgetError, DataError, SubstrateError: before anything has been trained.
    """
    config.tracking.check_installed()
    parent = _import_parent(config, run)
    before = {
        "num_stages_before": parent.index if parent else 0,
        "num_blocks_before": parent.num_blocks if parent else 0,
    }
    num_blocks = resolve(config.plan, **before)[-1].num_blocks
    tokenizer = _tokenizer(config, run)
    if parent is not None:
        found = tokenizer_fingerprint(tokenizer)
        check_same("tokenizer", parent.tokenizer_fingerprint, found, f"parent={config.parent}")
    substrate = _substrate(config, run, tokenizer)
    if parent is not None:
        found = substrate.substrate_fingerprint
        check_same("substrate", parent.substrate_fingerprint, found, f"parent={config.parent}")
    architecture = _architecture(config, run, substrate, tokenizer, num_blocks)
    if parent is not None:
        _check_shape(parent, architecture, str(config.parent))
    stages = resolve_matched(config.plan, architecture, tokens_per_step=config.tokens_per_step, **before)
    check_budget(architecture, stages, config.plan.budget)
    recorded = read_data_record(run)
    data, readings = pack(
        config.data,
        tokenizer,
        context_length=config.model.context_length,
        cache_dir=cache_dir(config, run),
        need=_need(config, stages, parent),
        recorded=recorded.packed_path if recorded else None,
        show=_show.get(),
    )
    check_data(run, data, stages, parent, tuple(SourceReading(**asdict(reading)) for reading in readings))
    weights = tuple(
        plan_cost(architecture, [stage], "flops", tokens_per_step=config.tokens_per_step) for stage in stages
    )
    job = TrainJob(
        run_dir=run.root,
        packed_path=data.path,
        local_bytes=config.data.local_bytes,
        prefix_cache_dir=f"{cache_dir(config, run)}/{PREFIX_DIR}",
        seed=config.seed,
        architecture=describe_model(architecture),
        substrate=substrate,
        data_fingerprint=data.fingerprint,
        config_fingerprint=fingerprint(config.identity_fields()),
        stages=stages,
        num_stages=stages[-1].index,
        stage_weights=(0.0,) * (stages[0].index - 1) + weights,
        training=config.training,
        resources=config.resources,
        tracking=config.tracking,
        rate_keys={stage.index: _rate_key(config.plan, position) for position, stage in enumerate(stages)},
        changes=tuple(change.sentence() for change in read_changes(run)),
        fences=run.fences,
    )
    return Prepared(job, tokenizer, data)


def _need(config: RunConfig, stages: Sequence[Stage], parent: Manifest | None) -> PlanNeed:
    """Windows that the plan draws: of a lineage that it continues, those before count too, since it reads on."""
    context_length = config.model.context_length
    weights = dict(zip(config.data.source_names, (source.weight for source in config.data.sources), strict=True))
    before = parent.num_tokens // context_length if parent else 0
    of_stages: list[tuple[float, Mapping[str, float]]] = [(before, weights)]
    for stage in stages:
        per_step = stage.train.tokens_per_step(context_length, default=config.tokens_per_step)
        num_windows = stage.train.num_steps(per_step) * per_step / context_length
        of_stages.append((num_windows, weights if stage.data is None else stage.data))
    of_sources = [
        sum(num_windows * mix.get(name, 0.0) / sum(mix.values()) for num_windows, mix in of_stages) for name in weights
    ]
    return PlanNeed(
        int(sum(num_windows for num_windows, _ in of_stages)),
        config.training.evaluation.num_windows,
        tuple(of_sources) if any(stage.data for stage in stages) else None,
    )


TELL_EVERY_SECONDS = 30.0
_show: ContextVar[Callable[[str], None]] = ContextVar("show_preparation", default=lambda _: None)


@contextmanager
def preparing(console: Console) -> Iterator[None]:
    """Show how far whatever is prepared inside is: in place on a terminal, as a line now and then in a log."""
    told_at = time.monotonic()
    with console.status("Preparing tokenizer, substrate and data ...") as status:

        def show(sentence: str) -> None:
            nonlocal told_at
            if console.is_terminal:
                status.update(sentence)
            elif time.monotonic() - told_at >= TELL_EVERY_SECONDS:
                told_at = time.monotonic()
                console.print(sentence, highlight=False, markup=False, soft_wrap=True)

        token = _show.set(show)
        try:
            yield
        finally:
            _show.reset(token)


def _rate_key(plan: PlanConfig, position: int) -> str:
    """Where the learning rate of a stage is set."""
    own = plan.stages is not None and position < len(plan.stages) and "learning_rate" in plan.stages[position].train
    return f"plan.stages.{position}.train.learning_rate" if own else "plan.train.learning_rate"


def copy_tokenizer_and_substrate(own: Storage, other: Storage, *, substrate: bool = True) -> None:
    """Give a run that is not prepared yet another run's tokenizer and, if both use the same one, its substrate."""
    if own.exists(SUBSTRATE_FILE):
        return
    # Its presence is what is asked for, so it is written after the rest of the tokenizer.
    files = sorted(other.list_files(TOKENIZER_DIR), key=lambda file: file.endswith(f"/{_TOKENIZER_FILE}"))
    if substrate:
        BlobStore(own).copy_from(BlobStore(other.root), _recorded_substrate(other).blob)
        files.append(SUBSTRATE_FILE)  # last: its presence is what is checked
    for file in files:
        own.write_bytes(file, other.read_bytes(file))


def _check_shape(parent: Manifest, architecture: GrowtxConfig, where: str) -> None:
    """Refuse blocks of another shape here, before the workers try to load them."""
    wanted = describe_model(architecture)
    for key, value in ({"substrate_reinjection": False} | parent.model).items():  # of runs from before there was any
        if key in _SHAPE_KEYS and wanted[key] != value:
            raise ConfigError(
                f"parent={where} has {key}={value}, but the configuration gives {wanted[key]}",
                "Set the `model` block to the values in the parent's run.yaml",
            )


def cache_dir(config: JobConfig, run: Storage) -> str:
    """Where packed data is kept: shared by the runs next to this one, because it is keyed by its content."""
    return resolve_address(config.cache_dir) if config.cache_dir else run.root.rsplit("/", 1)[0] + "/cache"


def _import_parent(config: RunConfig, run: Storage) -> Manifest | None:
    """Bring the lineage that the plan continues into this run, once."""
    if config.parent is None:
        return None
    parent = find_result(config.parent)
    parent.require_lineage()
    record = read_data_record(run)
    return import_lineage(parent.address, run, up_to=record.parent if record else None)


def _tokenizer(config: RunConfig, run: Storage) -> PreTrainedTokenizerFast:
    if run.exists(f"{TOKENIZER_DIR}/{_TOKENIZER_FILE}"):
        return load_tokenizer(run.download(TOKENIZER_DIR))
    tokenizer = build_tokenizer(config.tokenizer, _training_texts(config), config.data)
    with tempfile.TemporaryDirectory() as directory:
        save_tokenizer(tokenizer, Path(directory))
        run.replace_directory(directory, TOKENIZER_DIR, last=_TOKENIZER_FILE)
    return tokenizer


def _training_texts(config: RunConfig) -> Iterator[str]:
    """Text to make a vocabulary of: of large sources a part, which is more than the sample that is taken of it."""
    documents = iterate_documents(config.data, parts=PARTS_OF_A_SAMPLE)
    return (document.text for document in documents if document.split == "train")


def _substrate(config: RunConfig, run: Storage, tokenizer: PreTrainedTokenizerFast) -> SubstrateRecord:
    if run.exists(SUBSTRATE_FILE):
        return _recorded_substrate(run)
    substrate = build_substrate(
        config.substrate,
        token_surfaces(tokenizer),
        config.model.hidden_size,
        seed=config.seed if config.substrate.kind == "learned" else 42,
        cache_dir=f"{cache_dir(config, run)}/substrates",
    )
    record = SubstrateRecord(
        blob=BlobStore(run).put({SUBSTRATE_KEY: substrate.weight}),
        substrate_fingerprint=substrate.fingerprint,
        expansion=substrate.expansion,
        kind=config.substrate.kind,
        recipe=substrate.recipe,
    )
    run.write_text(SUBSTRATE_FILE, record.model_dump_json(indent=1) + "\n")
    return record


def _recorded_substrate(run: Storage) -> SubstrateRecord:
    return build_config(SubstrateRecord, parse_yaml(run.read_text(SUBSTRATE_FILE), run.path(SUBSTRATE_FILE)))


def _architecture(
    config: RunConfig, run: Storage, substrate: SubstrateRecord, tokenizer: PreTrainedTokenizerFast, num_blocks: int
) -> GrowtxConfig:
    """The finished model's configuration, with the fingerprints of what it is built on."""
    vocab_size, width = BlobStore(run.root).get(substrate.blob)[SUBSTRATE_KEY].shape
    if vocab_size != len(tokenizer):
        raise ConfigError(
            f"the substrate of {run.root} has {vocab_size} rows, but its tokenizer has {len(tokenizer)} tokens",
            f"Restore tokenizer/ and {SUBSTRATE_FILE} there from a copy; delete both where no stage is finished",
        )
    architecture = config.model.architecture(
        vocab_size=vocab_size,
        num_blocks=num_blocks,
        final_num_blocks=num_blocks,
        substrate_width=width,
        expansion=substrate.expansion,
    )
    architecture.substrate_fingerprint = substrate.substrate_fingerprint
    architecture.tokenizer_fingerprint = tokenizer_fingerprint(tokenizer)
    architecture.substrate_kind = substrate.kind
    architecture.start_token_id = architecture.bos_token_id = start_token_id(tokenizer)
    architecture.eos_token_id = tokenizer.eos_token_id
    architecture.pad_token_id = tokenizer.pad_token_id
    return architecture
