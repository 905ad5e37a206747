"""The on-device engine: merges Params that lie cut over a mesh, as one jitted map over the tree.

Coefficients are traced, so another t compiles nothing and costs one pass over memory: each leaf is one fused
elementwise kernel without temporaries or communication. Statistics do not depend on t and are taken once, row block by
row block. Both halves give the streaming engine's bits, whatever the mesh.
N sources, L layers, R rows, C columns.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

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
        for row, pairs in iterate_params(statistics_program(self.layout)(self.sources), self.layout.config):
            names = row.names(self.layout.config)
            by_layer = (np.split(np.asarray(pair), len(names)) for pair in pairs)
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


@functools.lru_cache(maxsize=16)
def statistics_program(layout: Layout) -> Callable:
    """The jitted first half: sources -> Params-shaped tree of N - 1 arrays [L R, 3], whole on every process."""

    def statistics(sources: Sequence[Params]) -> Params:
        trees = [{row.path: leaf for row, leaf in iterate_params(tree, layout.config)} for tree in sources]
        return build_params(layout.config, lambda row: _statistics(row, layout, [tree[row.path] for tree in trees]))

    return jax.jit(statistics, out_shardings=layout.named())


def _statistics(row: Parameter, layout: Layout, leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """The statistics of one leaf, each device on its own shards: N - 1 arrays [L R, 3]."""
    *row_axes, column_axis = layout.sharding(row).spec
    parts = layout.parts(row.axes[-1])
    whole_tiles = leaves[0].shape[-1] // parts % exact.TILE == 0

    def gather(x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(x, column_axis, axis=1, tiled=True) if parts > 1 else x

    def sums(pieces: Sequence[jax.Array]) -> list[jax.Array]:
        if whole_tiles:
            return WeightedSum.statistics(pieces, gather)
        return WeightedSum.statistics([gather(piece) for piece in pieces])  # a tile lies on two devices

    def local(*shards: jax.Array) -> list[jax.Array]:
        matrices = [shard.reshape(-1, shard.shape[-1]) for shard in shards]
        return [one.reshape(*shards[0].shape[:-1], 3) for one in _by_blocks(sums, matrices)]

    # The sums are the same on all devices that share the rows, which the checker cannot see through a gather.
    mapped = jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=layout.sharding(row).spec,
        out_specs=jax.P(*row_axes, None),
        check_vma=False,
    )
    return [one.reshape(-1, 3) for one in mapped(*leaves)]


def _by_blocks(function: Callable, matrices: Sequence[jax.Array]) -> list[jax.Array]:
    """Applies a function of rows to blocks of them, one after the other."""
    rows, columns = matrices[0].shape
    size = max(1, min(rows, _BLOCK_BYTES // (4 * columns)))
    if size == rows:
        return function(matrices)
    shapes = jax.eval_shape(function, [matrix[:size] for matrix in matrices])

    def step(index: jax.Array, results: list[jax.Array]) -> list[jax.Array]:
        start = jnp.minimum(index * size, rows - size)  # the last block covers some rows twice
        pieces = [jax.lax.dynamic_slice_in_dim(matrix, start, size) for matrix in matrices]
        return [
            jax.lax.dynamic_update_slice_in_dim(result, sums, start, 0)
            for result, sums in zip(results, function(pieces))
        ]

    return jax.lax.fori_loop(
        0, -(-rows // size), step, [jnp.zeros((rows, *shape.shape[1:]), shape.dtype) for shape in shapes]
    )
