"""Cross-entropy of the LM head that never holds the [B, T, V] logits.

With V = 65,536 the logits of one batch outweigh everything else in training, and cross-entropy needs them three
times (logits, softmax, gradient). Here they exist for a chunk of positions at a time. For a plain LM head the
gradient of a chunk is taken while its logits are at hand, so nothing is computed twice; any other head (one with
LoRA, the heads of an ensemble) is recomputed chunk by chunk in the backward pass.

Shapes: B batch, T positions, N = B T rows, C rows of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import log
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from growtx.exceptions import ConfigError
from growtx.models.configuration import GrowtxConfig

IGNORE_INDEX = -100
CHUNK_ROWS = 256  # on CPUs: full matrix products from here on; more rows only cost memory
LARGEST_CHUNK = 4096
CHUNK_SHARE = 1 / 40  # of a GPU's memory, for the logits of a chunk and their copies
LOGIT_BYTES = 12  # of one: in bf16, in fp32, and its gradient
LossAndNLL = tuple[torch.Tensor, torch.Tensor | None]


def chunk_rows(vocab_size: int, gpu_bytes: int | None) -> int:
    """Rows whose logits exist at the same time.

    Every chunk reads and writes the whole fp32 gradient of the head [V, D]. Of 256 rows, that takes a GPU as long as a
    third of its arithmetic; from about 1,200 on, an H100 computes longer than it waits for its memory. CPUs do not
    gain from more rows.

    Args:
        gpu_bytes: all of the GPU's memory; None: a CPU.
    """
    if gpu_bytes is None:
        return CHUNK_ROWS
    affordable = int(gpu_bytes * CHUNK_SHARE) // (LOGIT_BYTES * vocab_size)
    return max(CHUNK_ROWS, min(LARGEST_CHUNK, affordable // CHUNK_ROWS * CHUNK_ROWS))


@cache
def memory_of_gpu(device: torch.device) -> int | None:
    """All memory of a GPU; None for the CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def shift_labels(labels_BT: torch.Tensor) -> torch.Tensor:
    """Targets [B, T] of a causal model: position t predicts label t+1, the last position nothing."""
    return F.pad(labels_BT[:, 1:], (0, 1), value=IGNORE_INDEX)


def mean_over_targets(
    loss: torch.Tensor, targets_BT: torch.Tensor, num_items_in_batch: int | torch.Tensor | None = None
) -> torch.Tensor:
    """A summed loss divided by the number of targets, or by the given number (gradient accumulation)."""
    return loss / ((targets_BT >= 0).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)


class LMHead(nn.Linear):
    """Linear map to logits, or with `targets` straight to the loss.

    The loss is computed inside the module's own forward so that whatever gathers partitioned weights around a
    module call (ZeRO-3, FSDP) has gathered them here too.
    """

    def __init__(self, config: GrowtxConfig, num_inputs: int | None = None) -> None:
        super().__init__(num_inputs or config.hidden_size, config.vocab_size, bias=config.lm_head_bias)

    def forward(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor | None = None,
        kernel: str = "chunked",
        chunk: int | None = None,
    ) -> Any:
        """Logits [..., V]; with `targets` [N] the loss and the nats per row, see `chunked_cross_entropy`."""
        if targets is None:
            return super().forward(hidden)
        with_gradients = torch.is_grad_enabled()
        if kernel == "liger" and hidden.is_cuda and with_gradients:
            return _liger_cross_entropy(self, hidden, targets), None
        if kernel == "plain":
            chunk = len(targets)
        elif chunk is None:
            chunk = chunk_rows(self.out_features, memory_of_gpu(hidden.device))
        return _HeadCrossEntropy.apply(hidden, self.weight, self.bias, targets, chunk, with_gradients)  # type: ignore[no-untyped-call]


def chunked_cross_entropy(
    hidden_BTD: torch.Tensor,
    head: nn.Module,
    targets_BT: torch.Tensor,
    *,
    kernel: str = "chunked",
    chunk: int | None = None,
) -> LossAndNLL:
    """Summed cross-entropy (nats, differentiable) and the nats of every position [B, T] (0 where ignored).

    Args:
        head: an `LMHead`, or any module that maps [C, D] to [C, V] (it is then recomputed in the backward pass).
        targets_BT: class per position, negative where nothing is predicted; already shifted.
        kernel: `chunked`, `plain` (one chunk), or `liger`: its fused kernel where gradients are taken on a GPU,
            which gives the sum alone (no nats per position); elsewhere it means `chunked`.
        chunk: positions whose logits exist at the same time; None: as the device allows.
    """
    hidden_ND, targets_N = hidden_BTD.flatten(0, 1), targets_BT.flatten()
    if isinstance(head, LMHead):
        loss, nll_N = head(hidden_ND, targets=targets_N, kernel=kernel, chunk=chunk)
    else:
        loss, nll_N = checkpointed_cross_entropy(head, (hidden_ND,), targets_N, chunk=chunk or CHUNK_ROWS)
    return loss, None if nll_N is None else nll_N.view(targets_BT.shape)


