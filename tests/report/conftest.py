"""The synthetic run directory of `tests.synthetic_run`."""

from tests.synthetic_run import grown_run, make_run, model, questions_dir, rough, run_dir, tokenizer

__all__ = ["grown_run", "make_run", "model", "questions_dir", "rough", "run_dir", "tokenizer"]
