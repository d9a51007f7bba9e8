"""Configuration of the microworld."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from growtx.config import ConfigModel

Language = Literal["en", "ru", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "ru", "zh")
MAX_PEOPLE = 1_000_000


class MicroworldConfig(ConfigModel):
    """A generated world and the corpus that is written about it; equal configurations give equal text."""

    seed: int = Field(0, ge=0, lt=2**63, description="of the world: who lives where, and what is written about them")
    languages: tuple[Language, ...] = Field(LANGUAGES, description="languages of the documents")
    num_people: int = Field(2000, ge=40, le=MAX_PEOPLE, description="people whose lives are described")
    held_out_people: float = Field(
        0.25, gt=0, lt=1, description="share of people whose questions are never in the text"
    )
    paraphrases: int = Field(4, ge=1, le=4, description="wordings per fact and language")
    num_documents: int | None = Field(None, ge=1, description="size of the corpus in documents")
    target_bytes: int | None = Field(
        None, ge=1, description="size in UTF-8, default 8,000,000 (excludes num_documents)"
    )

    @field_validator("languages")
    @classmethod
    def _languages(cls, value: tuple[Language, ...]) -> tuple[Language, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("languages must name each of en, ru, zh at most once, and at least one of them")
        return value

    @model_validator(mode="after")
    def _one_size(self) -> MicroworldConfig:
        if self.num_documents is not None and self.target_bytes is not None:
            raise ValueError("set num_documents or target_bytes, not both")
        return self
