"""One decode step: a batched forward of all running sequences, and a token for each."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.errors import ContextLengthError, InvalidRequestError
from common.model.decoder import DecoderModel
from common.skeleton.selection import Selection
from services.decode.attention import BatchAttention, ReplayAttention
from services.decode.backend import Backend, paged_forward
from services.decode.pool import BLOCK_TOKENS, KVPool, SequenceKV
from services.decode.sampling import Sampling, choose_tokens

_RESERVED_NEW_TOKENS = 128
"""Room for an answer's first tokens is reserved with the skeleton, so that most answers stay in one run of
blocks; longer ones take blocks as they grow."""


@dataclass(eq=False, slots=True)
class Sequence:
    """A request in decode.

    Attributes:
        next_position: of the answer's first token: N, whatever the cache's length.
        kv: its block tables.
        sampling: how its tokens are chosen.
        hidden_state: the newest token's after the last layer, [D], where it is known before the step: the prompt's
            last one, until the first token is chosen.
        num_generated: tokens chosen so far.
        last_token: the newest of them, not yet in the cache.
        replay: tokens chosen elsewhere, to be run over the skeleton before the next one is chosen.
        priority: whose memory is kept when it runs out: the lower, the longer.
    """

    next_position: int
    kv: SequenceKV
    sampling: Sampling
    hidden_state: Tensor | None = None
    num_generated: int = 0
    last_token: int = -1
    replay: list[int] = field(default_factory=list)
    priority: int = 0

    @property
    def tokens_to_append(self) -> int:
        """Tokens that the next step adds to the cache."""
        return len(self.replay) or int(self.hidden_state is None)


class DecodeEngine:
    """Runs steps on one model and its KV memory."""

    def __init__(self, model: DecoderModel, pool: KVPool, *, backend: Backend = "auto") -> None:
        self.model = model
        self.pool = pool
        self._paged = paged_forward(backend, model, pool)

    def check(
        self, token_ids: list[int], selection: Selection, sampling: Sampling, replay: list[int] | None = None
    ) -> None:
        """Raise for a request that this worker could never finish; `replay` are the answer's tokens so far."""
        spec, num_tokens = self.model.spec, len(token_ids)
        if not token_ids:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        if num_tokens + sampling.max_tokens > spec.max_tokens:
            raise ContextLengthError(
                f"{num_tokens} prompt tokens and max_tokens {sampling.max_tokens} exceed the model's length "
                f"of {spec.max_tokens}"
            )
        if replay and (len(replay) >= sampling.max_tokens or max(replay) >= spec.vocab_size):
            raise InvalidRequestError("the answer so far is as long as max_tokens or has ids outside the vocabulary")
        needed = self.pool.blocks_needed(
            [kept + sampling.max_tokens for kept in selection.max_kept_tokens(num_tokens, spec.windows)]
        )
        if needed > self.pool.allocator.num_blocks:
            raise InvalidRequestError(
                f"the request needs KV memory for {needed} blocks of {BLOCK_TOKENS} tokens, this worker has "
                f"{self.pool.allocator.num_blocks}; lower kv_retention or max_tokens"
            )

    def tokens_to_reserve(
        self, prompt_tokens: int, selection: Selection, sampling: Sampling, num_replayed: int = 0
    ) -> list[int]:
        """Return the slots to set aside in each layer before a prefill worker is asked."""
        ahead = min(sampling.max_tokens, num_replayed + _RESERVED_NEW_TOKENS)
        windows = self.model.spec.windows
        return [kept + ahead for kept in selection.max_kept_tokens(prompt_tokens, windows)]

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
        logits = self.model.logits(torch.cat(hidden))
        order = running + fresh
        tokens = choose_tokens(logits, [s.sampling for s in order], [s.num_generated for s in order])
        for sequence, token in zip(order, tokens, strict=True):
            sequence.last_token, sequence.hidden_state = token, None
            sequence.num_generated += 1
        return [sequence.last_token for sequence in batch]

    def _replay(self, sequence: Sequence) -> None:
        """Run a sequence's replayed tokens through all layers at once, as if they had been chosen here."""
        hidden = self._run(sequence.kv, sequence.replay, sequence.next_position)
        sequence.hidden_state, sequence.num_generated, sequence.replay = hidden[-1], len(sequence.replay), []

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


def _position(sequence: Sequence) -> int:
    """Return the position of the sequence's newest token."""
    return sequence.next_position + sequence.num_generated - 1


def pool_blocks(model: DecoderModel, kv_memory_gib: float | None, free_ram_bytes: int) -> int:
    """Return how many blocks the KV memory has: as set, else what the device can spare."""
    if kv_memory_gib is not None:
        num_bytes = int(kv_memory_gib * 2**30)
    elif model.device.type == "cuda":
        num_bytes = int(0.85 * torch.cuda.mem_get_info(model.device)[0])
    else:
        num_bytes = min(4 * 2**30, free_ram_bytes // 4)
    return num_bytes // KVPool.block_bytes(model.spec)
