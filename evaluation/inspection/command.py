"""`structkv inspect`: runs one prompt as a prefill worker would, and draws what was kept of it."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

import torch
from rich.console import Console

from common.model import decoder
from common.model.source import resolve
from common.skeleton.selection import Selection
from evaluation.inspection import page, picture, raw, summary
from evaluation.inspection.codecs import ByteCounter
from evaluation.inspection.inspection import Inspection
from evaluation.inspection.pivot import PivotFinding
from evaluation.inspection.prompt import TokenisedPrompt, read_text, tokenise
from evaluation.inspection.recording import record
from evaluation.prompt import Format, PromptFormat
from evaluation.variants import parse
from services.prefill.blocks import sentence_ends
from services.prefill.engine import PrefillEngine
from services.prefill.structkv.calibration import Calibration, stored_calibration

STEM = "inspection"
"""Of the files' names in the folder."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command's options; see its help."""

    model: str
    prompt: str | None
    file: Path | None
    prompt_format: str
    method: str
    kv_retention: float
    kv_tokens: int
    out: Path
    device: str
    dtype: str
    threads: int | None


def run(options: Options) -> None:
    """Run the command. Raises ValueError or InvalidRequestError for options that make no sense, OSError for files."""
    text = read_text(options.prompt, options.file)
    _make_writable(options.out)
    console = Console()
    with console.status("running the prompt"):
        inspection = inspect(text, options)
        files = write(inspection, options.out)
    summary.show(inspection, files, console)


def inspect(text: str, options: Options) -> Inspection:
    """Run a text through the engine, and return what became of it."""
    if options.prompt_format not in get_args(Format):
        raise ValueError(f"the prompt format is {', '.join(get_args(Format))}, not {options.prompt_format!r}")
    rates, counts = ([], [options.kv_tokens]) if options.kv_tokens else ([options.kv_retention], [])
    [variant] = parse([options.method], rates, counts)
    prompts = PromptFormat.load(options.model, cast(Format, options.prompt_format))
    prompt = tokenise(text, prompts)
    selection = variant.selection
    if "window_tokens" not in variant.options:  # a template's closing tokens come on top, as in a request
        selection = replace(selection, window_tokens=selection.window_tokens + prompt.closing_tokens)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model = decoder.load(options.model, device=options.device, dtype=options.dtype)
    calibration = stored_calibration(model.spec.fingerprint)
    engine = PrefillEngine(
        model,
        calibrated_pivot=None if calibration is None else calibration.pivot_layer,
        sentence_ends=sentence_ends(resolve(options.model, weights=True), model.spec.vocab_size),
    )
    return examine(engine, calibration, prompt, selection, model=options.model, chat=prompts.chat)


def examine(
    engine: PrefillEngine,
    calibration: Calibration | None,
    prompt: TokenisedPrompt,
    selection: Selection,
    *,
    model: str,
    chat: bool,
) -> Inspection:
    """Run a prompt on an engine whose pivot is the calibration's, and return what became of it."""
    spec = engine.model.spec
    counter = ByteCounter.of(spec, prompt.token_ids, selection)
    recording = record(engine, prompt.token_ids, selection, counter.add)
    return Inspection(
        model=model,
        chat=chat,
        prompt=prompt,
        recording=recording,
        pivot=PivotFinding.of(recording, calibration),
        num_bytes=counter.num_bytes,
        codec=counter.chosen,
    )


def write(inspection: Inspection, folder: Path) -> Sequence[Path]:
    """Write the three files, and return them: HTML, PNG and JSON."""
    html, png, numbers = (folder / f"{STEM}{ending}" for ending in (".html", ".png", ".json"))
    html.write_text(page.render(inspection), encoding="utf-8", newline="")
    picture.draw(inspection).savefig(png, dpi=picture.DPI)
    numbers.write_text(json.dumps(raw.as_json(inspection), ensure_ascii=False) + "\n", encoding="utf-8")
    return html, png, numbers


def _make_writable(folder: Path) -> None:
    """Make the folder before anything is computed; raise OSError if nothing can be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write to the folder {folder}")
