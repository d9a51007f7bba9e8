"""Exact parameter counts and FLOPs per token, from a configuration alone.

F counts floating point operations as matrix products do: a multiplication and an addition are two. A forward pass
costs 2 per weight and token, a backward pass 4 (2 for the inputs' gradient, 2 for the weights').

Shapes: D hidden size, V vocabulary, E substrate width, T context, L blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from growtx.models.configuration import GrowtxConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by part; `per_block` is one block."""

    embedding: int
    per_block: int
    num_blocks: int
    final_norm: int
    head: int

    @property
    def total(self) -> int:
        """All parameters, the frozen substrate included."""
        return self.embedding + self.num_blocks * self.per_block + self.final_norm + self.head


def num_params(config: GrowtxConfig) -> ParameterCounts:
    """Counts of the paper's accounting: 12 D^2 + 9 D a block, 2 D final norm, V D + V head, V E embedding.

    A block that adds the substrate again has one more.
    """
    width, mlp_width = config.hidden_size, config.mlp_width
    attention = 4 * width**2
    mlp = 2 * width * mlp_width + mlp_width + width
    norm = 2 * width
    return ParameterCounts(
        embedding=config.vocab_size * config.embedding_width,
        per_block=attention + mlp + 2 * norm + int(config.substrate_reinjection),
        num_blocks=config.num_hidden_layers,
        final_norm=norm,
        head=config.vocab_size * (width + int(config.lm_head_bias)),
    )


@dataclass(frozen=True)
class TokenFlops:
    """FLOPs for one token of a training step (or a forward pass).

    `weights` are the products with parameters. `attention` are the products of queries with keys and of weights
    with values; they grow with the context and are what the rule of thumb 6 N leaves out. Biases, norms, softmax
    and GELU are not counted.
    """

    weights: float
    attention: float

    @property
    def total(self) -> float:
        return self.weights + self.attention

    def __add__(self, other: TokenFlops) -> TokenFlops:
        return TokenFlops(self.weights + other.weights, self.attention + other.attention)

    def __mul__(self, factor: float) -> TokenFlops:
        return TokenFlops(self.weights * factor, self.attention * factor)


def block_forward_flops(config: GrowtxConfig, context_length: int) -> TokenFlops:
    """One block, forward: 2 (12 D^2), and 2 D (T + 1) for attention over (T + 1) / 2 positions on average."""
    width = config.hidden_size
    products = 4 * width**2 + 2 * width * config.mlp_width
    return TokenFlops(weights=2.0 * products, attention=2.0 * width * (context_length + 1))


def head_forward_flops(config: GrowtxConfig) -> TokenFlops:
    """The LM head, forward: 2 D V."""
    return TokenFlops(weights=2.0 * config.hidden_size * config.vocab_size, attention=0.0)


def forward_flops(config: GrowtxConfig, context_length: int) -> TokenFlops:
    """A forward pass of the whole model, as in evaluation."""
    return block_forward_flops(config, context_length) * config.num_hidden_layers + head_forward_flops(config)


def monolithic_flops(config: GrowtxConfig, context_length: int) -> TokenFlops:
    """A training step with every block in training: 6 (L b + h), b = 12 D^2, h = D V."""
    return forward_flops(config, context_length) * 3
