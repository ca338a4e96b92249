"""One decode step: a batched forward of all running sequences, and a token for each."""

import time
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.errors import ContextLengthError, InvalidRequestError
from common.model.attention import causal_attention
from common.model.decoder import DecoderModel
from common.skeleton.selection import Selection
from services.decode.answer import Answer
from services.decode.attention import BatchAttention, ReplayAttention
from services.decode.backend import Backend, paged_forward
from services.decode.choice import choose_tokens
from services.decode.logprobs import RawLogprobs, TokenLogprobs
from services.decode.pool import BLOCK_TOKENS, KVPool, SequenceKV
from services.decode.sampling import Sampling

_RESERVED_NEW_TOKENS = 128
"""Room for an answer's first tokens is reserved with the skeleton, so that most answers stay in one run of
blocks; longer ones take blocks as they grow."""


_TRIAL_TOKENS = 64
"""As many rows as there are in a large batch."""


@dataclass(eq=False, slots=True)
class Sequence:
    """An answer in decode.

    Attributes:
        next_position: of the answer's first token: N, whatever the cache's length.
        kv: its block tables.
        answer: what the choice of its tokens depends on.
        hidden_state: the newest token's after the last layer, [D], where it is known before the step: the prompt's
            last one, until the first token is chosen.
        last_token: the newest token, not yet in the cache.
        last_logprobs: its log probability and the likeliest tokens', if asked for.
        drawn: with a grammar, what was drawn and its place in the step, until `settle` has the newest token.
        replay: tokens chosen elsewhere, to be run over the skeleton before the next one is chosen.
    """

    next_position: int
    kv: SequenceKV
    answer: Answer
    hidden_state: Tensor | None = None
    last_token: int = -1
    last_logprobs: TokenLogprobs | None = None
    replay: list[int] = field(default_factory=list)
    drawn: "Drawn | None" = None

    def settle(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """Go on by a token."""
        self.last_token, self.last_logprobs, self.drawn = token, logprobs, None
        self.answer.take([token])

    @property
    def tokens_to_append(self) -> int:
        """Tokens that the next step adds to the cache."""
        return len(self.replay) or int(self.hidden_state is None)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token that the grammar may put another one in the place of, and its step's log probabilities, by row."""

    token: int
    row: int
    raw: RawLogprobs


class DecodeEngine:
    """Runs steps on one model and its KV memory."""

    def __init__(self, model: DecoderModel, pool: KVPool, *, backend: Backend = "auto") -> None:
        self.model = model
        self.pool = pool
        self._paged = paged_forward(backend, model, pool)

    def check(
        self, token_ids: list[int], selection: Selection, sampling: Sampling, replays: Collection[list[int]] = ([],)
    ) -> None:
        """Raise for a request that this worker could never finish; `replays` are its unfinished answers so far."""
        spec, num_tokens = self.model.spec, len(token_ids)
        if not token_ids:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        if num_tokens + sampling.max_tokens > spec.max_tokens:
            raise ContextLengthError(
                f"{num_tokens} prompt tokens and max_tokens {sampling.max_tokens} exceed the model's length "
                f"of {spec.max_tokens}"
            )
        sampling.check_vocabulary(spec.vocab_size)
        if any(len(replay) >= sampling.max_tokens or max(replay, default=0) >= spec.vocab_size for replay in replays):
            raise InvalidRequestError("an answer so far is as long as max_tokens or has ids outside the vocabulary")
        self._check_memory(num_tokens, selection, sampling, len(replays))

    def _check_memory(self, num_tokens: int, selection: Selection, sampling: Sampling, num_answers: int) -> None:
        """Raise unless the pool holds one answer to its end, and all of them when they begin."""
        num_blocks = self.pool.allocator.num_blocks
        whole = self.pool.blocks_needed(self._slots(num_tokens, selection, sampling.max_tokens))
        if whole > num_blocks:
            raise InvalidRequestError(
                f"the request needs KV memory for {whole} blocks of {BLOCK_TOKENS} tokens, this worker has "
                f"{num_blocks}; lower kv_retention or max_tokens"
            )
        needed = self._blocks(self._begun(num_tokens, selection, sampling, [0] * num_answers))
        if needed > num_blocks:
            raise InvalidRequestError(
                f"{num_answers} answers need KV memory for {needed} blocks of {BLOCK_TOKENS} tokens, this worker has "
                f"{num_blocks}; lower n, kv_retention or max_tokens",
                param="n",
            )

    def tokens_to_reserve(
        self, prompt_tokens: int, selection: Selection, sampling: Sampling, replayed: list[int]
    ) -> list[list[int]]:
        """Return the slots to set aside for each answer, by layer, before a prefill worker is asked.

        `replayed` is each answer's length so far. Answers that have grown beyond the pool together start with what new
        ones would get: they take turns, as they would have where they come from.
        """
        reserved = self._begun(prompt_tokens, selection, sampling, replayed)
        if self._blocks(reserved) <= self.pool.allocator.num_blocks:
            return reserved
        return self._begun(prompt_tokens, selection, sampling, [0] * len(replayed))

    def _begun(
        self, prompt_tokens: int, selection: Selection, sampling: Sampling, replayed: list[int]
    ) -> list[list[int]]:
        """Return the slots for answers of so many tokens and the next ones.

        The first one holds the skeleton; the others share its full blocks, and need room for what is behind them: less
        than a block of the skeleton, and the answer.
        """
        ahead = [min(sampling.max_tokens, tokens + _RESERVED_NEW_TOKENS) for tokens in replayed]
        others = [[BLOCK_TOKENS - 1 + tokens] * self.model.spec.num_layers for tokens in ahead[1:]]
        return [self._slots(prompt_tokens, selection, ahead[0]), *others]

    def _blocks(self, reserved: list[list[int]]) -> int:
        return sum(self.pool.blocks_needed(tokens) for tokens in reserved)

    def _slots(self, prompt_tokens: int, selection: Selection, ahead: int) -> list[int]:
        """Return the slots for a skeleton and so many tokens behind it, by layer."""
        return [kept + ahead for kept in selection.max_kept_tokens(prompt_tokens, self.model.spec.windows)]

    @torch.inference_mode()
    def step(self, batch: list[Sequence]) -> list[int]:
        """Choose the next token of each sequence; what it adds to the cache has its slots already."""
        for sequence in batch:
            if sequence.replay:
                self._replay(sequence)
        running = [sequence for sequence in batch if sequence.hidden_state is None]
        fresh = [sequence for sequence in batch if sequence.hidden_state is not None]
        hidden = [self._forward(running)] if running else []
        hidden += [s.hidden_state[None] for s in fresh if s.hidden_state is not None]
        self._choose(running + fresh, self.model.logits(torch.cat(hidden)))
        return [sequence.last_token for sequence in batch]

    def try_out(self) -> None:
        """Compute as much as a large step does, without a sequence; raise what is raised where that is not possible."""
        self._try(min(_TRIAL_TOKENS, self.model.spec.max_tokens))

    def seconds(self, num_sequences: int) -> float:
        """Return how long a step of so many sequences takes, but for what is in their caches."""
        started = time.perf_counter()
        self._try(num_sequences)
        return time.perf_counter() - started

    @torch.inference_mode()
    def _try(self, num_tokens: int) -> None:
        spec, device = self.model.spec, self.model.device
        positions = torch.arange(num_tokens, device=device)[None]
        hidden, rotary = self.model.embed(torch.zeros_like(positions)), self.model.rotary(positions)
        for layer in range(spec.num_layers):
            hidden = self.model.layer(layer, hidden, rotary, positions, _trial_attention)
        self.model.logits(hidden[0]).argmax(dim=-1).tolist()

    def _choose(self, order: list[Sequence], logits: Tensor) -> None:
        """Give each sequence the token chosen from its row of logits [B, V]; one with a grammar has it drawn only."""
        answers = [sequence.answer for sequence in order]
        raw = RawLogprobs(logits, answers)
        tokens = choose_tokens(logits, answers)
        for row, (sequence, token, logprobs) in enumerate(zip(order, tokens, raw.of(tokens), strict=True)):
            sequence.hidden_state = None
            if sequence.answer.matcher is None:
                sequence.settle(token, logprobs)
            else:
                sequence.drawn = Drawn(token, row, raw)

    def _replay(self, sequence: Sequence) -> None:
        """Run a sequence's replayed tokens through all layers at once, as if they had been chosen here."""
        hidden = self._run(sequence.kv, sequence.replay, sequence.next_position)
        sequence.answer.take(sequence.replay)
        sequence.hidden_state, sequence.replay = hidden[-1], []

    @torch.inference_mode()
    def run_tokens(self, kv: SequenceKV, tokens: list[int], position: int) -> Tensor:
        """Append tokens from `position` on to a cache in one step; return their hidden states, [tokens, D]."""
        self.pool.append_slots(kv, position, len(tokens))
        return self._run(kv, tokens, position)

    def _run(self, kv: SequenceKV, tokens: list[int], position: int) -> Tensor:
        """Run tokens, which have their slots, through all layers."""
        device = self.model.device
        positions = torch.arange(position, position + len(tokens), device=device)[None]
        hidden, rotary = self.model.embed(torch.tensor([tokens], device=device)), self.model.rotary(positions)
        attention = ReplayAttention(self.pool, kv)
        for layer in range(self.model.spec.num_layers):
            hidden = self.model.layer(layer, hidden, rotary, positions, attention)
        return hidden[0]

    def _forward(self, running: list[Sequence]) -> Tensor:
        """Run every sequence's newest token through all layers; return hidden states [B, D]."""
        tokens, places = [s.last_token for s in running], [_position(s) for s in running]
        batch = [s.kv for s in running]
        if self._paged is not None:
            return self._paged(tokens, places, batch)
        device = self.model.device
        positions = torch.tensor(places, device=device)[:, None]  # [B, 1]
        hidden, rotary = self.model.embed(torch.tensor(tokens, device=device)[:, None]), self.model.rotary(positions)
        attention = BatchAttention(self.pool, batch)
        for layer in range(self.model.spec.num_layers):
            hidden = self.model.layer(layer, hidden, rotary, positions, attention)
        return hidden[:, 0]

    def append_slots(self, sequence: Sequence) -> None:
        """Give the tokens that the next step adds their places in the cache."""
        if sequence.replay:
            self.pool.append_slots(sequence.kv, sequence.next_position, len(sequence.replay))
        elif sequence.hidden_state is None:
            self.pool.append_slots(sequence.kv, _position(sequence))


def _trial_attention(layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:  # noqa: ARG001
    return causal_attention(query, key, value, scaling)


def _position(sequence: Sequence) -> int:
    """Return the position of the sequence's newest token."""
    return sequence.next_position + sequence.answer.num_generated - 1


def pool_blocks(model: DecoderModel, kv_memory_gib: float | None, free_ram_bytes: int) -> int:
    """Return how many blocks the KV memory has: as set, else what the device can spare."""
    if kv_memory_gib is not None:
        num_bytes = int(kv_memory_gib * 2**30)
    elif model.device.type == "cuda":
        num_bytes = int(0.85 * torch.cuda.mem_get_info(model.device)[0])
    else:
        num_bytes = min(4 * 2**30, free_ram_bytes // 4)
    return num_bytes // KVPool.block_bytes(model.spec)
