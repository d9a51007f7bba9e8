"""Shape and identity of a growtx decoder, in the form that transformers saves, loads and registers."""

from __future__ import annotations

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from growtx.exceptions import ConfigError

SUBSTRATE_EXPANSIONS = ("none", "interleave", "tile")
LOSS_KERNELS = ("chunked", "plain", "liger")
# Fields that everything made from a model takes over.
IDENTITY = ("substrate_fingerprint", "substrate_kind", "tokenizer_fingerprint")
SPECIAL_TOKENS = ("start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


@strict
class GrowtxConfig(PreTrainedConfig):
    """Configuration of `GrowtxForCausalLM`.

    Args:
        intermediate_size: width of the MLP; `None` means 4 * hidden_size.
        substrate_width: stored width E of the embedding [V, E]; it divides `hidden_size`. `None` means E = D.
        substrate_expansion: how E becomes D: `interleave` repeats each component D/E times in place, `tile`
            repeats the whole row; `none` where E = D.
        substrate_fingerprint, tokenizer_fingerprint: identities checked wherever models meet.
        num_layers_for_init: the depth L of the finished model in the residual scale 1/sqrt(2 L), so that a block
            added late starts as one built at once would; `None` means `num_hidden_layers`.
        start_token_id: what stands before every document in training. `None`, in files from before it was recorded,
            means `eos_token_id`, which always stood there; `bos_token_id` follows it.
        substrate_kind: how the embedding was made. Only a `learned` one trains in a model that is loaded; `None`, in
            files from before it was recorded, is frozen.
        substrate_reinjection: every block first adds the substrate's vectors again, times a scalar that it learns.
        loss_kernel: `chunked` (ours, any device), `plain` (whole logits), `liger` (fused, GPU, if installed).

    Raises:
        ConfigError: when the shape is not possible.
    """

    model_type = "growtx"
    keys_to_ignore_at_inference = ["past_key_values", "token_nll"]  # noqa: RUF012 - the type that the base class declares

    vocab_size: int = 65_536
    hidden_size: int = 1024
    num_hidden_layers: int = 9
    num_attention_heads: int = 32
    intermediate_size: int | None = None
    max_position_embeddings: int = 1024
    rope_theta: float = 10_000.0
    layer_norm_eps: float = 1e-5
    lm_head_bias: bool = True
    substrate_width: int | None = None
    substrate_expansion: str = "none"
    substrate_fingerprint: str | None = None
    tokenizer_fingerprint: str | None = None
    substrate_kind: str | None = None
    initializer_range: float = 0.02
    num_layers_for_init: int | None = None
    substrate_reinjection: bool = False
    loss_kernel: str = "chunked"
    use_cache: bool = True
    tie_word_embeddings: bool = False
    start_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: object) -> None:
        self.intermediate_size, self.substrate_width = self.mlp_width, self.embedding_width
        if self.start_token_id is None:
            self.start_token_id = self.eos_token_id[0] if isinstance(self.eos_token_id, list) else self.eos_token_id
        if self.start_token_id is not None:
            self.bos_token_id = self.start_token_id  # what generate() begins with, and what lm-eval reads
        super().__post_init__(**kwargs)

    @property
    def trains_substrate(self) -> bool:
        """Whether the embedding of a loaded model requires gradients."""
        return self.substrate_kind == "learned"

    @property
    def mlp_width(self) -> int:
        """`intermediate_size`, resolved."""
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def embedding_width(self) -> int:
        """`substrate_width`, resolved."""
        return self.substrate_width or self.hidden_size

    @property
    def heads_per_member(self) -> int:
        """Attention heads that share `hidden_size`; fewer than `num_attention_heads` only in a fused ensemble."""
        return self.num_attention_heads

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.heads_per_member

    @property
    def residual_initializer_range(self) -> float:
        """Standard deviation of the projections that write into the residual stream (GPT-2's rule)."""
        return self.initializer_range / math.sqrt(2 * (self.num_layers_for_init or self.num_hidden_layers))

    def validate_architecture(self) -> None:
        """Called by the `strict` decorator after the fields are set."""
        heads, width = self.heads_per_member, self.hidden_size
        if width % heads or (width // heads) % 2:
            raise ConfigError(
                f"hidden_size {width} does not split into {heads} heads of even width",
                "Choose num_attention_heads so that hidden_size / num_attention_heads is an even number",
            )
        if self.tie_word_embeddings:
            raise ConfigError(
                "tie_word_embeddings is true, but the substrate is frozen while the LM head trains",
                "Leave tie_word_embeddings at false",
            )
        if self.loss_kernel not in LOSS_KERNELS:
            raise ConfigError(f"loss_kernel {self.loss_kernel!r} is unknown", f"Use one of {', '.join(LOSS_KERNELS)}")
        self._validate_substrate()

    def _validate_substrate(self) -> None:
        if self.substrate_expansion not in SUBSTRATE_EXPANSIONS:
            raise ConfigError(
                f"substrate_expansion {self.substrate_expansion!r} is unknown",
                f"Use one of {', '.join(SUBSTRATE_EXPANSIONS)}",
            )
        if self.hidden_size % self.embedding_width:
            raise ConfigError(
                f"substrate_width {self.substrate_width} does not divide hidden_size {self.hidden_size}",
                "Choose a hidden_size that is a multiple of it",
            )
        if (self.substrate_expansion == "none") != (self.embedding_width == self.hidden_size):
            raise ConfigError(
                f"substrate_expansion {self.substrate_expansion!r} does not fit a substrate of width "
                f"{self.substrate_width} in a model of width {self.hidden_size}",
                "Use none if both widths are equal, otherwise interleave or tile",
            )
