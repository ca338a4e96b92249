"""Runs samples in this process, on the engines that the services run: one prefill, a batch of decodes.

All variants of a sample share the layers in which nobody has dropped a token yet, and the answers of many samples
are decoded together. What a skeleton loses on the wire, its precision, it loses here too: each goes through the
same encoder and reader.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from time import monotonic

import psutil
import torch

from common.model import decoder
from common.model.source import resolve
from common.skeleton import wire
from common.skeleton.selection import Selection
from common.skeleton.spec import SkeletonSpec
from common.skeleton.tensor_bytes import dtype_name
from common.skeleton.wire import SkeletonReader
from evaluation.backend import Answer, Variant
from evaluation.prompt import PromptFormat
from evaluation.sample import Sample
from evaluation.suites import is_settled
from services.decode.answer import Answer as AnswerState
from services.decode.engine import DecodeEngine, Sequence, pool_blocks
from services.decode.pool import KVPool
from services.decode.sampling import Sampling
from services.prefill.blocks import sentence_ends
from services.prefill.engine import PrefillEngine
from services.prefill.outputs import KeptLayer, PromptEnd
from services.prefill.selectors.registry import selector_for
from services.prefill.structkv.calibration import stored_pivot

_SETTLED_EVERY = 8
"""Tokens after which an answer is looked at, whether it has all it needs."""


@dataclass(eq=False, slots=True)
class _Running:
    """One variant of one sample: its sequence in decode, its way there, and what is known of its answer."""

    sample: Sample
    variant: Variant
    selection: Selection
    sequence: Sequence
    reader: SkeletonReader
    pivot_layer: int | None = None
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    token_ids: list[int] = field(default_factory=list)


class LocalBackend:
    """A model with both engines. Answers are greedy, as the benchmarks' are."""

    def __init__(
        self, *, model: str, device: str, dtype: str, threads: int | None, batch: int, prompts: PromptFormat
    ) -> None:
        """Load the model; `batch` answers are decoded together, as far as memory goes."""
        if threads is not None:
            torch.set_num_threads(threads)
        self._model = decoder.load(model, device=device, dtype=dtype)
        spec = self._model.spec
        self._calibrated_pivot = stored_pivot(spec.fingerprint)
        self._prefill = PrefillEngine(
            self._model,
            calibrated_pivot=self._calibrated_pivot,
            sentence_ends=sentence_ends(resolve(model, weights=True), spec.vocab_size),
        )
        num_blocks = pool_blocks(self._model, None, psutil.virtual_memory().available)
        self._decode = DecodeEngine(self._model, KVPool(spec, num_blocks, self._model.device))
        self._prompts = prompts
        self._batch = batch

    @property
    def description(self) -> Mapping[str, object]:
        """Say what answers, and in which precision."""
        spec = self._model.spec
        return {
            "model_fingerprint": spec.fingerprint,
            "device": str(self._model.device),
            "dtype": dtype_name(spec.dtype),
            "threads": torch.get_num_threads(),
            "calibrated_pivot": self._calibrated_pivot,
        }

    def run(self, jobs: Iterable[tuple[Sample, list[Variant]]]) -> Iterator[tuple[Sample, Variant, Answer]]:
        """Yield the answers as they get done: prefill while there is room for more, else decode."""
        running: list[_Running] = []
        for sample, variants in jobs:
            token_ids = self._prompts.token_ids(sample)
            self._prefill.check(token_ids)
            selections = [Selection.of(self._prompts.options(sample, variant)) for variant in variants]
            while running and not self._has_room(sample, len(token_ids), selections, len(running)):
                yield from self._step(running)
            fresh = [
                self._admit(sample, variant, selection, token_ids)
                for variant, selection in zip(variants, selections, strict=True)
            ]
            self._run_prompt(token_ids, fresh)
            running += fresh
        while running:
            yield from self._step(running)

    def _slots(self, sample: Sample, prompt_tokens: int, selection: Selection) -> list[int]:
        kept = selection.max_kept_tokens(prompt_tokens, self._model.spec.windows)
        return [tokens + sample.max_new_tokens for tokens in kept]

    def _has_room(self, sample: Sample, prompt_tokens: int, selections: list[Selection], num_running: int) -> bool:
        pool = self._decode.pool
        blocks = sum(pool.blocks_needed(self._slots(sample, prompt_tokens, selection)) for selection in selections)
        return num_running + len(selections) <= self._batch and blocks <= pool.allocator.num_free

    def _admit(self, sample: Sample, variant: Variant, selection: Selection, token_ids: list[int]) -> _Running:
        kv = self._decode.pool.allocate(self._slots(sample, len(token_ids), selection))
        sampling = Sampling(
            temperature=0.0,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            seed=0,
            max_tokens=sample.max_new_tokens,
            stop_token_ids=frozenset(self._prompts.eos_token_ids),
        )
        sequence = Sequence(selection.next_position(len(token_ids)), kv, AnswerState(sampling))
        return _Running(sample, variant, selection, sequence, self._reader(token_ids, selection))

    def _reader(self, token_ids: list[int], selection: Selection) -> SkeletonReader:
        """Return the receiver of one skeleton, opened."""
        pool = self._decode.pool
        skeleton = SkeletonSpec.of(self._model.spec, token_ids, selection)
        reader = SkeletonReader(skeleton, skeleton.max_kept_tokens, device=pool.keys.device, dtype=pool.keys.dtype)
        reader.read_header(wire.header(skeleton))
        return reader

    @torch.inference_mode()
    def _run_prompt(self, token_ids: list[int], fresh: list[_Running]) -> None:
        """Run one prompt for all its variants; what each keeps goes to its place in the KV memory."""
        scope = self._prefill.scope(token_ids)
        selectors = [selector_for(running.selection, scope) for running in fresh]
        for index, output in self._prefill.run_all(token_ids, selectors):
            running = fresh[index]
            if isinstance(output, KeptLayer):
                self._write(running, output)
            elif isinstance(output, PromptEnd):
                running.sequence.hidden_state = output.hidden_state
                running.pivot_layer = output.pivot_layer
                running.prefill_seconds = output.compute_seconds

    def _write(self, running: _Running, kept: KeptLayer) -> None:
        """Send a layer as prefill does, and receive it as decode does."""
        pool, table = self._decode.pool, running.sequence.kv.tables[kept.layer]
        reader = running.reader
        for message in wire.layer_chunks(reader.skeleton, kept.layer, kept.keys, kept.values, kept.positions):
            chunk = reader.read_chunk(message)
            pool.write(table, chunk.keys, chunk.values, chunk.positions or ())

    def _step(self, batch: list[_Running]) -> Iterator[tuple[Sample, Variant, Answer]]:
        """Give every running answer its next token; yield those that end, and take them out of the batch."""
        started = monotonic()
        for running in batch:
            self._decode.append_slots(running.sequence)
        tokens = self._decode.step([running.sequence for running in batch])
        seconds = (monotonic() - started) / len(batch)
        for running, token in zip(list(batch), tokens, strict=True):
            running.token_ids.append(token)
            running.decode_seconds += seconds
            stopped = token in running.sequence.answer.sampling.stop_token_ids
            if stopped or len(running.token_ids) == running.sample.max_new_tokens or self._is_settled(running):
                batch.remove(running)
                self._decode.pool.free(running.sequence.kv)
                yield running.sample, running.variant, self._answer(running, stopped)

    def _is_settled(self, running: _Running) -> bool:
        """Tell whether the rest of the answer cannot change the score; looked at now and then."""
        return len(running.token_ids) % _SETTLED_EVERY == 0 and is_settled(
            running.sample, self._prompts.text(running.token_ids)
        )

    def _answer(self, running: _Running, stopped: bool) -> Answer:
        return Answer(
            text=self._prompts.text(running.token_ids[:-1] if stopped else running.token_ids),
            prompt_tokens=running.reader.skeleton.prompt_tokens,
            kept_tokens=fmean(running.reader.kept_tokens),
            skeleton_bytes=running.reader.num_bytes,
            prefill_seconds=running.prefill_seconds,
            decode_seconds=running.decode_seconds,
            pivot_layer=running.pivot_layer,
        )
