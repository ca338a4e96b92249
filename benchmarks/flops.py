"""How much computing a prompt takes, and so how much faster a prefill that drops tokens can become at best."""

from dataclasses import dataclass

from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer's cost follows from: the parameters of its linear maps, and its attention heads."""

    linear_parameters: int
    num_heads: int
    head_dim: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "LayerShape":
        """Read a dense model's first layer; all are alike."""
        config = model.config.get_text_config(decoder=True)
        layer = model.get_decoder().layers[0]
        return cls(
            linear_parameters=sum(weight.numel() for weight in layer.parameters() if weight.dim() == 2),
            num_heads=config.num_attention_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        )


def layer_flops(shape: LayerShape, tokens: int) -> float:
    """Return a layer's floating-point operations for so many tokens, its attention causal.

    A parameter takes part in one multiplication and one addition a token. Scores and weighted values are 4 n^2 H d
    for all pairs; the causal half is 2 n^2 H d.
    """
    return 2.0 * tokens * shape.linear_parameters + 2.0 * tokens**2 * shape.num_heads * shape.head_dim


def largest_speedup(
    shape: LayerShape, *, num_layers: int, tokens: int, pivot_layer: int | None, struct_tokens: int
) -> float:
    """Return FLOPs(full) / FLOPs(structkv): `pivot_layer` layers see all tokens, the rest `struct_tokens` of them."""
    if pivot_layer is None:
        return 1.0
    full = layer_flops(shape, tokens)
    cut = pivot_layer * full + (num_layers - pivot_layer) * layer_flops(shape, struct_tokens)
    return num_layers * full / cut
