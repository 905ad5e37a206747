"""The on-device engine: merges Params that are sharded over a mesh, as one jitted map over the tree.

Coefficients are traced, so another t compiles nothing and costs one pass over memory: each leaf is one fused
elementwise kernel without temporaries or communication. Statistics do not depend on t and are computed once, with one
call per block of rows (a loop within one program would run on a single thread on CPUs). On any mesh, statistics and
result have the same bits as in the streaming engine.

N sources, L layers, R rows, C columns.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.parameters import Parameter, Params, build_params, iterate_params, parameters
from clinmerge_jax.merging import exact
from clinmerge_jax.merging.diagnostics import TensorDifference
from clinmerge_jax.merging.engines.counting import count_on_device
from clinmerge_jax.merging.methods import DIFFERENCES, METHODS, Coefficients, Method, Reduction
from clinmerge_jax.merging.methods.order import ranks
from clinmerge_jax.merging.plan import Input, PlannedTensor, overflow, plan_tensor, result_dtype
from clinmerge_jax.merging.recipes.recipe import Recipe
from clinmerge_jax.merging.recipes.schedule import depth_of, layer_of
from clinmerge_jax.parallel.layout import Layout

_BLOCK_BYTES = 32 << 20  # of one source in float32; temporaries of the statistics are a few times larger


class OnDeviceMerge:
    """Merges a fixed set of sources by one recipe after another.

    Peak device memory: the sources, one result, and a few blocks of rows while statistics are computed.

    Args:
      layout: the layout of every source.
      sources: Params of equal shapes, in the order of the recipes' `models`.
      origins: the name of each source in messages.
    """

    def __init__(self, layout: Layout, sources: Sequence[Params], origins: Sequence[str]):
        self.layout = layout
        self.sources = tuple(sources)
        self.origins = tuple(origins)
        self._answers: dict[tuple, np.ndarray] = {}
        by_row = zip(*(iterate_params(tree, layout.config) for tree in self.sources))
        self._leaves = {
            name: (aligned[0][0], layer, [leaf for _, leaf in aligned])
            for aligned in by_row
            for layer, name in enumerate(aligned[0][0].names(layout.config))
        }

    def merge(self, recipe: Recipe, *, into: Params | None = None) -> Params:
        """The merged Params, sharded as the sources are; does not wait for the devices.

        Args:
          recipe: the merge, of whole models.
          into: an earlier result of the same dtype that is no longer needed; its memory is reused, so that a sweep
            allocates nothing after its first point.

        Raises:
          BadInput: a source holds values that are not finite and the method needs statistics, the recipe has no
            coefficients for a tensor, or the layers of a parameter need coefficients of different kinds.
        """
        plan = self._plan(recipe)
        order = self._order(recipe)
        coefficients = {name: self._coefficients(tensor, order) for name, tensor in plan.items()}

        def leaf(row: Parameter) -> dict[str, dict[str, np.ndarray]]:
            return _stack([coefficients[name] for name in row.names(self.layout.config)], row, self.layout)

        sources = tuple(self.sources[index] for index in order)
        dtypes = tuple(
            result_dtype(recipe, np.dtype(array.dtype))
            for _, array in iterate_params(self.sources[0], self.layout.config)
        )
        apply = apply_program(self.layout, METHODS[recipe.method], dtypes)
        return apply(sources, [leaf(row) for row in parameters(self.layout.config)], into)

    def differences(self, recipe: Recipe) -> dict[str, TensorDifference]:
        """How the first two inputs differ and the recipe's coefficients, by tensor.

        Raises:
          BadInput: a source holds values that are not finite.
        """
        order = self._order(recipe)
        return {
            name: tensor.difference(
                tensor.pair(self._answer(tensor, DIFFERENCES, order)), self._coefficients(tensor, order)
            )
            for name, tensor in self._plan(recipe).items()
        }

    def _order(self, recipe: Recipe) -> tuple[int, ...]:
        """Indices of the sources that the method takes, in its order."""
        (part,) = recipe.parts
        return tuple(recipe.models.index(source.model) for source in recipe.all_inputs(part))

    def _coefficients(self, tensor: PlannedTensor, order: tuple[int, ...]) -> Coefficients:
        host_half = tensor.reductions()
        try:
            reduction = next(host_half)
            tensor.pair(self._answer(tensor, DIFFERENCES, order))  # refuses values that are not finite
            while True:
                reduction = host_half.send(self._answer(tensor, reduction, order))
        except StopIteration as done:
            return done.value

    def _answer(self, tensor: PlannedTensor, reduction: Reduction, order: tuple[int, ...]) -> np.ndarray:
        """Answers one reduction of one tensor; reductions without arguments are computed once for all recipes."""
        method = tensor.method
        key = (tensor.name, reduction.reduce, order)
        if not reduction.args and key in self._answers:
            return self._answers[key]
        row, layer, leaves = self._leaves[tensor.name]
        ranked = None if reduction is DIFFERENCES else method.ranked
        answer = tensor_statistics(reduction, row, self.layout, [leaves[index] for index in order], layer, ranked)
        if not reduction.args:
            self._answers[key] = answer
        return answer

    def _plan(self, recipe: Recipe) -> dict[str, PlannedTensor]:
        config = self.layout.config
        (part,) = recipe.parts
        origins = dict(zip(recipe.models, self.origins))
        models = [source.model for source in recipe.all_inputs(part)]
        return {
            name: plan_tensor(
                recipe,
                part,
                name,
                row.shape(config),
                leaf.dtype,
                depth_of(layer_of(name), config.num_hidden_layers),
                [Input(model, name, origins[model]) for model in models],
            )
            for row, leaf in iterate_params(self.sources[0], config)
            for name in row.names(config)
        }


def refuse_overflow(merged: Params, layout: Layout) -> None:
    """Refuses a result with values that float16 cannot hold.

    Raises:
      BadInput: naming the parameter.
    """
    for row, leaf in iterate_params(merged, layout.config):
        if leaf.dtype == jnp.float16 and not _finite(leaf):
            raise overflow(row.name)


@jax.jit
def _finite(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf).all()


def _stack(coefficients: Sequence[Coefficients], row: Parameter, layout: Layout) -> dict[str, dict[str, np.ndarray]]:
    """The coefficients of one leaf: its layers' coefficients stacked, with rows padded as the leaf is."""
    kinds = {(tuple(one.args), tuple(one.row_args)) for one in coefficients}
    if len(kinds) > 1:
        raise BadInput(
            f"config.engine: {row.names(layout.config)[0]} and the same tensor of other layers have coefficients of"
            " different kinds, which mesh does not support; give streaming"
        )
    missing = layout.shape(row)[row.stacked] - row.shape(layout.config)[0] if len(row.axes) > 1 else 0

    def padded(rows: np.ndarray) -> np.ndarray:
        return np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1))

    args = {key: np.stack([one.args[key] for one in coefficients]) for key in coefficients[0].args}
    row_args = {key: np.stack([padded(one.row_args[key]) for one in coefficients]) for key in coefficients[0].row_args}
    if row.stacked:
        return {"args": args, "row_args": row_args}
    return jax.tree.map(lambda x: x[0], {"args": args, "row_args": row_args})


