"""Credentials in texts and configurations become `***`, and nothing else does."""

from __future__ import annotations

import pytest

from growtx.config import apply_overrides
from growtx.exceptions import ConfigError
from growtx.redaction import MASK, masked_keys, redact_text, redact_tree

SECRET = "s3cr3t-Value"
SHOWN = [
    f"http://user:{SECRET}@host:5000",
    f"postgresql://user:{SECRET}@host/db?sslmode=require",
    f"https://:{SECRET}@host/",
    f"s3://AKIAIOSFODNN7EXAMPLE:{SECRET}@bucket/key",
    f"https://u:p@ss{SECRET}@host/x",
    f"https://host/x?token={SECRET}",
    f"https://host/x?a=1&api_key={SECRET}&b=2",
    f"https://host/x?a=1&X-Amz-Signature={SECRET}&X-Amz-Expires=60",
    f"https://host/x?X-Amz-Credential={SECRET}%2F20260101",
    f"https://host/x?X-Amz-Security-Token={SECRET}",
    f"https://bucket.s3.amazonaws.com/x?AWSAccessKeyId=A&Signature={SECRET}&Expires=1",
    f"https://account.blob.core.windows.net/x?sv=2024&sig={SECRET}",
    f"https://host/x?password={SECRET}#fragment",
    f"s3://bucket/x?aws_secret_access_key={SECRET}",
    f"WANDB_API_KEY={SECRET} growtx grow",
    f"growtx grow --preset demo tracking.x.password={SECRET} seed=1",
    f"'tracking.x.secret_key={SECRET}'",
    f"password='{SECRET} with a space'",
    f"AccountName=a;AccountKey={SECRET};EndpointSuffix=x",
    f"MLFLOW_TRACKING_PASSWORD={SECRET}",
    f"HF_TOKEN={SECRET}",
    "see hf_abcdefghijklmnopqrstuvwxyz0123",
    "AKIAIOSFODNN7EXAMPLE",
    "https://ghp_abcdefghijklmnopqrstuvwxyz0123@github.com/a/b",
    "https://0123456789abcdef0123456789abcdef@host/x",
    "sk-proj-abcdefghijklmnop0123456789",
    "xoxb-123456789012-abcdefghijkl",
]
PLAIN = [
    "num_tokens=5",
    "tokens=5 max_tokens=128 eos_token=</s>",
    "tokenizer.path=runs/a",
    "http://host:5000/path@v1",
    "http://host:5000",
    "https://host/x?page=2&tokens=5&keyboard=de",
    "s3://bucket/key=1/part-0.parquet",
    "ssh://git@github.com/a/b",
    "ann@example.org",
    "a:b@c",
    "the password: of the day",
    "hf://user/name",
    "hf_token",
    "runs/sk-learn",
    "https://host:80?mail=a@b",
    "data.sources.0.files=texts/*.txt",
    "databricks",
    "memory://run",
    '"a": "secret of life"',
]


@pytest.mark.parametrize("text", SHOWN)
def test_a_credential_is_masked_once_and_for_all(text: str) -> None:
    masked = redact_text(text)
    assert MASK in masked and SECRET not in masked and "ss" + SECRET not in masked
    for key in ("abcdefghijklmnop", "IOSFODNN7EXAMPLE", "0123456789abcdef", "123456789012"):
        assert key not in masked
    assert redact_text(masked) == masked


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redact_text(text) == text


def test_a_value_under_a_key_that_names_a_credential_is_masked_whole() -> None:
    tree = {
        "tracking": {"password": SECRET, "wandb": {"api_key": SECRET}, "mlflow": {"uri": f"http://u:{SECRET}@h"}},
        "list": [{"aws_secret_access_key": SECRET}],
        "token": SECRET,
        "eos_token": "</s>",
        "num_tokens": 5,
        "password": None,
        "secret": "",
    }
    masked = redact_tree(tree)
    assert SECRET not in str(masked)
    assert (masked["eos_token"], masked["num_tokens"], masked["password"], masked["secret"]) == ("</s>", 5, None, "")
    assert masked["tracking"]["mlflow"]["uri"] == "http://u:***@h"
    found = ["tracking.password", "tracking.wandb.api_key", "tracking.mlflow.uri", "list.0.aws_secret_access_key"]
    assert list(masked_keys(masked)) == [*found, "token"]
    assert list(masked_keys({"description": "5 *** hotel", "provenance": {"command": "a=***"}})) == []


def test_a_masked_credential_has_to_be_given_again() -> None:
    tree = {"tracking": {"mlflow": {"tracking_uri": "http://u:***@h"}}}
    with pytest.raises(
        ConfigError, match=r"tracking\.mlflow\.tracking_uri: \*\*\* stands for .*MLFLOW_TRACKING_PASSWORD"
    ):
        apply_overrides(tree, ["seed=1"])
    assert apply_overrides(tree, ["tracking.mlflow.tracking_uri=http://u:p@h"])["tracking"]["mlflow"]
    assert apply_overrides(tree, ["tracking.mlflow=null"])["tracking"] == {"mlflow": None}
