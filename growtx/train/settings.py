"""How training runs: batch, precision, sharding, evaluation, checkpoints, and the resources it asks Ray for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from growtx.config import ConfigModel


class EvaluationConfig(ConfigModel):
    """Evaluation on held-out windows, at the start and end of every stage."""

    num_windows: int = Field(64, ge=1, description="maximum number of held-out windows; the same ones every time")
    every_steps: int | None = Field(
        None, ge=1, description="optimizer steps between evaluations; null: none in between"
    )
    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="prompts of the samples; empty: beginnings of held-out windows"
    )
    num_samples: int = Field(3, ge=0, description="samples generated at the end of a stage, if `prompts` is empty")
    sample_tokens: int = Field(48, ge=1)
    temperature: float = Field(0.7, ge=0, description="of the samples; 0: greedy")


class CheckpointConfig(ConfigModel):
    """Resumable state inside a stage; removed when the run is finished."""

    every_seconds: float | None = Field(120.0, gt=0)
    every_steps: int | None = Field(None, ge=1)
    keep: int = Field(2, ge=1)


class TrainingConfig(ConfigModel):
    """The `training` block: what holds for all stages."""

    global_batch_size: int = Field(32, ge=1, description="windows in an optimizer step, over all workers")
    micro_batch_size: int | None = Field(
        None, ge=1, description="windows a worker holds at a time; null: its whole share, no accumulation"
    )
    zero_stage: Literal[1, 2, 3] = Field(
        1, description="what DeepSpeed shards: optimizer, gradients, parameters; 1 is 2 with bf16 and micro batches"
    )
    offload_optimizer: bool = Field(False, description="keep optimizer state in the host's memory")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on GPUs, fp32 on CPUs")
    gradient_clipping: float = Field(1.0, ge=0, description="largest gradient norm; 0: no clipping")
    prefix: Literal["auto", "recompute", "cache"] = Field(
        "auto", description="the frozen prefix's activations; auto: cache where it saves enough and fits"
    )
    prefix_cache_gib: float = Field(8.0, gt=0, description="disk space for one prefix's activations, with prefix=auto")
    activation_checkpointing: bool = False
    loss_kernel: Literal["auto", "chunked", "plain", "liger"] = Field(
        "auto", description="cross-entropy kernel; auto: liger's on GPUs if it is installed, else chunked"
    )
    compile: bool = Field(False, description="torch.compile the blocks")
    log_every_steps: int = Field(10, ge=1)
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    def with_batch(self, global_batch_size: int | None) -> TrainingConfig:
        """These settings with a stage's own batch, where it has one."""
        return self if global_batch_size is None else self.model_copy(update={"global_batch_size": global_batch_size})

    def uses_bf16(self, *, has_gpu: bool) -> bool:
        """Whether to compute in bf16: CPUs without native bf16 are some 50 times slower in it than in fp32."""
        return self.precision == "bf16" or (self.precision == "auto" and has_gpu)

    def sums_in_fp32(self, num_workers: int, *, bf16: bool) -> bool:
        """Whether gradients of several micro batches are added up, which bf16 alone would round at every one."""
        return bf16 and self.num_micro_batches(num_workers) > 1

    def sharding(self, num_workers: int, *, bf16: bool) -> int:
        """The ZeRO stage that runs: where gradients are summed in fp32, 2 in place of 1.

        DeepSpeed's ZeRO 1 sums in bf16 (after 256 micro batches 1.5 % off), or else changes to another optimizer class
        whose weights and moments cannot be read.
        """
        return max(2, self.zero_stage) if self.sums_in_fp32(num_workers, bf16=bf16) else self.zero_stage

    def micro_batch(self, num_workers: int) -> int:
        """Windows in one forward pass of a worker."""
        share = _share(self.global_batch_size, num_workers)
        return min(self.micro_batch_size or share, share)

    def num_micro_batches(self, num_workers: int) -> int:
        """Forward passes of each worker in a step."""
        return num_micro_batches(self.global_batch_size, self.micro_batch(num_workers), num_workers)

    def check_workers(self, num_workers: int, *, is_elastic: bool = False) -> None:
        """Refuse a batch that does not split evenly; over an elastic group, whose size is not known, any may.

        Raises:
            ValueError: saying what would split.
        """
        if is_elastic:
            if self.global_batch_size < num_workers:
                raise ValueError(
                    f"training.global_batch_size={self.global_batch_size} leaves some of {num_workers} workers without "
                    "a window; lower the upper end of resources.num_workers"
                )
            return
        share, rest = divmod(self.global_batch_size, num_workers)
        if rest or not share:
            raise ValueError(
                f"training.global_batch_size={self.global_batch_size} does not split over {num_workers} workers; "
                "choose a multiple of resources.num_workers"
            )
        if share % self.micro_batch(num_workers):
            raise ValueError(
                f"training.micro_batch_size={self.micro_batch_size} does not divide a worker's {share} windows; "
                "choose a divisor"
            )


