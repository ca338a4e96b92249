"""What the terminal says of an inspected prompt."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evaluation.inspection.inspection import Inspection


def show(inspection: Inspection, files: Sequence[Path], console: Console) -> None:
    """Print a small table, and where the files are."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in lines(inspection):
        table.add_row(f"[bold]{name}", escape(value))
    console.print(table)
    for file in files:
        console.print(str(file), soft_wrap=True, markup=False)


def lines(inspection: Inspection) -> list[tuple[str, str]]:
    """Return names and values in words, the most important first."""
    recording = inspection.recording
    tokens, layers = recording.prompt_tokens, recording.model.num_layers
    mean, whole = inspection.mean_kept_tokens, inspection.full_kv_bytes
    said = [
        ("model", f"{inspection.model}, {layers} layers"),
        ("method", method(inspection)),
        ("prompt", f"{tokens:,} tokens, {'through the chat template' if inspection.chat else 'as it is'}"),
        ("kept", f"{mean:,.0f} tokens a layer ({mean / tokens:.1%}); {inspection.kept_somewhere:,} in one or more"),
        ("pivot", pivot(inspection)),
    ]
    if inspection.went_all_the_way < tokens:
        said.append(("seen by all layers", f"{inspection.went_all_the_way:,} tokens"))
    said.append(
        (
            "bytes",
            f"{inspection.skeleton_bytes:,} as {inspection.codec}: {inspection.skeleton_bytes / whole:.1%} of the "
            f"{whole:,} of the full bfloat16 cache",
        )
    )
    return said


def method(inspection: Inspection) -> str:
    """Return the method's name, with its variant if that says something."""
    selection = inspection.recording.selection
    return selection.method if selection.variant == "default" else f"{selection.method}, variant {selection.variant}"


def pivot(inspection: Inspection) -> str:
    """Return L* and where it comes from."""
    layer = inspection.recording.pivot_layer
    origin = inspection.pivot.origin
    return origin if layer is None else f"L* = {layer} of {inspection.recording.model.num_layers} ({origin})"
