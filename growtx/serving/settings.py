"""What `serve run serve.app:build KEY=VALUE ...` and serve/config.yaml may set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from growtx.config import ConfigModel, build_config, parse_yaml
from growtx.exceptions import ConfigError
from growtx.serving.chat_template import TRANSCRIPT, compiled

JINJA = ("{{", "{%")


class RequestLimits(ConfigModel):
    """What one request may ask for."""

    max_request_bytes: int = Field(default=1_000_000, ge=1, description="bytes in a request body; more gets a 413")
    max_choices: int = Field(default=128, ge=1, description="texts of one request: prompts times n")
    max_stop_sequences: int = Field(default=4, ge=0, description="stop sequences of one request")


class ServeSettings(ConfigModel):
    """Settings of the HTTP endpoint."""

    model: str | list[str] = Field(
        description="run directory, manifest or Hugging Face directory; a list of them is served as an ensemble"
    )
    name: str | None = Field(default=None, description="model name that clients send; default: last part of the path")
    rule: str | None = Field(default=None, description="how a list of models is combined when a request does not say")
    depths: Literal["last", "all"] | list[int] = Field(
        default="all", description="stages of the lineage that requests may choose by growtx.depth"
    )
    num_replicas: int = Field(default=1, ge=1, description="engine replicas, each with the whole model")
    max_replicas: int | None = Field(default=None, ge=1, description="autoscale from num_replicas up to this many")
    upscale_delay_seconds: float = Field(default=30, ge=0, description="load that lasts this long adds replicas")
    downscale_delay_seconds: float = Field(default=600, ge=0, description="idleness that lasts this long removes some")
    num_ingress_replicas: int = Field(default=2, ge=1, description="HTTP front ends; two, so that one may die")
    cpus_per_replica: float = Field(default=1, gt=0, description="CPUs reserved, and threads used, per engine")
    gpus_per_replica: float = Field(default=0, ge=0, description="GPUs reserved per engine")
    max_batch_size: int = Field(default=32, ge=1, description="texts that an engine computes together")
    max_queue: int = Field(default=32, ge=0, description="texts that may wait, per front end; more get a 429")
    max_batch_tokens: int = Field(default=512, ge=1, description="new tokens per step of an engine")
    kv_cache_gib: float = Field(default=1.0, gt=0, description="KV cache of a replica; on a GPU all that is free")
    drain_seconds: float = Field(default=60, ge=0, description="time that running texts get when a replica is stopped")
    api_keys_file: str | None = Field(default=None, description="file with one API key per line; none: no key needed")
    public_metrics: bool = Field(default=False, description="let GET /metrics be read without a key")
    allowed_origins: list[str] = Field(
        default_factory=list,
        description="web pages that may call from a browser (CORS), such as https://example.org; '*': all of them",
    )
    chat_template: str | None = Field(
        default=None,
        description="for /v1/chat/completions: transcript (User: ..., Assistant: ...), a file, or jinja; "
        "default: the tokenizer's own",
    )
    limits: RequestLimits = Field(default_factory=RequestLimits, description="what one request may ask for")

    @model_validator(mode="after")
    def _scales_upwards(self) -> ServeSettings:
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than num_replicas {self.num_replicas}")
        if not self.models:
            raise ValueError("model names no path")
        return self

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", origin):
                raise ValueError(
                    f"{origin!r} is no origin: write scheme and host as https://example.org, without a path"
                )
        return origins

    @property
    def models(self) -> list[str]:
        return [self.model] if isinstance(self.model, str) else self.model

    @property
    def served_name(self) -> str:
        """What clients send as `model`."""
        return self.name or "+".join(path.rstrip("/").rpartition("/")[2] for path in self.models)

    def api_keys(self) -> tuple[str, ...]:
        """The keys; empty when anyone may call.

        Raises:
            ConfigError: a file is named and has none, which would lock everyone out or let everyone in.
        """
        if self.api_keys_file is None:
            return ()
        try:
            lines = Path(self.api_keys_file).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"api_keys_file {self.api_keys_file} cannot be read: {error}", "Check the path"
            ) from error
        keys = tuple(line.strip() for line in lines if line.strip())
        if not keys:
            raise ConfigError(
                f"api_keys_file {self.api_keys_file} has no key",
                "Write one key per line; only without api_keys_file may anybody call",
            )
        return keys

    def chat_template_text(self) -> str | None:
        """The jinja of the setting; None: the model's own is used.

        Raises:
            ConfigError: the file cannot be read, or it is no template.
        """
        given = self.chat_template
        if given is None or given == "transcript":
            return TRANSCRIPT if given else None
        source = given if _is_jinja(given) else _read_template(given)
        try:
            compiled(source)
        except Exception as error:  # jinja's own errors, and what its parser lets through
            raise ConfigError(f"chat_template is not valid jinja: {error}", "Fix it, or take `transcript`") from error
        return source


def _is_jinja(text: str) -> bool:
    return any(mark in text for mark in JINJA)


def _read_template(path: str) -> str:
    remedy = "Give the path of a jinja template, its text, or `transcript`"
    try:
        source = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"chat_template {path} cannot be read: {error}", remedy) from error
    if not _is_jinja(source):
        raise ConfigError(f"chat_template {path} has no {{{{ }}}} or {{% %}} in it", remedy)
    return source


def parse_settings(arguments: Mapping[str, Any]) -> ServeSettings:
    """Settings from `serve run`'s KEY=VALUE strings (read as YAML, keys may be dotted) or a config file's values.

    Raises:
        ConfigError: naming every wrong key.
    """
    tree: dict[str, Any] = {}
    for key, value in arguments.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        is_yaml = isinstance(value, str) and not (key == "chat_template" and _is_jinja(value))
        node[last] = parse_yaml(value, key) if is_yaml else value
    return build_config(ServeSettings, tree)
