"""What is said of an extended checkpoint: the note beside it, and lines for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ceval_suite import __version__
from ceval_suite.backends import checkpoint, growing, sources
from ceval_suite.backends.extension_plan import Extension
from ceval_suite.backends.row_init import INITS, Average


def about(
    job: Extension,
    folder: Path,
    done: Mapping[str, int],
    averages: Mapping[str, Average],
    chat: str,
) -> dict[str, Any]:
    """The note beside the weights; what was proved comes from elsewhere."""
    plan, tokens = job.plan, job.tokens
    bare = [i for i, some in zip(plan.new, plan.pieces, strict=True) if not some]
    made_of = Counter(tuple(sorted(some)) for some in plan.pieces if some)
    home = sources.tokenizer_place(job.wider, job.path)
    tensors = checkpoint.tensors(folder)
    prefix = growing.has_dummy_prefix(job.base)
    return {
        "made_by": "ceval-suite model extend",
        "base": {
            "path": job.spec.path,
            "revision": job.spec.revision,
            "weights_sha256": sources.weights_fingerprint(job.path),
            "tokenizer_sha256": sources.tokenizer_fingerprint(
                sources.tokenizer_place(job.spec, job.path)
            ),
        },
        "tokenizer": {
            "path": job.wider.tokenizer,
            "sha256": sources.tokenizer_fingerprint(home),
            "chat_template": chat,
        },
        "init": plan.init,
        "init_is": INITS[plan.init],
        "dummy_prefix": ("kept" if job.dummy_prefix else "left out") if prefix else "none",
        "rows_before": plan.before,
        "rows_after": plan.after,
        "new_tokens": len(plan.new),
        "padding_rows_filled": sum(i < plan.before for i in plan.new),
        "padding_rows_after": plan.after - len(tokens),
        "without_pieces": _named(bare, tokens),
        # means of the same pieces are the same row: told apart by training alone
        "rows_equal_to_another": sum(n for n in made_of.values() if n > 1),
        "unreachable": _named(job.unreachable, tokens),
        "tensors": {
            name: {"dtype": tensors[name].dtype, "mean_norm_of_old_rows": average.norm}
            for name, average in averages.items()
        },
        **done,
        "extended": {
            "weights_sha256": sources.weights_fingerprint(folder),
            "tokenizer_sha256": sources.tokenizer_fingerprint(folder),
        },
        "versions": {
            "ceval_suite": __version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
    }


def _named(ids: Sequence[int], tokens: Mapping[int, growing.Token]) -> dict[str, Any]:
    return {"count": len(ids), "first": [growing.shown(tokens[i]) for i in ids[: growing.SHOWN]]}


def told(about: Mapping[str, Any]) -> list[str]:
    """What a person should hear of an extension."""
    proof, answers = about["proof"], about["proof"]["answers"]
    new, before, after = (about[key] for key in ("new_tokens", "rows_before", "rows_after"))
    alike, asked = answers["logits_identical"], answers["prompts"]
    lines = [
        f"{new} new tokens ({about['init']}), {before} rows became {after}",
        f"dummy prefix: {about['dummy_prefix']}",
        f"{proof['tensors_unchanged']} tensors and {proof['old_rows_unchanged']} rows unchanged",
        f"{alike} of {asked} prompts give old ids the same logits to the last bit",
    ]
    if alike < asked:
        away = answers["largest_difference"]
        lines.append(f"the largest difference is {away:.1e}, within {answers['tolerance']}")
    for key, words in (
        ("without_pieces", "new tokens have no piece in the base: the mean of all rows"),
        ("unreachable", "new tokens are unreachable: their own text never gives them"),
    ):
        if found := about[key]["count"]:
            lines.append(f"{found} {words} ({', '.join(about[key]['first'])})")
    if about["rows_equal_to_another"]:
        lines.append(f"{about['rows_equal_to_another']} new rows equal another: same pieces")
    if about["padding_rows_filled"]:
        lines.append(f"{about['padding_rows_filled']} rows of padding now belong to new tokens")
    return lines
