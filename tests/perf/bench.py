"""Benchmarks of the engine: they print tables and decide no test.

`python tests/perf/bench.py --help` lists them; `make bench` runs those for a CPU. Every figure is
measured in the run that prints it: the two programs of a comparison one after the other on the
same machine, model files, items and dtype, and the machine's matrix rate beside them.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ceval_suite.prepare import Selection, prepare
from ceval_suite.request import Prompt
from ceval_suite.schema import Reply

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

THREE = ("marketing", "high_school_geography", "nutrition")

Data = Annotated[Path, typer.Option(help="Folder with the benchmark files.")]
Model = Annotated[str, typer.Option(help="Model directory, GGUF file or registered name.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
DATA = Path(os.environ.get("CEVAL_SUITE_DATA", "../shared/data"))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n\n| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    sys.stdout.flush()


def machine() -> str:
    """The processor, its cores in use, torch."""
    import torch

    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":")[1].strip()
            break
    if torch.cuda.is_available():
        name += f", {torch.cuda.get_device_name()}"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def matrix_rate(
    dtype: Any, device: Any, size: int = 2048, seconds: float = 3.0, fastest: bool = False
) -> float:
    """FLOP/s of square matrix products: the median over `seconds`.

    `a @ b` as anyone would write it, or by the fastest kernel that the engine finds.
    """
    import torch

    from ceval_suite.backends import products

    if device.type == "cuda":
        size = 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = products.linear if fastest else torch.matmul
    product(a, b)
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates) < 3:
        begun = time.perf_counter()
        product(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(2 * size**3 / (time.perf_counter() - begun))
    return statistics.median(rates)


def prompts_of(
    task: str, data: Path, subjects: Sequence[str] | None, limit: int | None, **chosen: Any
) -> list[Prompt]:
    """Prompts of a task as published: those that one letter answers, or that are written."""
    found = prepare(task, Selection(subjects=subjects, limit=limit, data=data, **chosen))
    renderers = {s: found.renderer(s) for s in found.subjects}
    prompts = [renderers[item.subject].render(item) for item in found.scored()]
    return [p for p in prompts if p.method in ("letters", "continuation", "generate")]


def opened(model: str, dtype: str) -> Any:
    """A backend, its path decided."""
    from ceval_suite import catalog
    from ceval_suite.backends import open_backend

    _, spec = catalog.load_model_spec(model)
    return open_backend(spec.model_copy(update={"dtype": dtype}), lambda line: print(line))


def body(model: Any) -> int:
    """Parameters outside embeddings and head."""
    outside = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    return sum(p.numel() for p in model.parameters() if id(p) not in outside)


def timed(backend: Any, prompts: Sequence[Prompt]) -> tuple[dict[str, Reply], float, int]:
    """Replies, seconds and computed tokens of one call."""
    before = backend.describe()["tokens"]["computed"]
    begun = time.perf_counter()
    replies = {reply.id: reply for reply in backend.ask([p.request() for p in prompts])}
    seconds = time.perf_counter() - begun
    return replies, seconds, backend.describe()["tokens"]["computed"] - before


def best(values: Sequence[float]) -> int:
    """The place of the largest value."""
    return max(range(len(values)), key=values.__getitem__)


@contextmanager
def as_published(backend: Any) -> Iterator[Any]:
    """The model without anything of ours in it."""
    model, head = backend.model, backend.model.get_output_embeddings()
    model.set_attn_implementation("sdpa")
    model.set_output_embeddings(head.inner)
    try:
        yield model
    finally:
        model.set_output_embeddings(head)


def lm_eval(
    backend: Any, prompts: Sequence[Prompt], batches: Sequence[int]
) -> tuple[dict[str, list[float]], float, int]:
    """lm-eval's `hf` on the same model and prompts, at its best batch: scores, seconds, batch."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    def run(batch: int, some: Sequence[Prompt]) -> tuple[list[float], float]:
        with as_published(backend) as model:
            judge = HFLM(pretrained=model, tokenizer=backend.loaded.tokenizer, batch_size=batch)
            asked = [
                Instance("loglikelihood", {}, (p.text + p.lead, c), i)
                for p in some
                for i, c in enumerate(p.continuations)
            ]
            begun = time.perf_counter()
            found = judge.loglikelihood(asked, disable_tqdm=True)
            return [score for score, _ in found], time.perf_counter() - begun

    few = prompts[:: max(1, len(prompts) // 16)]
    speeds = {batch: run(batch, few)[1] for batch in batches} if len(batches) > 1 else {}
    batch = min(speeds, key=lambda b: speeds[b]) if speeds else batches[0]
    scores, seconds = run(batch, prompts)
    out: dict[str, list[float]] = {}
    place = iter(scores)
    for prompt in prompts:
        out[prompt.item.id] = [next(place) for _ in prompt.continuations]
    return out, seconds, batch


@app.command()
def versus(
    model: Model = "smollm2-135m",
    data: Data = DATA,
    task: str = "mmlu",
    subjects: str = ",".join(THREE),
    limit: Annotated[int, typer.Option(help="Items per subject; 0: all.")] = 0,
    protocol: str = "official",
    dtype: Dtype = "float32",
    batches: str = "4,8,16",
    repeat: Annotated[int, typer.Option(help="Runs of ours; the median counts.")] = 3,
) -> None:
    """Items per second against lm-eval's hf, and efficiency against the machine's matrix rate."""
    chosen = [s for s in subjects.split(",") if s] or None
    prompts = prompts_of(task, data, chosen, limit or None, protocol=protocol)
    backend = opened(model, dtype)
    timed(backend, prompts[:8])  # the load check
    rates = [matrix_rate(backend.loaded.dtype, backend.device)]
    ours: list[float] = []
    for _ in range(repeat):
        replies, seconds, computed = timed(backend, prompts)
        ours.append(seconds)
        rates.append(matrix_rate(backend.loaded.dtype, backend.device))
    theirs, slow, batch = lm_eval(backend, prompts, [int(b) for b in batches.split(",")])
    rates.append(matrix_rate(backend.loaded.dtype, backend.device))
    rate, quick = statistics.median(rates), statistics.median(ours)
    floor = 2 * body(backend.model) * computed / rate
    flips = sum(best(replies[i].logprobs) != best(scores) for i, scores in theirs.items())
    worst = max(
        abs(a - b)
        for i, scores in theirs.items()
        for a, b in zip(scores, replies[i].logprobs, strict=True)
    )
    n, total = len(prompts), sum(reply.num_tokens for reply in replies.values())
    table(
        f"{task}, {n} items, {backend.spec.path.rsplit('/', 1)[-1]}, {dtype}; {machine()}",
        ["what", "seconds", "items/s", "tokens"],
        [
            (f"lm-eval hf, batch {batch}", f"{slow:.1f}", f"{n / slow:.2f}", f"{total:,}"),
            ("ours", f"{quick:.1f}", f"{n / quick:.2f}", f"{computed:,}"),
        ],
    )
    print(f"\nratio {slow / quick:.2f} (ours took {', '.join(f'{s:.1f}' for s in ours)} s)")
    print(
        f"efficiency {floor / quick:.3f}: floor {floor:.1f} s at {rate / 1e9:.0f} GFLOP/s "
        f"(measured {', '.join(f'{r / 1e9:.0f}' for r in rates)})"
    )
    quickest = matrix_rate(backend.loaded.dtype, backend.device, fastest=True)
    print(
        f"against the fastest kernel's {quickest / 1e9:.0f} GFLOP/s: "
        f"{floor * rate / quickest / quick:.3f}; {floor * rate / quick / 1e9:.0f} GFLOP/s over "
        "distinct tokens"
    )
    print(f"predictions that differ: {flips}; largest difference {worst:.2g}")
    print(f"pack size found: {backend.forward.sizes.now} tokens; path {backend.path['attention']}")
    if n < 3000:
        nodes = trie_nodes(backend, prompts)
        print(f"planned tokens {computed:,}, trie nodes {nodes:,} ({computed / nodes - 1:+.2%})")


def trie_nodes(backend: Any, prompts: Sequence[Prompt]) -> int:
    """Distinct heads of all rows, counted by hashing every head."""
    from ceval_suite.backends.tokens import rows

    requests = [p.request() for p in prompts]
    seen: set[int] = set()
    for row in rows(backend.encoder.encode(requests), backend.max_length, requests):
        value = 0
        for token in row.tokens.tolist():
            value = hash((value, token))
            seen.add(value)
    return len(seen)


@app.command()
def writing(
    model: Model = "smollm2-135m",
    data: Data = DATA,
    subjects: Annotated[str, typer.Option(help="Files of AGIEval, few-shot.")] = (
        "sat-math,aqua-rat,gaokao-chemistry,gaokao-geography"
    ),
    count: Annotated[int, typer.Option(help="Prompts, spread over the files.")] = 100,
    most: Annotated[int, typer.Option(help="Tokens written at most.")] = 32,
    stop: Annotated[bool, typer.Option(help="End at the protocol's stop texts.")] = True,
    dtype: Dtype = "float32",
    batches: str = "1,4,8",
) -> None:
    """Greedy texts against transformers' own `generate`, token for token, and the throughput."""
    chosen = subjects.split(",")
    each = -(-count // len(chosen))
    prompts = prompts_of("agieval", data, chosen, each, protocol="official-generate")[:count]
    backend = opened(model, dtype)
    asked = [p.request() for p in prompts]
    asked = [replace(r, max_new_tokens=most, stop=r.stop if stop else ()) for r in asked]
    list(backend.ask(asked[:2]))  # the load checks
    before, begun = backend.forward.computed, time.perf_counter()
    replies = {reply.id: reply for reply in backend.ask(asked)}
    quick, computed = time.perf_counter() - begun, backend.forward.computed - before
    sizes = [int(b) for b in batches.split(",")]
    few = asked[:: max(1, len(asked) // 16)]
    speeds = {b: generated(backend, few, b)[1] for b in sizes} if len(sizes) > 1 else {sizes[0]: 0}
    batch = min(speeds, key=lambda b: speeds[b])
    theirs, slow = generated(backend, asked, batch)
    alone = theirs if batch == 1 else generated(backend, asked, 1)[0]
    written = sum(reply.written for reply in replies.values())
    context = sum(reply.num_tokens for reply in replies.values())
    n = len(asked)
    table(
        f"agieval, {n} prompts, {context:,} tokens, {written:,} written, {dtype}; {machine()}",
        ["what", "seconds", "prompts/s"],
        [
            (f"transformers generate, batch {batch}", f"{slow:.1f}", f"{n / slow:.2f}"),
            ("ours", f"{quick:.1f}", f"{n / quick:.2f}"),
        ],
    )
    unlike = [i for i, text in alone.items() if replies[i].text != text]
    apart = sum(alone[i] != theirs[i] for i in alone)
    print(f"\nratio {slow / quick:.2f}; {computed:,} tokens computed")
    print(f"path {backend.describe()['path']}")
    print(f"texts that differ from generate on one prompt at a time: {len(unlike)} {unlike[:3]}")
    print(f"texts of generate in batches of {batch} that differ from those: {apart}")


def generated(backend: Any, asked: Sequence[Any], batch: int) -> tuple[dict[str, str], float]:
    """Texts by transformers' greedy `generate` on the model as published, and seconds."""
    import torch

    tokenizer = backend.loaded.tokenizer
    ends = sorted(backend.composer.pen.ends)
    ids = backend.encoder.contexts([r.context for r in asked], template_tokens=False)
    out: dict[str, str] = {}
    order = sorted(range(len(asked)), key=lambda k: len(ids[k]))
    begun = time.perf_counter()
    with as_published(backend) as model, torch.inference_mode():
        for first in range(0, len(order), batch):
            some = order[first : first + batch]
            longest = max(len(ids[k]) for k in some)
            rows = torch.full((len(some), longest), ends[0])
            mask = torch.zeros_like(rows)
            for row, k in enumerate(some):
                rows[row, longest - len(ids[k]) :] = torch.as_tensor(ids[k])
                mask[row, longest - len(ids[k]) :] = 1
            more = {"stop_strings": list(asked[0].stop), "tokenizer": tokenizer}
            found = model.generate(
                rows.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=asked[0].max_new_tokens,
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=ends[0],
                **(more if asked[0].stop else {}),
            )[:, longest:].tolist()
            for k, tokens in zip(some, found, strict=True):
                end = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
                text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
                cuts = [text.find(s) for s in asked[k].stop if s in text]
                out[asked[k].id] = text[: min(cuts)] if cuts else text
    return out, time.perf_counter() - begun


@app.command()
def ablation(
    model: Model = "smollm2-135m",
    data: Data = DATA,
    subjects: str = THREE[0],
    limit: int = 100,
    dtype: Dtype = "float32",
) -> None:
    """What each idea brings: the engine with one of them taken away."""
    import torch

    from ceval_suite.backends import attention, batching, forward, head, products, sizes

    prompts = prompts_of("mmlu", data, subjects.split(","), limit)
    backend = opened(model, dtype)
    timed(backend, prompts[:8])
    runner = backend.forward

    def packed(size: int = 1024) -> float:
        runner.sizes = sizes.Sizes()
        runner.sizes.fix(size)
        return timed(backend, prompts)[1]

    def unshared() -> float:
        # every row packed, but none shares a token: a first token of its own
        real = batching.trie

        def apart(rows: Sequence[Any], longest: int) -> list[Any]:
            nodes: list[Any] = []
            for row in rows:
                more = real([row], longest)
                for node in more:
                    node.parent += len(nodes) * (node.parent >= 0)
                nodes += more
            return nodes

        forward.trie = apart
        try:
            return packed()
        finally:
            forward.trie = real

    def inside() -> float:
        # the head in every pass, as the model does it
        post, runner._post_processing = runner._post_processing, lambda: None
        try:
            return packed()
        finally:
            runner._post_processing = post

    def torch_products() -> float:
        # what torch.nn.functional.linear takes by itself
        real, products.kernel = products.kernel, lambda *_: plainly
        plainly = products.Fastest({"torch": torch.nn.functional.linear})
        try:
            return as_they_lie()
        finally:
            products.kernel = real

    def as_they_lie() -> float:
        pays, products.packing_pays = products.packing_pays, lambda _: False
        try:
            return packed()
        finally:
            products.packing_pays = pays

    def one_way(way: str) -> float:
        with attention.forced(way):
            return packed()

    def all_of_the_last() -> float:
        narrow, runner._last = runner._last, head.LastMLP(None)
        try:
            return packed()
        finally:
            runner._last = narrow

    def plain(some: Sequence[Prompt]) -> float:
        path, backend.path = backend.path, {"attention": "plain"}
        try:
            return timed(backend, some)[1] * len(prompts) / len(some)
        finally:
            backend.path = path

    packed()  # ways are chosen on the first large pass
    whole = packed()
    found: list[tuple[str, Callable[[], float]]] = [
        (f"pack size {size}", lambda size=size: packed(size)) for size in (128, 256, 512, 2048)
    ]
    found += [
        ("weights as they lie, not in oneDNN's order", as_they_lie),
        ("products by torch's own choice of kernel", torch_products),
        ("attention by torch's fused kernels, two parts merged", lambda: one_way("fused")),
        ("attention in tiles of one dense product", lambda: one_way("tiled")),
        ("the last layer's feed-forward part on every token", all_of_the_last),
        ("head in every pass instead of on collected reads", inside),
        ("packs without sharing", unshared),
        ("plain path, one row at a time (on a quarter of the items)", lambda: plain(prompts[::4])),
    ]
    rows = [("everything, packs of 1,024 tokens", f"{whole:.1f}", "1.00")]
    for name, run in found:
        seconds = run()
        rows.append((name, f"{seconds:.1f}", f"{seconds / whole:.2f}"))
    table(
        f"Ablation, {len(prompts)} MMLU items, {dtype}; {machine()}",
        ["what", "seconds", "times"],
        rows,
    )


@app.command()
def scaling(
    model: Model = "smollm2-135m",
    data: Data = DATA,
    sizes: str = "100,200,400,800",
    dtype: Dtype = "float32",
) -> None:
    """Cost follows distinct tokens: more and more of MMLU."""
    prompts = prompts_of("mmlu", data, None, None)
    backend = opened(model, dtype)
    timed(backend, prompts[:8])
    rows: list[tuple[str, ...]] = []
    for size in [int(part) for part in sizes.split(",")]:
        some = prompts[:size]
        replies, seconds, computed = timed(backend, some)
        total = sum(reply.num_tokens for reply in replies.values())
        rows.append(
            (
                f"{len(some):,}",
                f"{total:,}",
                f"{computed:,}",
                f"{seconds:.1f}",
                f"{1e3 * seconds / computed:.3f}",
                f"{1e3 * seconds / total:.3f}",
            )
        )
    table(
        f"Scaling, MMLU in file order, {dtype}; {machine()}",
        ["items", "tokens", "distinct", "seconds", "ms per distinct token", "ms per token"],
        rows,
    )


@app.command()
def startup(model: Model = "smollm2-135m", data: Data = DATA) -> None:
    """All of MMLU outside the forward passes: import, read, render, tokenise, plan, write."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import ceval_suite.backends.hf"], check=True)
    importing = time.perf_counter() - begun
    from ceval_suite import run as conductor
    from ceval_suite.backends.batching import Score, pack, trie
    from ceval_suite.backends.forward import Forward
    from ceval_suite.backends.tokens import rows as rows_of

    backend = opened(model, "float32")
    rows: list[tuple[str, str]] = [
        ("import torch, transformers and the engine", f"{importing:.1f}")
    ]

    def part(name: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        found = work()
        rows.append((name, f"{time.perf_counter() - begun:.1f}"))
        return found

    prepared = part("read and check", lambda: prepare("mmlu", Selection(data=data)))
    prompts = part("render and fit", lambda: conductor.render(prepared, prepared.scored(), backend))
    requests = [p.request() for p in prompts]
    encoded = part("tokenise", lambda: backend.encoder.encode(requests))
    backend.encoder.forget()

    def planning() -> int:
        nodes = trie(rows_of(encoded, backend.max_length, requests), 512)
        first = count = 0
        while first < len(nodes):
            first, count = pack(nodes, first, 512).last, count + 1
        return count

    part("plan", planning)

    def without_passes(self: Any, todo: Sequence[Any], **_: Any) -> Iterator[Score]:
        chance = random.Random(0)
        for row in todo:
            for read in row.reads:
                yield Score(read, chance.random(), -1 - chance.random())

    real, Forward.packed = Forward.packed, without_passes
    backend._packs = lambda todo: True
    opener, conductor.open_backend = conductor.open_backend, lambda *_: backend
    try:
        with tempfile.TemporaryDirectory() as out:
            part(
                "the whole run without forward passes (read once more: no)",
                lambda: conductor.evaluate("m", backend.spec, [prepared], Path(out)),
            )
    finally:
        Forward.packed, conductor.open_backend = real, opener
    table(f"Start-up, all of MMLU ({len(prompts):,} items); {machine()}", ["part", "seconds"], rows)


@app.command()
def memory(
    data: Data = DATA,
    dtype: Dtype = "float32",
    limit: int = 4,
    child: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Peak memory over weights with a vocabulary of 262,144 entries (Gemma-3-270M's shape)."""
    if child:
        from ceval_suite.backends import loading

        prompts = prompts_of("mmlu", data, THREE, limit)
        backend = opened(child, dtype)
        weights = sum(p.numel() * p.element_size() for p in backend.model.parameters())
        loaded = loading.peak_memory(backend.device)["process"]
        timed(backend, prompts)
        peak = loading.peak_memory(backend.device)["process"]
        print(json.dumps([weights, loaded, peak, backend.path["attention"]]))
        return
    with tempfile.TemporaryDirectory() as folder:
        big_vocabulary(Path(folder), dtype)
        arguments = ["memory", "--child", folder, "--data", str(data), "--dtype", dtype]
        arguments += ["--limit", str(limit)]
        found = subprocess.run(
            [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True
        )
    weights, loaded, peak, path = json.loads(found.stdout.splitlines()[-1])
    table(
        f"Memory, 262,144 vocabulary entries, {dtype}, {path} path; {machine()}",
        ["what", "MB"],
        [
            ("weights", f"{weights / 1e6:.0f}"),
            ("peak once loaded", f"{loaded / 1e6:.0f}"),
            ("peak", f"{peak / 1e6:.0f}"),
            ("peak over weights", f"{(peak - weights) / 1e6:.0f}"),
        ],
    )


def big_vocabulary(folder: Path, dtype: str) -> None:
    """A random model of Gemma-3-270M's shape with SmolLM2's tokenizer."""
    import torch
    import transformers

    from ceval_suite import catalog
    from ceval_suite.backends import loading

    config = transformers.Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    _, spec = catalog.load_model_spec("smollm2-135m")
    loading.load(spec).tokenizer.save_pretrained(folder)


@app.command()
def large(
    data: Data = DATA,
    layers: int = 32,
    hidden: int = 4096,
    intermediate: int = 11008,
    vocabulary: int = 49152,
    dtype: Dtype = "bfloat16",
    limit: Annotated[int, typer.Option(help="Items per subject; 0: all.")] = 0,
    versus_items: Annotated[int, typer.Option(help="Items for lm-eval; 0: leave it out.")] = 200,
    batches: str = "8,16,32,64",
) -> None:
    """A random Llama of 7B shape on the real MMLU prompts, on a GPU when there is one."""
    import torch
    import transformers

    from ceval_suite import catalog
    from ceval_suite.backends import loading

    with tempfile.TemporaryDirectory() as folder:
        config = transformers.LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 128 if hidden >= 128 else 4,
            num_key_value_heads=hidden // 128 if hidden >= 128 else 4,
            max_position_embeddings=8192,
            dtype=dtype,
        )
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            made = transformers.AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, dtype)
            )
        made.save_pretrained(folder)
        del made
        gc.collect()
        _, spec = catalog.load_model_spec("smollm2-135m")
        loading.load(spec).tokenizer.save_pretrained(folder)
        backend = opened(folder, dtype)
        prompts = prompts_of("mmlu", data, None, limit or None)
        timed(backend, prompts[:8])
        rate = matrix_rate(backend.loaded.dtype, backend.device)
        replies, seconds, computed = timed(backend, prompts)
        floor = 2 * body(backend.model) * computed / rate
        rows = [("ours", len(prompts), f"{seconds:.1f}", f"{len(prompts) / seconds:.1f}")]
        if versus_items:
            some = prompts[:versus_items]
            theirs, slow, batch = lm_eval(backend, some, [int(b) for b in batches.split(",")])
            flips = sum(best(replies[i].logprobs) != best(s) for i, s in theirs.items())
            rows.append(
                (f"lm-eval hf, batch {batch}", len(some), f"{slow:.1f}", f"{len(some) / slow:.1f}")
            )
            print(f"predictions that differ: {flips} of {len(some)}")
    table(
        f"Random Llama, {body(backend.model) / 1e9:.2f} B outside embeddings, {dtype}; {machine()}",
        ["what", "items", "seconds", "items/s"],
        rows,
    )
    print(f"\n{computed:,} distinct tokens; share of the matrix rate {floor / seconds:.3f}")
    print(f"path {backend.path}; pack size {backend.forward.sizes.now}")


if __name__ == "__main__":
    app()
