"""Configuration of the microworld."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from growtx.config import ConfigModel

Language = Literal["en", "ru", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "ru", "zh")
MAX_PEOPLE = 500_000
MAX_PARAPHRASES = 5
MAX_HOPS = 4

Kind = Literal["biography", "geography", "question", "choice", "reading", "story", "puzzle", "translation"]
DEFAULT_SHARES: dict[Kind, float] = {
    "biography": 0.30,
    "geography": 0.08,
    "question": 0.12,
    "choice": 0.10,
    "reading": 0.08,
    "story": 0.14,
    "puzzle": 0.12,
    "translation": 0.06,
}


class MicroworldConfig(ConfigModel):
    """A generated world and the corpus that is written about it; equal configurations give equal text."""

    seed: int = Field(0, ge=0, lt=2**63, description="of the world: who lives where, and what is written about them")
    languages: tuple[Language, ...] = Field(LANGUAGES, description="languages of the documents")
    num_people: int = Field(200, ge=40, le=MAX_PEOPLE, description="people whose lives are described")
    held_out_people: float = Field(0.5, gt=0, lt=1, description="share of people whom the text asks nothing about")
    paraphrases: int = Field(MAX_PARAPHRASES, ge=1, le=MAX_PARAPHRASES, description="wordings per fact and language")
    shares: dict[Kind, float] = Field(DEFAULT_SHARES, description="relative shares of kinds of documents; others: none")
    num_documents: int | None = Field(None, ge=1, description="size of the corpus in documents")
    target_bytes: int | None = Field(None, ge=1, description="size in UTF-8, default 8,000,000; or num_documents")

    @field_validator("languages")
    @classmethod
    def _languages(cls, value: tuple[Language, ...]) -> tuple[Language, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("languages must name each of en, ru, zh at most once, and at least one of them")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> MicroworldConfig:
        if self.num_documents is not None and self.target_bytes is not None:
            raise ValueError("set num_documents or target_bytes, not both")
        if any(share < 0 for share in self.shares.values()) or not self.document_shares:
            raise ValueError("shares must not be negative, and one that can be written must be above 0")
        return self

    @property
    def document_shares(self) -> dict[Kind, float]:
        """The kinds that are written; one language alone has no translations."""
        return {
            kind: share
            for kind, share in self.shares.items()
            if share > 0 and (kind != "translation" or len(self.languages) > 1)
        }

    @property
    def num_held_out_people(self) -> int:
        """How many people are described in the text but never asked about there."""
        return min(max(8, round(self.num_people * self.held_out_people)), self.num_people - 8)
