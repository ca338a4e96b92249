"""One inspected prompt: all that its three files and the summary are made of."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from evaluation.inspection.pivot import PivotFinding
from evaluation.inspection.prompt import TokenisedPrompt
from evaluation.inspection.recording import Recording

_SCORES = {
    "streaming_llm": "recency",
    "h2o": "attention received from all queries",
    "keydiff": "distance from the mean key",
}


@dataclass(frozen=True, slots=True)
class Inspection:
    """A prompt, what the engine did with it, and what that comes to.

    Attributes:
        model: as the user named it.
        chat: whether the prompt went through the chat template.
        pivot: how L* was found.
        num_bytes: of the skeleton as it crosses, by codec; one of them is `codec`.
        codec: in which it would be sent.
    """

    model: str
    chat: bool
    prompt: TokenisedPrompt
    recording: Recording
    pivot: PivotFinding
    num_bytes: Mapping[str, int]
    codec: str

    @property
    def skeleton_bytes(self) -> int:
        """As the service counts them."""
        return self.num_bytes[self.codec]

    @property
    def full_kv_bytes(self) -> int:
        """The whole prompt's cache in bfloat16."""
        return self.recording.model.full_kv_bytes(self.recording.prompt_tokens)

    @property
    def sink_tokens(self) -> int:
        """First tokens that are always kept; 0 where nothing was chosen."""
        return 0 if self.recording.is_whole else self.recording.selection.sink_tokens

    @property
    def window_tokens(self) -> int:
        """Last tokens that are always kept; 0 where nothing was chosen."""
        recording = self.recording
        return 0 if recording.is_whole else min(recording.selection.window_tokens, recording.prompt_tokens)

    @property
    def score_name(self) -> str:
        """What the method's scores are."""
        selection = self.recording.selection
        return _SCORES.get(selection.method, f"saliency ({selection.saliency})")

    @property
    def went_all_the_way(self) -> int:
        """Tokens that every layer saw: the structural skeleton, where the sequence was cut."""
        return int((self.recording.layers_run == self.recording.model.num_layers).sum())

    @property
    def kept_somewhere(self) -> int:
        """Tokens that one layer at least has kept."""
        return int(torch.count_nonzero(self.recording.layers_keeping()))

    @property
    def mean_kept_tokens(self) -> float:
        """Tokens that a layer keeps, on average."""
        kept = self.recording.kept_tokens
        return sum(kept) / len(kept)
