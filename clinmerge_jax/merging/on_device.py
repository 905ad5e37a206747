"""The on-device engine: merges Params that lie cut over a mesh, as one jitted map over the tree.

Coefficients are traced, so another t compiles nothing and costs one pass over memory: each leaf is one fused
elementwise kernel without temporaries or communication. Statistics do not depend on t and are taken once, row block by
row block, each block a call of its own (in a loop within one program a CPU would use one thread). Both halves give the
streaming engine's bits, whatever the mesh.
N sources, L layers, R rows, C columns.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding

from clinmerge_jax.llama.parameters import Parameter, Params, build_params, iterate_params
from clinmerge_jax.merging import exact
from clinmerge_jax.merging.diagnostics import TensorDifference
from clinmerge_jax.merging.methods import METHODS, PairTotals, WeightedSum
from clinmerge_jax.merging.plan import PlannedTensor, pair_totals, plan_tensor, result_dtype
from clinmerge_jax.merging.recipe import Recipe
from clinmerge_jax.parallel.layout import Layout

_BLOCK_BYTES = 32 << 20  # of one source in float32; the statistics' temporaries are a few times as much


class OnDeviceMerge:
    """Merges a fixed set of sources by one recipe after another.

    Peak device memory: the sources, one result, and while statistics are taken a few blocks of rows.

    Args:
      layout: how every source lies.
      sources: Params of equal shapes, in the order of the recipes' sources.
      origins: what messages call each source.
    """

    def __init__(self, layout: Layout, sources: Sequence[Params], origins: Sequence[str]):
        self.layout = layout
        self.sources = tuple(sources)
        self.origins = tuple(origins)
        self._totals: dict[str, list[PairTotals]] | None = None

    def merge(self, recipe: Recipe, *, into: Params | None = None) -> Params:
        """The merged Params, cut as the sources are; does not wait for the devices.

        Args:
          recipe: what to do with the sources.
          into: an earlier result of the same dtype that is no longer needed: its memory is taken over, so that a
            sweep allocates nothing after its first point.

        Raises:
          BadInput: a source holds values that are not finite and the method looks at them, or the recipe has no
            coefficients for a tensor.
        """
        plan = self._plan(recipe)
        split = exact.split_coefficients([self._coefficients(tensor) for tensor in plan.values()])
        factors = dict(zip(plan, split))

        def leaf(row: Parameter) -> np.ndarray:
            coefficients_LN3 = np.stack([factors[name] for name in row.names(self.layout.config)])
            if not row.stacked:
                return coefficients_LN3[0]
            # Layers last, then an axis for each of the tensor's: they spread over a whole stacked leaf.
            return np.moveaxis(coefficients_LN3, 0, -1).reshape(*split.shape[1:], -1, *(1,) * len(row.axes))

        dtypes = tuple(
            result_dtype(recipe, np.dtype(array.dtype))
            for _, array in iterate_params(self.sources[0], self.layout.config)
        )
        apply = apply_program(self.layout, recipe.method, dtypes)
        return apply(self.sources, build_params(self.layout.config, leaf), into)

    def totals(self) -> dict[str, list[PairTotals]]:
        """What the statistics of every tensor come to; taken at the first call.

        Raises:
          BadInput: a source holds values that are not finite.
        """
        if self._totals is None:
            self._totals = self._measure()
        return self._totals

    def differences(self, recipe: Recipe) -> dict[str, TensorDifference]:
        """By tensor, how the first two sources differ and the recipe's coefficients.

        Raises:
          BadInput: as `totals`; or the result may not fit float16.
        """
        return {
            name: tensor.difference(self.totals()[name], self._coefficients(tensor))
            for name, tensor in self._plan(recipe).items()
        }

    def _coefficients(self, tensor: PlannedTensor) -> list[float]:
        needed = METHODS[tensor.method].needs_totals
        return tensor.coefficients(self.totals()[tensor.name] if needed else [])

    def _plan(self, recipe: Recipe) -> dict[str, PlannedTensor]:
        config = self.layout.config
        return {
            name: plan_tensor(recipe, name, row.shape(config), leaf.dtype, config.num_hidden_layers, self.origins)
            for row, leaf in iterate_params(self.sources[0], config)
            for name in row.names(config)
        }

    def _measure(self) -> dict[str, list[PairTotals]]:
        totals = {}
        for aligned in zip(*(iterate_params(tree, self.layout.config) for tree in self.sources)):
            row, leaves = aligned[0][0], [leaf for _, leaf in aligned]
            names = row.names(self.layout.config)
            by_layer = (np.split(pair, len(names)) for pair in row_statistics(row, self.layout, leaves))
            for name, *sums in zip(names, *by_layer):
                totals[name] = pair_totals(name, self.origins, [[rows] for rows in sums])
        return totals


@functools.lru_cache(maxsize=64)
def apply_program(layout: Layout, method: str, dtypes: tuple[np.dtype, ...]) -> Callable:
    """The jitted second half: (sources, coefficients, Params whose memory is taken over or None) -> merged Params.

    Args:
      layout: of sources and result.
      method: a name in `METHODS`.
      dtypes: of the result's leaves, in the order of the parameter table.
    """

    def apply(sources: Sequence[Params], coefficients: Params, into: Params | None) -> Params:
        del into  # donated: only its memory counts
        rows = [iterate_params(tree, layout.config) for tree in (*sources, coefficients)]
        merged = {}
        for dtype, aligned in zip(dtypes, zip(*rows)):
            *leaves, factors = (leaf for _, leaf in aligned)
            merged[aligned[0][0].path] = METHODS[method].apply(leaves, factors, dtype)
        return build_params(layout.config, lambda row: merged[row.path])

    return jax.jit(apply, out_shardings=layout.shardings(), donate_argnums=2, keep_unused=True)


def row_statistics(row: Parameter, layout: Layout, leaves: Sequence[jax.Array]) -> list[np.ndarray]:
    """The statistics of one leaf of every source: N - 1 arrays [L R, 3], the same on every process.

    Every device goes through the rows of its own shards, a block at a time.
    """
    sharding = layout.sharding(row)
    *outer, columns = sharding.shard_shape(leaves[0].shape)
    rows = math.prod(outer)
    size = max(1, min(rows, _BLOCK_BYTES // (4 * columns)))
    starts = [min(start, rows - size) for start in range(0, rows, size)]  # the last block covers some rows twice
    blocks = [block_statistics(leaves, np.int32(start), size=size, sharding=sharding) for start in starts]
    parts = blocks[0][0].shape[0] // size
    results = []
    for per_pair in zip(*blocks):
        sums = np.empty((parts, rows, 3), np.float32)
        for start, block in zip(starts, per_pair):
            sums[:, start : start + size] = np.asarray(block).reshape(parts, size, 3)
        # Each part holds its rows of all layers; a layer's rows belong together.
        layers = leaves[0].shape[0] if row.stacked else 1
        results.append(sums.reshape(parts, layers, -1, 3).swapaxes(0, 1).reshape(-1, 3))
    return results


@functools.partial(jax.jit, static_argnames=("size", "sharding"))
def block_statistics(
    leaves: Sequence[jax.Array], start: np.int32, *, size: int, sharding: NamedSharding
) -> list[jax.Array]:
    """The statistics of `size` rows of every device's shard, from one row on: N - 1 arrays [parts size, 3].

    Args:
      leaves: one of each source.
      start: the row, counted within a shard flattened to a matrix; traced.
      size: how many rows; static.
      sharding: of the leaves; static.
    """
    *outer_axes, column_axis = sharding.spec
    row_axis = next((axis for axis in outer_axes if axis is not None), None)
    parts = sharding.mesh.shape[column_axis] if column_axis is not None else 1
    whole_tiles = leaves[0].shape[-1] // parts % exact.TILE == 0

    def gather(x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(x, column_axis, axis=1, tiled=True) if parts > 1 else x

    def local(start: jax.Array, *shards: jax.Array) -> list[jax.Array]:
        matrices = (shard.reshape(-1, shard.shape[-1]) for shard in shards)
        pieces = [jax.lax.dynamic_slice_in_dim(matrix, start, size) for matrix in matrices]
        if whole_tiles:
            return WeightedSum.statistics(pieces, gather)
        return WeightedSum.statistics([gather(piece) for piece in pieces])  # a tile lies on two devices

    mapped = jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(jax.P(), *[sharding.spec] * len(leaves)),
        out_specs=jax.P(row_axis, None),
        check_vma=False,  # sums are the same on all devices that share the rows: the checker cannot see it
    )
    whole = NamedSharding(sharding.mesh, jax.P())
    return [jax.lax.with_sharding_constraint(sums, whole) for sums in mapped(start, *leaves)]
