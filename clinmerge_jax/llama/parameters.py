"""The table of the parameters of Llama and related families.

Names, shapes, logical axes, initialisation, loading and saving all read it. To add a parameter to the model, add one
row here and one attribute in `model.py` (a test compares the two).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from clinmerge_jax.llama.config import LlamaConfig

Params = dict  # nested dict of arrays; the leaves under "layers" carry a leading layer axis


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of the model.

    Attributes:
      path: its keys in Params.
      name: the name of its tensor in a Hugging Face checkpoint, with "{layer}" if it is stacked over layers.
      axes: the logical axes of one layer's tensor, in Hugging Face order ([out, in]).
      initializer: "normal", "ones" or "zeros".
    """

    path: tuple[str, ...]
    name: str
    axes: tuple[str, ...]
    initializer: str

    @property
    def stacked(self) -> bool:
        """Whether the leaf in Params has a leading layer axis."""
        return "{layer}" in self.name

    def logical_axes(self) -> tuple[str, ...]:
        """The logical axes of the leaf in Params, including the layer axis."""
        return ("layers",) * self.stacked + self.axes

    def shape(self, config: LlamaConfig) -> tuple[int, ...]:
        """The shape of one checkpoint tensor (without the layer axis)."""
        sizes = axis_sizes(config)
        return tuple(sizes[axis] for axis in self.axes)

    def stacked_shape(self, config: LlamaConfig) -> tuple[int, ...]:
        """The shape of the leaf in Params."""
        sizes = axis_sizes(config)
        return tuple(sizes[axis] for axis in self.logical_axes())

    def names(self, config: LlamaConfig) -> list[str]:
        """The checkpoint tensors that make up the leaf, in layer order."""
        if not self.stacked:
            return [self.name]
        return [self.name.format(layer=layer) for layer in range(config.num_hidden_layers)]


def axis_sizes(config: LlamaConfig) -> dict[str, int]:
    """The size of each logical axis."""
    return {
        "layers": config.num_hidden_layers,
        "vocab": config.vocab_size,
        "embed": config.hidden_size,
        "mlp": config.intermediate_size,
        "heads": config.num_attention_heads * config.head_dim,
        "kv_heads": config.num_key_value_heads * config.head_dim,
        "head": config.head_dim,
    }


def _always(config: LlamaConfig) -> bool:
    return True


def _untied(config: LlamaConfig) -> bool:
    return not config.tie_word_embeddings


def _attention_bias(config: LlamaConfig) -> bool:
    return config.attention_bias


def _qkv_bias(config: LlamaConfig) -> bool:
    return config.attention_bias or config.qkv_bias


def _qk_norm(config: LlamaConfig) -> bool:
    return config.qk_norm


def _mlp_bias(config: LlamaConfig) -> bool:
    return config.mlp_bias


def _layer(module: str, axes: tuple[str, ...], initializer: str) -> Parameter:
    path = ("layers", *module.split("."))
    return Parameter(path, "model.layers.{layer}." + module, axes, initializer)


