"""The model's shape as a user writes it, and the GrowtxConfig of any depth that follows from it."""

from __future__ import annotations

from pydantic import Field, model_validator

from growtx.config import ConfigModel
from growtx.models.configuration import GrowtxConfig


class ModelConfig(ConfigModel):
    """The `model` block of a run's configuration."""

    hidden_size: int = Field(128, ge=2, description="D, width of the residual stream")
    num_attention_heads: int = Field(4, ge=1)
    context_length: int = Field(256, ge=2, description="T, tokens in a window")
    lm_head_bias: bool = Field(True, description="the paper's head has a bias; only without it is gpt_neox exact")
    initializer_range: float = Field(0.02, gt=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} does not divide hidden_size={self.hidden_size} "
                "into heads of even width"
            )
        return self

    def architecture(
        self, *, vocab_size: int, num_blocks: int, final_num_blocks: int, substrate_width: int, expansion: str
    ) -> GrowtxConfig:
        """The GrowtxConfig of `num_blocks` blocks of a model that will have `final_num_blocks`."""
        return GrowtxConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=num_blocks,
            num_attention_heads=self.num_attention_heads,
            max_position_embeddings=self.context_length,
            lm_head_bias=self.lm_head_bias,
            initializer_range=self.initializer_range,
            num_layers_for_init=final_num_blocks,
            substrate_width=substrate_width,
            substrate_expansion=expansion,
        )
