"""The one way in: what a path leads to, and the model that lies there.

Every command that takes a path of something trained (inspect, verify, evaluate, merge, serve, export, generate) asks
`find_result` what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import growtx.models  # noqa: F401 - registers the Auto classes
from growtx.config import parse_yaml
from growtx.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from growtx.exceptions import GrowtxError, StoreError
from growtx.growth.assembly import assemble, check_same
from growtx.growth.ensembles import ENSEMBLE_FILE, EnsembleManifest, load_ensemble, read_ensemble
from growtx.growth.lineage import Lineage, open_lineage, tokenizer_of
from growtx.models.causal_lm import GrowtxPreTrainedModel
from growtx.storage import Storage, resolve_address
from growtx.store.blobs import BlobStore
from growtx.store.manifest import MANIFESTS_DIR
from growtx.store.run_records import RUN_FILE

HUGGING_FACE_FILE = "config.json"
GROUP_KINDS = ("specialists", "study")  # jobs whose run directory holds runs instead of stages
Kind = Literal["run", "ensemble", "hugging_face", "group"]


@dataclass(frozen=True)
class Result:
    """What a path leads to.

    Attributes:
        address: the path in full; another process, in another working directory, finds the same thing by it.
        kind: `run` (its directory or one of its manifests), `ensemble`, `hugging_face` (a directory that
            `save_pretrained` wrote), or `group` (the directory of specialists or of a study).
        home: the directory that belongs to it, where its evaluations and reports go.
        lineage: of a run, up to the manifest that was named.
        ensemble: of an ensemble.
    """

    address: str
    kind: Kind
    home: Storage
    lineage: Lineage | None = None
    ensemble: EnsembleManifest | None = None

    @property
    def name(self) -> str:
        """The last part of its directory."""
        return self.home.root.rpartition("/")[2] or self.home.root

    @property
    def depths(self) -> tuple[int, ...]:
        """Numbers of blocks at which it can be loaded; empty where there is one model only."""
        if self.lineage is None:
            return ()
        return tuple(sorted({manifest.num_blocks for manifest in self.lineage.manifests}))

    def parts(self) -> Iterator[Result]:
        """The runs and ensembles of a group; otherwise the result itself."""
        if self.kind != "group":
            yield self
            return
        marks = (f"{MANIFESTS_DIR}/latest", ENSEMBLE_FILE)
        homes = {file.removesuffix(mark) for file in self.home.list_files() for mark in marks if file.endswith(mark)}
        for home in sorted(homes):
            yield find_result(self.home.path(home.rstrip("/")))

    def load(self, depth: int | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        """The model and its tokenizer; see `load_model`."""
        model, tokenizer = self._load(depth)
        if limit := getattr(model.config, "max_position_embeddings", None):
            tokenizer.model_max_length = limit
        return model, tokenizer

    def _load(self, depth: int | None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        if self.lineage is not None:
            manifest = self.lineage.last if depth is None else self.lineage.at_depth(depth)
            return assemble(BlobStore(self.lineage.storage.root), manifest).eval(), tokenizer_of(self.lineage)
        if self.kind == "hugging_face":
            return _load_hugging_face(self.home, depth)
        if self.kind == "group":
            raise StoreError(f"{self.address} holds several results", f"Name one: {self._names_of_parts()}")
        if depth is not None:
            raise StoreError(f"{self.address} is an ensemble and has no stage of depth {depth}", "Omit the depth")
        return load_ensemble(self.home.root)

    def require_lineage(self) -> Lineage:
        """The lineage of a run.

        Raises:
            StoreError: this is not a run.
        """
        if self.lineage is None:
            what = {"ensemble": "an ensemble", "hugging_face": "a Hugging Face directory"}.get(
                self.kind, "several runs"
            )
            raise StoreError(f"{self.address} is {what} and has no lineage of its own", "Give a run or a manifest")
        return self.lineage

    def _names_of_parts(self) -> str:
        return ", ".join(part.address for part in self.parts()) or "none is finished"


def find_result(path: str) -> Result:
    """What lies at a path: a run directory, a manifest, an ensemble, a Hugging Face directory, a group of runs.

    Relative paths start where runs lie (`growtx.storage.resolve_address`).

    Raises:
        StoreError: nothing is there, no stage is finished, or what is there is damaged.
    """
    address = resolve_address(path).rstrip("/")
    folder, _, file = address.rpartition("/")
    if file == ENSEMBLE_FILE:
        return Result(address, "ensemble", Storage(folder), ensemble=read_ensemble(folder))
    if not file.endswith(".json"):
        home = Storage(address)
        if home.exists(HUGGING_FACE_FILE):
            return Result(address, "hugging_face", home)
        if home.exists(ENSEMBLE_FILE):
            return Result(address, "ensemble", home, ensemble=read_ensemble(address))
        if _is_group(home):
            return Result(address, "group", home)
    lineage = open_lineage(address)
    return Result(address, "run", lineage.storage, lineage=lineage)


def load_model(path: str, depth: int | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a result, every blob verified, together with its tokenizer.

    Args:
        path: run directory, manifest, ensemble (its directory or `ensemble.json`), or Hugging Face directory.
        depth: number of blocks of an earlier stage of the lineage; None: the last.

    Returns:
        The model in evaluation mode, fp32, on the CPU; and the tokenizer that it was grown with.

    Raises:
        StoreError, CorruptBlobError, FingerprintError: what is there is not what was stored.
    """
    return find_result(path).load(depth)


def _is_group(home: Storage) -> bool:
    """Whether a directory holds the runs of a job that trains several; such a directory has no stages of its own."""
    if home.exists(MANIFESTS_DIR) or not home.exists(RUN_FILE):
        return False
    tree = parse_yaml(home.read_text(RUN_FILE), home.path(RUN_FILE))
    return isinstance(tree, dict) and tree.get("kind") in GROUP_KINDS


def _load_hugging_face(home: Storage, depth: int | None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    directory = home.download("")
    try:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    except GrowtxError:
        raise
    except Exception as error:  # a damaged directory raises whatever the library that meets it first raises
        detail = " ".join(str(error).split())[:200]
        raise StoreError(f"the model in {home.root} cannot be loaded: {detail}", "Write or copy it again") from error
    if depth is not None and depth != model.config.num_hidden_layers:
        raise StoreError(
            f"{home.root} is a Hugging Face directory of {model.config.num_hidden_layers} blocks, not {depth}",
            "Give the run directory to load an earlier depth",
        )
    tokenizer = load_tokenizer(directory)
    if not isinstance(model, GrowtxPreTrainedModel) and model.config.bos_token_id is not None:
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(model.config.bos_token_id)  # theirs was trained with it
    expected = getattr(model.config, "tokenizer_fingerprint", None)
    if expected is not None:
        check_same("tokenizer", expected, tokenizer_fingerprint(tokenizer), home.root)
    return model, tokenizer
