"""The commands that judge methods of selection: `structkv calibrate`, `eval` and `inspect`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from common.settings import DEFAULT_MODEL
from services.complaints import complaining

app = typer.Typer()

Device = Annotated[str, typer.Option(help="torch device; auto takes a GPU if there is one.")]
Dtype = Annotated[str, typer.Option(help="Weights and KV cache: auto, float32, bfloat16 or float16.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads for torch; its own choice if unset.")]
Data = Annotated[Path | None, typer.Option(help="Folder with texts and questions; generated if unset.", exists=True)]
Model = Annotated[str, typer.Option(envvar="STRUCTKV_MODEL", help="Hub id, folder, or GGUF file of the model.")]


@app.command()
def calibrate(
    model: Model = DEFAULT_MODEL,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts to average over, of RULER's tasks in turn.")] = 13,
    length: Annotated[int, typer.Option(min=256, help="Tokens of each prompt.")] = 2048,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="File to write; unset: where workers look for it.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Find a model's pivot layer, store it for the prefill workers, and draw the curves beside it."""
    from evaluation import calibrate as calibration  # noqa: PLC0415

    plan = calibration.Plan(model, device, dtype, threads, prompts, length, seed, data, out)
    with complaining():
        found, path = calibration.run(plan)
    typer.echo(f"L* = {found.pivot_layer} of {found.num_layers} layers: {path}, {path.with_suffix('.png')}")


@app.command("eval")
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for answers and report; a run goes on where it was.")],
    model: Model = DEFAULT_MODEL,
    suite: Annotated[str, typer.Option(help="ruler or longbench.")] = "ruler",
    tasks: Annotated[str, typer.Option(help="Tasks of the suite, separated by commas; all if unset.")] = "",
    lengths: Annotated[str, typer.Option(help="Tokens of prompt and answer, separated by commas.")] = "2048",
    method: Annotated[
        list[str] | None,
        typer.Option(help='What to compare, once for each: "snapkv" or "structkv:variant=paper,pivot_layer=19".'),
    ] = None,
    kv_retention: Annotated[str, typer.Option(help="KV budgets as shares, separated by commas.")] = "0.1",
    kv_tokens: Annotated[str, typer.Option(help="KV budgets in tokens, separated by commas.")] = "",
    samples: Annotated[int, typer.Option(min=1, help="Samples of each task and length.")] = 20,
    seed: Annotated[int, typer.Option(help="Of everything that is generated.")] = 0,
    data: Data = None,
    prompt_format: Annotated[str, typer.Option(help="chat, raw, or auto: chat if the model has a template.")] = "auto",
    url: Annotated[str, typer.Option(help="Drive the service at this address instead of engines in here.")] = "",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once, with --url.")] = 4,
    batch: Annotated[int, typer.Option(min=1, help="Answers decoded at once, without --url.")] = 64,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Score selection methods on RULER or LongBench.

    With --url, STRUCTKV_API_KEY is the service's API key; a flag would be stored with the results' command.
    """
    from evaluation.command import Options, run  # noqa: PLC0415

    with complaining():
        run(
            Options(
                model=model,
                suite=suite,
                tasks=_listed(tasks),
                lengths=[int(entry) for entry in _listed(lengths)],
                methods=method or ["full", "structkv"],
                kv_retention=[float(entry) for entry in _listed(kv_retention)],
                kv_tokens=[int(entry) for entry in _listed(kv_tokens)],
                samples=samples,
                seed=seed,
                data=data,
                out=out,
                prompt_format=prompt_format,
                url=url,
                concurrency=concurrency,
                batch=batch,
                device=device,
                dtype=dtype,
                threads=threads,
                api_key=os.environ.get("STRUCTKV_API_KEY", ""),
            )
        )


@app.command()
def inspect(
    prompt: Annotated[str | None, typer.Option(help='The text; "-" reads it from standard input.')] = None,
    file: Annotated[Path | None, typer.Option(help='A file with the text; "-" is standard input.')] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page, the picture and the numbers.")] = Path("inspection"),
    model: Model = DEFAULT_MODEL,
    method: Annotated[
        str, typer.Option(help='What chooses: "structkv", or with parameters "structkv:variant=paper,codec=int4".')
    ] = "structkv",
    kv_retention: Annotated[float, typer.Option(help="Share of the tokens that a layer keeps.")] = 0.1,
    kv_tokens: Annotated[int, typer.Option(help="The same as a number of tokens; 0 leaves it to the share.")] = 0,
    prompt_format: Annotated[str, typer.Option(help="chat, raw, or auto: chat if the model has a template.")] = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Draw what is kept of a prompt: a page to read, a picture, and the numbers."""
    from evaluation.inspection.command import Options, run  # noqa: PLC0415

    with complaining():
        run(
            Options(
                model=model,
                prompt=prompt,
                file=file,
                prompt_format=prompt_format,
                method=method,
                kv_retention=kv_retention,
                kv_tokens=kv_tokens,
                out=out,
                device=device,
                dtype=dtype,
                threads=threads,
            )
        )


def _listed(entries: str) -> list[str]:
    return [entry.strip() for entry in entries.split(",") if entry.strip()]
