"""What a combination rule remembers of the text so far, kept in the KV cache.

A rule that weighs members by the text needs one row per past position (a state, a likelihood). These rows are
appended to the cache as if they were the keys of further layers. So whatever happens to a cache happens to them
too: beams are reordered, rejected tokens cropped, a static cache filled in place, a paged one gathered per
request; and the rule's answer is computed anew from the rows, which leaves no running state to go wrong.

Shapes: B batch, T new positions, S positions in the cache, D hidden size, H heads, K head width.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache

from growtx.compat.transformers import PagedCall, has_layer
from growtx.exceptions import ConfigError


class History:
    """Rows of the positions so far, and which of them each new position may look at.

    Args:
        first_layer: index of the first cache layer after those of the blocks.
        num_past: positions in the cache before this call (ignored by a paged cache).
        attention_mask: as the model's caller passed it: none, [B, S] or [B, 1, T, S].
        paged: what continuous batching sends down to the attention, or none.
    """

    def __init__(
        self,
        *,
        first_layer: int,
        head_dim: int,
        position_ids_BT: torch.Tensor,
        num_past: int | torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        paged: PagedCall | None,
    ) -> None:
        self.first_layer = first_layer
        self.head_dim = head_dim
        self.position_ids_BT = position_ids_BT
        self.num_past = torch.as_tensor(num_past).clone()  # a static cache counts up in place
        self.attention_mask = attention_mask
        self.past_key_values = past_key_values
        self.paged = paged
        self.ages_BTS: torch.Tensor
        self.visible_BTS: torch.Tensor

    @classmethod
    def of(
        cls,
        config: Any,
        position_ids_BT: torch.Tensor,
        past_key_values: Cache | None,
        *,
        attention_mask: torch.Tensor | None = None,
        paged: PagedCall | None = None,
    ) -> History:
        """That of a call of an ensemble, flat or fused, before its blocks have added to the cache."""
        return cls(
            first_layer=config.num_blocks,
            head_dim=config.head_dim,
            position_ids_BT=position_ids_BT,
            num_past=past_key_values.get_seq_length() if past_key_values is not None else 0,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            paged=paged,
        )

    def append(self, layer: int, rows_BTD: torch.Tensor) -> torch.Tensor:
        """Store rows of the new positions in the rule's cache layer `layer`; return those of all positions [B, S, D].

        Rows are kept in fp32. Afterwards `visible_BTS` says which rows a new position may use (its own included),
        and `ages_BTS` how many positions back they are.
        """
        keys_BHTK = rows_BTD.float().view(*rows_BTD.shape[:2], -1, self.head_dim).transpose(1, 2)
        values_BHTK = torch.zeros_like(keys_BHTK)
        values_BHTK[:, 0, :, 0] = self.position_ids_BT.to(keys_BHTK)
        keys_BHSK, values_BHSK = self._update(keys_BHTK, values_BHTK, self.first_layer + layer)
        positions_BS = values_BHSK[:, 0, :, 0]
        self.ages_BTS = self.position_ids_BT[:, :, None] - positions_BS[:, None, :]
        self.visible_BTS = self._visible(positions_BS.shape[1])
        return keys_BHSK.transpose(1, 2).flatten(2)

    def rows_before(self, rows_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For every new position the row of the position before it [B, T, D], and whether there is one [B, T]."""
        is_before_BTS = self.visible_BTS & (self.ages_BTS == 1)
        index_BT = is_before_BTS.to(torch.uint8).argmax(-1)
        rows_BTD = rows_BSD.gather(1, index_BT[..., None].expand(-1, -1, rows_BSD.shape[-1]))
        return rows_BTD, is_before_BTS.any(-1)

    def decayed_sum(self, rows_BSD: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
        """Sum [B, T, D] over the visible rows, each weighted by decay ** age."""
        weights_BTS = decay ** self.ages_BTS.clamp(min=0) * self.visible_BTS
        return weights_BTS @ rows_BSD

    def _update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.paged is not None:
            if self.paged.dtype != torch.float32 or not self.paged.is_gathered:
                raise ConfigError(
                    "a rule that weighs members by the text so far needs a gathered cache in fp32, which continuous "
                    "batching does not keep here",
                    "Use generate(), a model in fp32 with sdpa attention, or the rule mean, weighted-mean or mixture",
                )
            return self.paged.update(keys, values, layer)
        if self.past_key_values is None:
            return keys, values
        if not has_layer(self.past_key_values, layer):
            raise ConfigError(
                "this cache has no room for a rule that weighs members by the text so far",
                "Call ensemble.set_rule(...) before generating instead of passing the rule to the call",
            )
        keys, values = self.past_key_values.update(keys, values, layer)
        return keys, values

    def _visible(self, num_rows: int) -> torch.Tensor:
        device = self.position_ids_BT.device
        if self.paged is not None:
            return self._same_request(num_rows) & (self.ages_BTS >= 0)
        if self.attention_mask is not None and self.attention_mask.dim() == 4:
            mask_BTS = self.attention_mask[:, 0, :, :num_rows]
            return mask_BTS if mask_BTS.dtype == torch.bool else mask_BTS >= 0
        last_T = self.num_past.to(device) + torch.arange(self.position_ids_BT.shape[1], device=device)
        visible_BTS = (torch.arange(num_rows, device=device) <= last_T[:, None])[None]
        if self.attention_mask is None:
            return visible_BTS
        mask_BS = torch.nn.functional.pad(self.attention_mask, (0, num_rows - self.attention_mask.shape[1]))
        return visible_BTS & mask_BS.bool()[:, None, :]

    def _same_request(self, num_rows: int) -> torch.Tensor:
        """Continuous batching packs all requests into one row; cumulative lengths say where each one lies."""
        assert self.paged is not None
        device = self.position_ids_BT.device
        new_T, old_S = (torch.arange(n, device=device) for n in (self.position_ids_BT.shape[1], num_rows))
        request_T = torch.searchsorted(self.paged.ends_of_queries.to(new_T), new_T, right=True)
        request_S = torch.searchsorted(self.paged.ends_of_keys.to(old_S), old_S, right=True)
        return (request_T[:, None] == request_S)[None]