_TABLE: tuple[tuple[Parameter, Callable[[LlamaConfig], bool]], ...] = (
    (Parameter(("embed_tokens", "weight"), "model.embed_tokens.weight", ("vocab", "embed"), "normal"), _always),
    (_layer("input_layernorm.weight", ("embed",), "ones"), _always),
    (_layer("self_attn.q_proj.weight", ("heads", "embed"), "normal"), _always),
    (_layer("self_attn.q_proj.bias", ("heads",), "zeros"), _qkv_bias),
    (_layer("self_attn.k_proj.weight", ("kv_heads", "embed"), "normal"), _always),
    (_layer("self_attn.k_proj.bias", ("kv_heads",), "zeros"), _qkv_bias),
    (_layer("self_attn.v_proj.weight", ("kv_heads", "embed"), "normal"), _always),
    (_layer("self_attn.v_proj.bias", ("kv_heads",), "zeros"), _qkv_bias),
    (_layer("self_attn.o_proj.weight", ("embed", "heads"), "normal"), _always),
    (_layer("self_attn.o_proj.bias", ("embed",), "zeros"), _attention_bias),
    (_layer("post_attention_layernorm.weight", ("embed",), "ones"), _always),
    (_layer("mlp.gate_proj.weight", ("mlp", "embed"), "normal"), _always),
    (_layer("mlp.gate_proj.bias", ("mlp",), "zeros"), _mlp_bias),
    (_layer("mlp.up_proj.weight", ("mlp", "embed"), "normal"), _always),
    (_layer("mlp.up_proj.bias", ("mlp",), "zeros"), _mlp_bias),
    (_layer("mlp.down_proj.weight", ("embed", "mlp"), "normal"), _always),
    (_layer("mlp.down_proj.bias", ("embed",), "zeros"), _mlp_bias),
    (Parameter(("norm", "weight"), "model.norm.weight", ("embed",), "ones"), _always),
    (Parameter(("lm_head", "weight"), "lm_head.weight", ("vocab", "embed"), "normal"), _untied),
    # Last, because a row's index determines its random key for initialisation.
    (_layer("self_attn.q_norm.weight", ("head",), "ones"), _qk_norm),
    (_layer("self_attn.k_norm.weight", ("head",), "ones"), _qk_norm),
)

_INITIALIZERS = {
    "normal": lambda key, shape, dtype, scale: (scale * jax.random.normal(key, shape, jnp.float32)).astype(dtype),
    "ones": lambda key, shape, dtype, scale: jnp.ones(shape, dtype),
    "zeros": lambda key, shape, dtype, scale: jnp.zeros(shape, dtype),
}


def parameters(config: LlamaConfig) -> list[Parameter]:
    """The rows that this configuration has, in the order of the forward pass."""
    return [row for row, exists in _TABLE if exists(config)]


def build_params(config: LlamaConfig, leaf: Callable[[Parameter], object]) -> Params:
    """Builds a Params-shaped tree whose leaves are `leaf(parameter)`."""
    tree: Params = {}
    for parameter in parameters(config):
        node = tree
        for key in parameter.path[:-1]:
            node = node.setdefault(key, {})
        node[parameter.path[-1]] = leaf(parameter)
    return tree


def iterate_params(params: Params, config: LlamaConfig) -> Iterator[tuple[Parameter, jax.Array]]:
    """Yields each row with its leaf; raises a KeyError that names a missing leaf's key."""
    for parameter in parameters(config):
        node = params
        for key in parameter.path:
            node = node[key]
        yield parameter, node


def abstract_params(config: LlamaConfig, dtype=jnp.float32) -> Params:
    """Params of `jax.ShapeDtypeStruct`s: nothing is allocated."""
    return build_params(config, lambda row: jax.ShapeDtypeStruct(row.stacked_shape(config), dtype))


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def init_params(config: LlamaConfig, key: jax.Array, dtype=jnp.float32) -> Params:
    """Makes random Params: matrices normal with standard deviation `initializer_range`, norms one, biases zero.

    Each leaf's random key is derived from the index of its row, so values do not depend on which other rows exist.
    """
    order = {row.path: index for index, (row, _) in enumerate(_TABLE)}

    def leaf(row: Parameter) -> jax.Array:
        initializer = _INITIALIZERS[row.initializer]
        row_key = jax.random.fold_in(key, order[row.path])
        return initializer(row_key, row.stacked_shape(config), dtype, config.initializer_range)

    return build_params(config, leaf)


def count_parameters(config: LlamaConfig) -> int:
    """Returns the number of parameters; a tied embedding counts once."""
    leaves = jax.tree.leaves(abstract_params(config))
    return sum(leaf.size for leaf in leaves)


def count_inner_parameters(config: LlamaConfig) -> int:
    """Returns the number of parameters without embedding and head."""
    tables = 1 if config.tie_word_embeddings else 2
    return count_parameters(config) - tables * config.vocab_size * config.hidden_size