def _share(global_batch_size: int, num_workers: int) -> int:
    """Windows of the worker that has most."""
    return -(-global_batch_size // num_workers)


def num_micro_batches(global_batch_size: int, micro_batch_size: int, num_workers: int) -> int:
    """Forward passes of every worker in a step; the last ones are not full where the batch does not split evenly."""
    return -(-_share(global_batch_size, num_workers) // micro_batch_size)


class AcceleratorConfig(ConfigModel):
    """The GPU that a preset is written for; `growtx plan` forecasts with it, training ignores it."""

    name: str
    memory_gib: float = Field(gt=0)
    tflops: float = Field(gt=0, description="dense bf16 peak, in 1e12 FLOPs per second")
    utilisation: float = Field(0.35, gt=0, le=1, description="share of the peak that training is assumed to reach")


class PrefixJobConfig(ConfigModel):
    """A Ray Data job that fills the prefix cache beside a stage's workers, which wait for it."""

    num_workers: int = Field(1, ge=1)
    use_gpu: bool = False
    cpus_per_worker: float = Field(1, gt=0)


class ResourcesConfig(ConfigModel):
    """The `resources` block: what a worker group asks the Ray cluster for."""

    num_workers: int = Field(
        1, ge=1, description="[2, 8]: an elastic group of as many workers between as there is room for"
    )
    min_workers: int | None = Field(
        None, ge=1, description="fewest workers of an elastic group, as num_workers=[2, 8] sets it; null: no such group"
    )
    resize_seconds: float = Field(60.0, gt=0, description="how often an elastic group looks whether room has changed")
    use_gpu: bool = False
    cpus_per_worker: float = Field(1, gt=0)
    accelerator_type: str | None = Field(
        None, description="only GPUs that Ray knows by this name, such as H100; null: any", min_length=1
    )
    accelerator: AcceleratorConfig | None = None
    prefix_job: PrefixJobConfig | None = Field(
        None, description="fill the prefix cache with a Ray Data job of this size; null: the stage's workers fill it"
    )
    max_failures: int = Field(
        3, ge=0, description="losses of workers in a row, with nothing saved between them, that a run outlives"
    )
    wait_seconds: float = Field(
        60.0, ge=0, description="how long to wait for nodes that are not there yet, on a cluster that can grow"
    )

    @model_validator(mode="before")
    @classmethod
    def _range_of_workers(cls, values: Any) -> Any:
        """`num_workers: [2, 8]` stands for `num_workers: 8, min_workers: 2`."""
        if not isinstance(values, dict) or not isinstance(numbers := values.get("num_workers"), list | tuple):
            return values
        if len(numbers) != 2 or not all(isinstance(number, int) and number > 0 for number in numbers):
            raise ValueError(f"num_workers={list(numbers)} is no range; write the fewest and the most, such as [2, 8]")
        return {**values, "min_workers": numbers[0], "num_workers": numbers[1]}

    @model_validator(mode="after")
    def _range_goes_up(self) -> ResourcesConfig:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"num_workers=[{self.min_workers}, {self.num_workers}] goes down; write the fewest workers first"
            )
        return self

    @model_validator(mode="after")
    def _type_of_gpus(self) -> ResourcesConfig:
        if self.accelerator_type is not None and not self.use_gpu:
            raise ValueError(f"accelerator_type={self.accelerator_type} chooses among GPUs; set use_gpu too")
        return self

    @model_validator(mode="after")
    def _whole_cpus(self) -> ResourcesConfig:
        if self.cpus_per_worker > 1 and self.cpus_per_worker != int(self.cpus_per_worker):
            raise ValueError(
                f"cpus_per_worker={self.cpus_per_worker} is neither whole nor below 1; write a whole number, or a "
                "share such as 0.5"
            )
        return self

    @property
    def is_elastic(self) -> bool:
        return self.min_workers is not None

    @property
    def fewest_workers(self) -> int:
        """Workers without which nothing starts."""
        return self.min_workers or self.num_workers

    def check_fixed(self, what: str) -> None:
        """Refuse an elastic group where several groups share a cluster: each would wait for the room of the others.

        Raises:
            ValueError: it is one.
        """
        if self.is_elastic:
            raise ValueError(
                f"resources.num_workers=[{self.min_workers}, {self.num_workers}]: the groups of {what} have a fixed "
                "size; give one number"
            )

    def of_size(self, num_workers: int) -> ResourcesConfig:
        """The same for a group of a fixed size."""
        return self.model_copy(update={"num_workers": num_workers, "min_workers": None})

    @property
    def num_cpus(self) -> float:
        """CPUs that a worker group takes, including the job that fills its prefix cache."""
        job = self.prefix_job
        return self.num_workers * self.cpus_per_worker + (job.num_workers * job.cpus_per_worker if job else 0)

    @property
    def num_gpus(self) -> int:
        """GPUs likewise."""
        job = self.prefix_job
        return (self.num_workers if self.use_gpu else 0) + (job.num_workers if job and job.use_gpu else 0)