@functools.lru_cache(maxsize=64)
def apply_program(layout: Layout, method: Method, dtypes: tuple[np.dtype, ...]) -> Callable:
    """The jitted device half: (sources, coefficients by leaf, Params to overwrite or None) -> merged Params.

    Args:
      layout: of sources and result.
      method: the merge method.
      dtypes: of the result's leaves, in the order of the parameter table.
    """

    def tensor(dtype: np.dtype, pieces: Sequence[jax.Array], coefficients: Mapping[str, Mapping]) -> jax.Array:
        matrices = [piece.reshape(-1, piece.shape[-1]) for piece in pieces]
        matrices += [ranks(one) for one in method.ranked(matrices)]
        merged = method.apply(matrices, jnp.uint32(0), coefficients["args"], coefficients["row_args"], dtype)
        return merged.reshape(pieces[0].shape)

    def apply(sources: Sequence[Params], coefficients: Sequence, into: Params | None) -> Params:
        del into  # donated: only its memory is used
        rows = [iterate_params(tree, layout.config) for tree in sources]
        merged = {}
        for dtype, its_coefficients, aligned in zip(dtypes, coefficients, zip(*rows)):
            row, leaves = aligned[0][0], [leaf for _, leaf in aligned]
            one = functools.partial(tensor, dtype)
            merged[row.path] = (jax.vmap(one) if row.stacked else one)(leaves, its_coefficients)
        return build_params(layout.config, lambda row: merged[row.path])

    return jax.jit(apply, out_shardings=layout.shardings(), donate_argnums=2, keep_unused=True)


