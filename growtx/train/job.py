"""What the driver hands to the workers: everything a stage needs to know, as plain data."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from growtx.config import ConfigModel, fingerprint
from growtx.fence import Fence
from growtx.growth.plan import Stage
from growtx.models.configuration import GrowtxConfig
from growtx.storage import Storage
from growtx.store.blobs import BlobStore
from growtx.substrate.build import SubstrateRecord
from growtx.train.settings import ResourcesConfig, TrainingConfig
from growtx.train.tracking import TrackingConfig


class TrainJob(ConfigModel):
    """A run of stages on one worker group."""

    run_dir: str
    shared_dir: str | None = None  # run with the tokenizer, blobs and parents that this one uses; null: its own
    packed_path: str
    local_bytes: int | None = None  # of packed data in a bucket that a node keeps at once
    prefix_cache_dir: str
    num_trials: int = 1  # runs that will share a prefix cache
    seed: int
    architecture: dict[str, Any]  # keyword arguments of GrowtxConfig; its depth is set by each stage
    substrate: SubstrateRecord
    data_fingerprint: str
    config_fingerprint: str
    stages: tuple[Stage, ...]
    num_stages: int  # of the whole plan
    stage_weights: tuple[float, ...]  # expected share of each stage of the plan in the whole work
    training: TrainingConfig
    resources: ResourcesConfig
    tracking: TrackingConfig = TrackingConfig()
    rate_keys: dict[int, str] = Field(
        default_factory=dict
    )  # by stage: the configuration's key of its learning rate, for sentences
    changes: tuple[str, ...] = ()  # of the configuration, since the run began: sentences
    fences: tuple[Fence, ...] = ()  # what every write into the run directory asks first

    def model_at(self, num_blocks: int) -> GrowtxConfig:
        """The architecture at a depth."""
        return GrowtxConfig(**{**self.architecture, "num_hidden_layers": num_blocks})

    @property
    def context_length(self) -> int:
        return int(self.architecture["max_position_embeddings"])

    @property
    def run_storage(self) -> Storage:
        """The run directory, as this job may write to it."""
        return Storage(self.run_dir, fences=self.fences)

    @property
    def blobs(self) -> BlobStore:
        """The blobs of the run, or of the one that it shares them with."""
        return BlobStore(Storage(self.store_dir, fences=self.fences))

    @property
    def store_dir(self) -> str:
        """The run directory that holds tokenizer, blobs and earlier manifests."""
        return self.shared_dir or self.run_dir

    def training_of(self, stage: Stage) -> TrainingConfig:
        """How a stage trains: its own batch, where it has one."""
        return self.training.with_batch(stage.train.global_batch_size)

    def tokens_per_step(self, stage: Stage) -> int:
        return self.training_of(stage).global_batch_size * self.context_length

    def num_tokens(self, stage: Stage) -> int:
        """Tokens that a stage trains on, unless time or convergence end it sooner."""
        return stage.train.num_steps(self.tokens_per_step(stage)) * self.tokens_per_step(stage)

    def resources_of(self, stage: Stage) -> ResourcesConfig:
        """What a stage runs on; consecutive stages with the same share one worker group."""
        if stage.num_workers is None:
            return self.resources
        return self.resources.of_size(stage.num_workers)

    def stage_fingerprint(self, stage: Stage, parent_digest: str | None) -> str:
        """Identity of a stage's training: a checkpoint serves only the stage it was made in.

        The data are not part of it: whether they may change is decided before (`growtx.run.data_check`).
        """
        return fingerprint(
            {
                "stage": stage.model_dump(mode="json"),
                "parent": parent_digest,
                "architecture": self.architecture,
                "seed": self.seed,
                "global_batch_size": self.training_of(stage).global_batch_size,
            }
        )
