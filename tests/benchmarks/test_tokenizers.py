from __future__ import annotations

from benchmarks import tokenizers
from tests.data import small_tokenizers


def test_every_tokenizer_is_measured_on_every_language() -> None:
    texts = {"en": small_tokenizers.TEXTS[:1] * 5, "ru": small_tokenizers.TEXTS[1:2] * 5}
    measured = {"ours": small_tokenizers.compact(), "bytes": tokenizers.gpt2_style(["a"], 257)}
    rows = tokenizers.measure_tokenizers(measured, texts)
    assert [(row["tokenizer"], row["language"]) for row in rows] == [
        ("ours", "en"), ("ours", "ru"), ("bytes", "en"), ("bytes", "ru"),
    ]  # fmt: skip
    assert all(row["megabytes_per_second"] > 0 for row in rows)
    one_byte_per_token = [row["bytes_per_token"] for row in rows if row["tokenizer"] == "bytes"]
    assert one_byte_per_token == [1.0, 1.0]
    assert rows[1]["bytes_per_token"] > rows[1]["characters_per_token"] > 1