def tensor_statistics(
    reduction: Reduction,
    row: Parameter,
    layout: Layout,
    leaves: Sequence[jax.Array],
    layer: int = 0,
    ranked: Callable | None = None,
) -> np.ndarray:
    """Answers one reduction for one tensor, with the same answer on every process.

    Every device goes through the rows of its own shard, a block at a time.

    Args:
      reduction: the reduction.
      row: the parameter's row in the parameter table.
      layout: the layout of the leaves.
      leaves: one per source, in the order of the method's inputs.
      layer: the tensor's layer, where the leaves are stacked.
      ranked: `Method.ranked`, if the reduction is one of the method's own.
    """
    sharding = layout.sharding(row)
    *outer, columns = sharding.shard_shape(leaves[0].shape)[row.stacked :]
    rows = math.prod(outer)
    whole = math.prod(row.shape(layout.config)[:-1])  # without padded rows
    block = functools.partial(
        block_statistics,
        leaves,
        np.int32(layer),
        args=dict(reduction.args),
        reduce=reduction.reduce,
        ranked=ranked,
        tiled=reduction.tiled,
        bins=reduction.bins,
        whole=whole,
        stacked=row.stacked,
        sharding=sharding,
    )
    if reduction.row is not None:
        answer = np.asarray(block(np.int32(reduction.row % rows), np.int32(0), size=1))
        return answer[reduction.row // rows][None]
    size = max(1, min(rows, _BLOCK_BYTES // (4 * columns)))
    starts = [min(start, rows - size) for start in range(0, rows, size)]  # the last block covers some rows twice
    blocks = [block(np.int32(start), np.int32(index * size), size=size) for index, start in enumerate(starts)]
    if reduction.bins:
        return sum(np.asarray(one).astype(np.int64) for one in blocks)
    parts = blocks[0].shape[0] // size
    if reduction.column_scales:
        width, total = leaves[0].shape[-1], 0
        for index, (start, one) in enumerate(zip(starts, blocks)):
            fresh = np.asarray(one).reshape(parts, size, -1)[:, index * size - start :]  # padded rows are zero
            total = total + reduction.column_sums(fresh.reshape(-1, fresh.shape[-1]), width)
        return reduction.from_column_sums(total)
    answers = np.empty((parts, rows, blocks[0].shape[1]), blocks[0].dtype)
    for start, one in zip(starts, blocks):
        answers[:, start : start + size] = np.asarray(one).reshape(parts, size, -1)
    return answers.reshape(parts * rows, -1)[:whole]


@functools.partial(
    jax.jit, static_argnames=("reduce", "ranked", "tiled", "bins", "whole", "stacked", "size", "sharding")
)
def block_statistics(
    leaves: Sequence[jax.Array],
    layer: np.int32,
    start: np.int32,
    fresh: np.int32,
    *,
    args: Mapping[str, jax.Array],
    reduce: Callable,
    ranked: Callable | None,
    tiled: bool,
    bins: int,
    whole: int,
    stacked: bool,
    size: int,
    sharding: NamedSharding,
) -> jax.Array:
    """Applies `reduce` to `size` consecutive rows of every device's shard: [parts size, K], or counts [K, bins].

    Args:
      leaves: one per input.
      layer: the layer of a stacked leaf; traced.
      start: the first row, counted within a shard of one layer flattened to a matrix; traced.
      fresh: the first row whose codes are counted, as blocks may overlap; traced.
      args: arguments of `reduce`.
      reduce: a `Reduction.reduce`; static.
      ranked: gives the arrays whose ranks `reduce` takes (`Method.ranked`); static.
      tiled: `Reduction.tiled`; static.
      bins: `Reduction.bins`; static.
      whole: rows of the tensor without padding; static.
      stacked: whether the leaves' first axis is the layer; static.
      size: number of rows; static.
      sharding: of the leaves; static.
    """
    *outer_axes, column_axis = sharding.spec[stacked:]
    row_axis = next((axis for axis in outer_axes if axis is not None), None)
    parts = sharding.mesh.shape[column_axis] if column_axis is not None else 1
    whole_tiles = leaves[0].shape[-1] // parts % exact.TILE == 0

    def gather(x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(x, column_axis, axis=1, tiled=True) if parts > 1 else x

    def local(layer, start, fresh, args: Mapping[str, jax.Array], *shards: jax.Array) -> jax.Array:
        if stacked:
            shards = [jax.lax.dynamic_index_in_dim(shard, layer, keepdims=False) for shard in shards]
        matrices = [shard.reshape(-1, shard.shape[-1]) for shard in shards]
        shard_row = jax.lax.axis_index(row_axis) * matrices[0].shape[0] if row_axis is not None else 0
        first_row = start + shard_row
        pieces = [jax.lax.dynamic_slice_in_dim(matrix, start, size) for matrix in matrices]
        if tiled and whole_tiles:
            return reduce(pieces, first_row, args, gather)
        pieces = [gather(piece) for piece in pieces]  # whole rows
        if ranked is not None:
            pieces += [ranks(one) for one in ranked(pieces)]
        found = reduce(pieces, first_row, args)
        if not bins:
            return found
        rows = start + jnp.arange(size)
        counted = ((rows >= fresh) & (shard_row + rows < whole))[:, None]
        codes = [jnp.where(counted, one.astype(jnp.int32), bins) for one in found]
        counts = jnp.stack([count_on_device(one, bins, sharding.mesh.devices.flat[0].platform) for one in codes])
        return jax.lax.psum(counts, row_axis) if row_axis is not None else counts

    mapped = jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(jax.P(), jax.P(), jax.P(), jax.P(), *[sharding.spec] * len(leaves)),
        out_specs=jax.P(None if bins else row_axis, None),
        check_vma=False,  # answers are equal on all devices that share the rows, which the checker cannot infer
    )
    return jax.lax.with_sharding_constraint(
        mapped(layer, start, fresh, args, *leaves), NamedSharding(sharding.mesh, jax.P())
    )