def checkpointed_cross_entropy(
    compute_logits: Callable[..., torch.Tensor],
    states: Sequence[torch.Tensor],
    targets_N: torch.Tensor,
    *,
    chunk: int = CHUNK_ROWS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for any function of row-wise `states`, each [N, ...]: its logits [C, V] live for one chunk."""

    def chunk_nll(targets_C: torch.Tensor, *states_of_chunk: torch.Tensor) -> torch.Tensor:
        logits_CV = compute_logits(*states_of_chunk)
        logits_CV = logits_CV.to(_exact(logits_CV.dtype))
        return F.cross_entropy(logits_CV, targets_C, ignore_index=IGNORE_INDEX, reduction="none")

    chunks = zip(*(torch.split(tensor, chunk) for tensor in (targets_N, *states)), strict=True)
    pieces = [checkpoint(chunk_nll, *rows, use_reentrant=False) for rows in chunks]
    nll_N = torch.cat(pieces)
    return nll_N.sum(), nll_N.detach()


class _HeadCrossEntropy(torch.autograd.Function):
    """Linear map and cross-entropy whose gradients are taken chunk by chunk in the forward pass."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes positions
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        chunk: int,
        with_gradients: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = [with_gradients and needed for needed in ctx.needs_input_grad[:3]]
        exact = _exact(hidden_ND.dtype)
        grad_hidden_ND = torch.empty_like(hidden_ND) if wanted[0] else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=exact) if wanted[1] else None
        grad_bias_V = torch.zeros_like(weight_VD[:, 0], dtype=exact) if wanted[2] else None
        nll_N = torch.empty(len(targets_N), dtype=exact, device=hidden_ND.device)
        for start in range(0, len(targets_N), chunk):
            rows = slice(start, start + chunk)
            logits_CV = F.linear(hidden_ND[rows], weight_VD, bias_V).to(exact)
            nll_N[rows], log_sums_C1 = _nll(logits_CV, targets_N[rows])
            if not any(wanted):
                continue
            grad_CV = _logit_gradient_(logits_CV, log_sums_C1, targets_N[rows]).to(hidden_ND.dtype)
            if grad_hidden_ND is not None:
                torch.mm(grad_CV, weight_VD, out=grad_hidden_ND[rows])
            if grad_weight_VD is not None:
                _add_product_(grad_weight_VD, grad_CV.t(), hidden_ND[rows])
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(0, dtype=exact)
        ctx.gradients = (grad_hidden_ND, grad_weight_VD, grad_bias_V)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(nll_N)
        return nll_N.sum(), nll_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, _: torch.Tensor) -> Any:
        if ctx.gradients is None:
            raise RuntimeError("the loss was differentiated before, and its gradients were scaled in place")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [gradient if gradient is None else gradient.mul_(grad_loss) for gradient in gradients]
        hidden, *parameters = scaled
        return hidden, *(p if p is None else p.to(ctx.weight_dtype) for p in parameters), None, None, None


def _exact(dtype: torch.dtype) -> torch.dtype:
    """At least fp32: bf16 would lose bits in the softmax and in sums over many chunks."""
    return torch.promote_types(dtype, torch.float32)


def _nll(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats of the targets [C] (0 where ignored) and log-sum-exp of the logits [C, 1]."""
    log_sums_C1 = logits_CV.logsumexp(-1, keepdim=True)
    nll_C1 = log_sums_C1 - logits_CV.gather(-1, targets_C.clamp(min=0)[:, None])
    return nll_C1.squeeze(-1).masked_fill_(targets_C < 0, 0.0), log_sums_C1


def _logit_gradient_(logits_CV: torch.Tensor, log_sums_C1: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
    """Softmax minus one-hot, written over the logits."""
    probabilities_CV = logits_CV.sub_(log_sums_C1).exp_()
    minus_one_C1 = torch.full_like(log_sums_C1, -1.0)
    probabilities_CV.scatter_add_(-1, targets_C.clamp(min=0)[:, None], minus_one_C1)
    return probabilities_CV.masked_fill_((targets_C < 0)[:, None], 0.0)


def _add_product_(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _liger_cross_entropy(head: LMHead, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    try:
        from liger_kernel.transformers.fused_linear_cross_entropy import (  # type: ignore[import-not-found]
            LigerFusedLinearCrossEntropyLoss,
        )
    except ImportError as error:
        raise ConfigError(
            "loss_kernel is liger, but liger-kernel is not installed", "Install liger-kernel or use loss_kernel=chunked"
        ) from error
    fused = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORE_INDEX, reduction="sum", accum_dtype=torch.float32)
    loss: torch.Tensor = fused(head.weight, hidden_ND, targets_N, head.bias)
    return loss


# How many bits a model needs for text: negative log-likelihood per UTF-8 byte, comparable across tokenizers.
#
# Shapes: B batch, T positions, V vocabulary.


@dataclass(frozen=True)
class TextScore:
    """Summed nats, predicted tokens and the UTF-8 bytes that those tokens stand for."""

    nats: float
    num_tokens: float
    num_bytes: float

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens

    @property
    def bits_per_byte(self) -> float:
        return self.nats / log(2) / self.num_bytes


def labels_of(tokens_BT: torch.Tensor, pad_token_id: int | None) -> torch.Tensor:
    """The windows themselves as labels, padding ignored; the model shifts them."""
    if pad_token_id is None:
        return tokens_BT
    return tokens_BT.masked_fill(tokens_BT == pad_token_id, IGNORE_INDEX)


@torch.no_grad()
def score_windows(
    model: nn.Module, tokens_BT: torch.Tensor, labels_BT: torch.Tensor, bytes_V: torch.Tensor
) -> torch.Tensor:
    """Score every position but the first of each window.

    Args:
        model: a GrowtxForCausalLM or a wrapper of one.
        bytes_V: UTF-8 bytes of each token.

    Returns:
        [B, 3] float64: nats, predicted tokens and their bytes of each window.
    """
    nll_BT = model(input_ids=tokens_BT, labels=labels_BT, use_cache=False, skip_logits=True).token_nll
    counted_BT = labels_BT[:, 1:] >= 0
    token_bytes_BT = bytes_V[labels_BT[:, 1:].clamp_min(0)] * counted_BT
    columns = (nll_BT.double().sum(1), counted_BT.double().sum(1), token_bytes_BT.double().sum(1))
    return torch.stack(columns, dim=1)
