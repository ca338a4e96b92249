"""`structkv eval`: asks every question with every variant, stores each answer as it comes, and reports."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from common.errors import InvalidRequestError
from evaluation import report
from evaluation.backend import Backend, Variant
from evaluation.prompt import Format, PromptFormat
from evaluation.remote import RemoteBackend
from evaluation.sample import Sample
from evaluation.store import Key, Outcome, Store, folder_digest, key_of, outcome_of, run_digest
from evaluation.suites import SUITES, Questions, build, score
from evaluation.variants import parse

OUTCOMES_FILE = "outcomes.jsonl"


@dataclass(frozen=True, slots=True)
class Options:
    """The command's options; see its help."""

    model: str
    suite: str
    tasks: Sequence[str]
    lengths: Sequence[int]
    methods: Sequence[str]
    kv_retention: Sequence[float]
    kv_tokens: Sequence[int]
    samples: int
    seed: int
    data: Path | None
    out: Path
    prompt_format: str
    url: str
    concurrency: int
    batch: int
    device: str
    dtype: str
    threads: int | None
    api_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Run:
    """An evaluation: what is asked, what is compared, and the folder for its results."""

    questions: Questions
    variants: list[Variant]
    out: Path


def run(options: Options) -> None:
    """Run the command. Raises ValueError or InvalidRequestError for options that make no sense."""
    plan = Run(_questions(options), parse(options.methods, options.kv_retention, options.kv_tokens), options.out)
    if options.prompt_format not in get_args(Format):
        raise ValueError(f"the prompt format is {', '.join(get_args(Format))}, not {options.prompt_format!r}")
    prompts = PromptFormat.load(options.model, cast(Format, options.prompt_format))
    evaluate(plan, prompts, _backend(options, prompts), Console())


def _questions(options: Options) -> Questions:
    if options.suite not in SUITES:
        raise ValueError(f"the suite is {' or '.join(SUITES)}, not {options.suite!r}")
    known = SUITES[options.suite]
    if unknown := [task for task in options.tasks if task not in known]:
        raise ValueError(f"no task {', '.join(unknown)} in {options.suite}; there are {', '.join(known)}")
    # What is named twice is asked once, or its samples would count twice.
    tasks = list(dict.fromkeys(options.tasks or known))
    lengths = list(dict.fromkeys(options.lengths))
    return Questions(options.suite, tasks, lengths, options.samples, options.seed, options.data)


def _backend(options: Options, prompts: PromptFormat) -> Backend:
    if options.url:
        return RemoteBackend(url=options.url, concurrency=options.concurrency, prompts=prompts, api_key=options.api_key)
    from evaluation.local import LocalBackend  # noqa: PLC0415  torch, which a remote run does without

    return LocalBackend(
        model=options.model,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        batch=options.batch,
        prompts=prompts,
    )


def evaluate(plan: Run, prompts: PromptFormat, backend: Backend, console: Console) -> list[Outcome]:
    """Ask what has no answer yet, and write the report of everything asked for; return its outcomes.

    An interruption or an error loses nothing: what has an answer is stored, and the same command goes on from there.
    """
    _check_lengths(plan.questions, prompts.model.context_tokens)
    samples, missing = build(plan.questions, prompts.count_tokens)
    for reason in missing:
        console.print(f"left out: {reason}")
    digest = run_digest(_identity(plan, prompts, backend))
    store = Store(plan.out / OUTCOMES_FILE)
    wanted = _wanted(plan, samples, digest)
    try:
        _ask(plan, backend, samples, store, digest, console)
    finally:
        outcomes = [_named(store.outcomes[key], variant) for key, variant in wanted if key in store.outcomes]
        about = {"command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), **_identity(plan, prompts, backend)}
        report.write(plan.out, outcomes, about, missing)
    return outcomes


def _check_lengths(questions: Questions, context_tokens: int) -> None:
    """Refuse lengths that the model does not have before anything is computed; LongBench's own are cut to fit."""
    longest = max(questions.lengths, default=0)
    if questions.suite == "ruler" and longest > context_tokens:
        raise InvalidRequestError(f"length {longest} exceeds the model's {context_tokens} tokens")


def _wanted(plan: Run, samples: list[Sample], digest: str) -> list[tuple[Key, Variant]]:
    """Return every sample with every variant once; two names of one selection share a key and get a row each."""
    variants = {(variant.label, variant.budget): variant for variant in plan.variants}.values()
    return [(key_of(digest, sample, variant), variant) for sample in samples for variant in variants]


def _identity(plan: Run, prompts: PromptFormat, backend: Backend) -> dict[str, object]:
    """Say what makes two runs' outcomes comparable."""
    questions = plan.questions
    return {
        "suite": questions.suite,
        "seed": questions.seed,
        "texts": "generated" if questions.data is None else f"data {folder_digest(questions.data)}",
        "prompts": "chat" if prompts.chat else "raw",
        **backend.description,
    }


def _named(outcome: Outcome, variant: Variant) -> Outcome:
    """Give an outcome the name under which it is asked for now."""
    return replace(outcome, label=variant.label, budget=variant.budget)


def _ask(plan: Run, backend: Backend, samples: list[Sample], store: Store, digest: str, console: Console) -> None:
    """Have everything answered that is not in the store."""
    pending: list[tuple[Sample, list[Variant]]] = []
    for sample in samples:
        variants = {key_of(digest, sample, variant): variant for variant in plan.variants}
        if missing := [variant for key, variant in variants.items() if key not in store.outcomes]:
            pending.append((sample, missing))
    total = sum(len(variants) for _, variants in pending)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("answers", total=total)

        def jobs() -> Iterator[tuple[Sample, list[Variant]]]:
            for sample, variants in pending:
                progress.update(bar, description=f"{sample.task} {sample.length or ''} #{sample.index}")
                yield sample, variants

        for sample, variant, answer in backend.run(jobs()):
            store.add(outcome_of(digest, sample, variant, answer, score(sample, answer.text)))
            progress.advance(bar)
