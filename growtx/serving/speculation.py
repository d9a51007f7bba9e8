"""One text at a time, drafted by a shallow depth and verified by a deep one (Leviathan et al., arXiv:2211.17192).

Self-speculation elsewhere needs special training, because the lower layers of an ordinary model are no language model
(LayerSkip, Elhoushi et al., arXiv:2404.16710). Of a grown model the lower blocks are one, with a norm and a head that
were trained for them, and its states and its keys and values are the deep model's own: a draft computes no block twice,
and needs no cache of its own.

A pass takes the last token and `num_drafts` drafts through the lower blocks one after the other, and then all of them
through the upper blocks at once. What the deep model chooses there is the text. Both choose with the same noise, a
function of seed and position (`sampling.choose`), so a draft is right as often as both distributions have the same
maximum after it; a wrong one costs time and changes nothing.

Shapes: T positions of a pass, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedModel

from growtx.compat.transformers import set_attention
from growtx.exceptions import ConfigError
from growtx.growth.results import find_result, load_model
from growtx.models import GrowtxForCausalLM
from growtx.models.varlen_attention import register_varlen_attention
from growtx.sampling import Choice, Sampling, TextSoFar, choose
from growtx.serving.backbones import Depth, Exit, SingleBackbone, stacks_of
from growtx.serving.decoder import make_rows_independent
from growtx.serving.loading import Loaded, share_equal_tensors


@dataclass
class Drafted:
    """A text and how it came about.

    Attributes:
        tokens: the new ones, an end-of-text token included.
        was_drafted: for each, whether the shallow depth had guessed it right.
        num_drafts: guesses in all.
        num_passes: through the upper blocks, after the prompt's.
    """

    tokens: list[int] = field(default_factory=list)
    was_drafted: list[bool] = field(default_factory=list)
    num_drafts: int = 0
    num_passes: int = 0

    @property
    def acceptance(self) -> float:
        """Share of the drafts that were right; drafts after a wrong one count as wrong."""
        return sum(self.was_drafted) / self.num_drafts if self.num_drafts else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """The first token comes with the prompt."""
        return (len(self.tokens) - 1) / self.num_passes if self.num_passes else 0.0


class Speculation:
    """A grown model at its deepest depth, with one of its lower depths that drafts, on the CPU.

    The tokens are those without drafts, to the last one: no result depends on how many positions are computed at once.

    Args:
        models: by depth, with their blocks in common; they are changed, and used for nothing else afterwards.
        depth: in blocks, of the one that drafts.
        num_drafts: tokens that are guessed before a pass through the upper blocks; 0: plain decoding, one by one.

    Raises:
        ConfigError: the depths do not have their blocks in common, or are no grown models.
    """

    def __init__(self, models: Mapping[int, PreTrainedModel], depth: int, num_drafts: int) -> None:
        whole = max(models)
        if not all(isinstance(model, GrowtxForCausalLM) for model in models.values()):
            raise ConfigError("only single grown models can draft for themselves", "Name a run, not an ensemble")
        if num_drafts < 0 or depth not in models or depth == whole:
            raise ConfigError(
                f"depth {depth} with {num_drafts} drafts cannot speculate for depth {whole}",
                f"Name a number of tokens and a lower depth ({', '.join(map(str, sorted(models)[:-1])) or 'none'})",
            )
        pair: dict[Depth, PreTrainedModel] = {depth: models[depth], whole: models[whole]}
        if len(stacks_of(pair)) > 1:
            raise ConfigError(
                f"the blocks of depth {depth} are not the lowest of depth {whole}: a LoRA phase changed them",
                "Name a depth that was grown after it, or leave speculation out",
            )
        self._backbone = SingleBackbone(pair)
        if self._backbone.model.device.type != "cpu":
            raise ConfigError("speculation runs on the CPU only", "Load the model there, or leave speculation out")
        self._shallow, self._deep = self._backbone.exits[depth], self._backbone.exits[whole]
        self._num_drafts = num_drafts
        make_rows_independent(self._backbone)
        set_attention(self._backbone.model.config, register_varlen_attention())

    @torch.no_grad()
    def continue_text(
        self,
        token_ids: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        *,
        eos_ids: Collection[int] = (),
        num_hidden: int = 0,
    ) -> Drafted:
        """As `sampling.continue_text` does it; the same tokens."""
        found, text = Drafted(), TextSoFar(frozenset(token_ids[num_hidden:]))
        cache, known = DynamicCache(config=self._backbone.model.config), list(token_ids)

        def take(token: int, draft: int | None) -> bool:
            """Add a token to the text; returns whether that is complete."""
            found.tokens.append(token)
            found.was_drafted.append(token == draft)
            text.counts[token] += 1
            known.append(token)
            return len(found.tokens) == max_tokens or (token in eos_ids and not sampling.ignore_eos)

        logits_TV = self._verify(known, [self._lower(known, 0, cache)], 0, cache)
        (token,) = choose(logits_TV[-1:], [Choice(sampling, len(known), text)], eos_ids)
        is_complete = take(token, None)
        while not is_complete:
            num_drafts = min(self._num_drafts, max_tokens - len(found.tokens) - 1)
            drafts, states = self._draft(known, num_drafts, text, sampling=sampling, eos_ids=eos_ids, cache=cache)
            logits_TV = self._verify([known[-1], *drafts], states, len(known) - 1, cache)
            found.num_passes += 1
            found.num_drafts += num_drafts
            for row, draft in enumerate((*drafts, None)):
                (token,) = choose(logits_TV[row : row + 1], [Choice(sampling, len(known), text)], eos_ids)
                is_complete = take(token, draft)
                if is_complete or token != draft:
                    break
            if num_wrong := cache.get_seq_length() - (len(known) - 1):
                cache.crop(-num_wrong)
        return found

    def _draft(
        self,
        known: Sequence[int],
        num_drafts: int,
        text: TextSoFar,
        *,
        sampling: Sampling,
        eos_ids: Collection[int],
        cache: DynamicCache,
    ) -> tuple[list[int], list[torch.Tensor]]:
        """Guesses, and states [1, 1, D] of the last known token and of each of them below the upper blocks."""
        guessed, drafts = TextSoFar(text.prompt, text.counts.copy()), list[int]()
        states = [self._lower(known[-1:], len(known) - 1, cache)]
        for _ in range(num_drafts):
            logits_TV = self._logits(states[-1], self._shallow)
            drafts += choose(logits_TV, [Choice(sampling, len(known) + len(drafts), guessed)], eos_ids)
            guessed.counts[drafts[-1]] += 1
            states.append(self._lower(drafts[-1:], len(known) + len(drafts) - 1, cache))
        return drafts, states

    def _lower(self, token_ids: Sequence[int], start: int, cache: DynamicCache) -> torch.Tensor:
        """States [1, T, D] of new tokens, the first of them at position `start`, that enter the upper blocks."""
        hidden_1TD, context = self._enter(token_ids, start, cache)
        return self._backbone.run(hidden_1TD, 0, self._shallow.num_blocks, context)

    def _verify(
        self, token_ids: Sequence[int], states: Sequence[torch.Tensor], start: int, cache: DynamicCache
    ) -> torch.Tensor:
        """Scores [T, V] of the deep depth after each of these tokens, from their states below the upper blocks."""
        _, context = self._enter(token_ids, start, cache)
        states_1TD = torch.cat(list(states), dim=1)
        deep_1TD = self._backbone.run(states_1TD, self._shallow.num_blocks, self._deep.num_blocks, context)
        return self._logits(deep_1TD, self._deep)

    def _enter(
        self, token_ids: Sequence[int], start: int, cache: DynamicCache
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        positions_1T = torch.arange(start, start + len(token_ids))[None]
        hidden_1TD, context = self._backbone.enter(torch.tensor([list(token_ids)]), None, positions_1T)
        return hidden_1TD, {**context, "past_key_values": cache}

    def _logits(self, states_1TD: torch.Tensor, one: Exit) -> torch.Tensor:
        final_TD = self._backbone.leave(states_1TD, one)[0]
        (logits_TV,) = self._backbone.logits([final_TD], [one] * len(final_TD))
        return logits_TV


def load_speculation(path: str, depth: int | None, draft_depth: int, num_drafts: int) -> tuple[Speculation, Loaded]:
    """A run or manifest ready to draft for itself; its model and tokenizer beside it.

    Args:
        depth: that writes the text; None: of the last stage.
        draft_depth: in blocks.

    Raises:
        GrowtxError: there is no such model, or these depths cannot (see `Speculation`).
    """
    whole, tokenizer = load_model(path, depth)
    known = find_result(path).depths
    if draft_depth not in known:
        raise ConfigError(
            f"{path} has no depth {draft_depth} that could draft",
            f"Its depths: {', '.join(map(str, known)) or 'only its own'}",
        )
    shallow = load_model(path, draft_depth)[0]
    share_equal_tensors([whole, shallow])
    models = {model.config.num_hidden_layers: model for model in (shallow, whole)}
    return Speculation(models, draft_depth, num_drafts), (whole, tokenizer)
