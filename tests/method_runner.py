"""Runs a merge method on arrays, both halves, without an engine; and what mergekit's rules come to in plain NumPy."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.merging.methods import METHODS, Base, TensorSpec, order


def run_method(
    name: str,
    arrays: Sequence[np.ndarray],
    each: Sequence[Mapping[str, float]] | Mapping[str, float] = (),
    seed: int = 0,
    tensor: str = "model.layers.0.mlp.up_proj.weight",
    from_base: bool | None = None,
    **values: float,
) -> np.ndarray:
    """Merges matrices [R, C].

    Args:
      name: of the method.
      arrays: the base first where changes are counted from one.
      each: parameters of every model, or the same of all of them; others keep their defaults.
      seed: of random masks.
      tensor: its name.
      from_base: whether the first array is the base; by default where the method needs one.
      **values: parameters of the method; `lambda_` for lambda.
    """
    method = METHODS[name]
    from_base = method.base is Base.REQUIRED if from_base is None else from_base
    models = len(arrays) - from_base
    given = [each] * models if isinstance(each, Mapping) else list(each) or [{}] * models
    values = {key.removesuffix("_"): value for key, value in values.items()}
    rows, columns = arrays[0].shape
    spec = TensorSpec(
        tensor,
        rows,
        columns,
        {**method.parameters, **values},
        [{**method.source_parameters, **one} for one in given],
        from_base,
        seed,
    )
    method.check(spec)
    pieces = [jnp.asarray(array) for array in arrays]
    pieces += [order.ranks(one) for one in method.ranked(pieces)]
    coefficients, _ = ask(method.reductions(spec), pieces)
    merged = method.apply(pieces, jnp.uint32(0), coefficients.args, coefficients.row_args, pieces[0].dtype)
    return np.asarray(merged)


def ask(questions: Generator, pieces: Sequence[jax.Array]) -> tuple[Any, int]:
    """What a generator of steps returns, and how many passes it asks for."""
    passes = 0
    try:
        step = next(questions)
        while True:
            passes += 1
            asked = pieces if step.row is None else [piece[step.row : step.row + 1] for piece in pieces]
            answer = step.reduce(asked, jnp.uint32(step.row or 0), step.args)
            if step.bins:
                counts = [np.bincount(np.asarray(codes).ravel(), minlength=step.bins) for codes in answer]
                answer = np.stack([one[: step.bins] for one in counts])
            if step.column_scales:
                columns = pieces[0].shape[-1]
                answer = step.from_column_sums(step.column_sums(np.asarray(answer), columns))
            step = questions.send(np.asarray(answer))
    except StopIteration as done:
        return done.value, passes


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Where the so many largest magnitudes are; of equal ones the first in row-major order."""
    mask = np.zeros(values.size, bool)
    mask[np.argsort(-np.abs(values), axis=None, kind="stable")[:count]] = True
    return mask.reshape(values.shape)


def agreeing_sum(changes: Sequence[np.ndarray], weights: Sequence[float], normalize: bool) -> np.ndarray:
    """The weighted sum of the changes that have the sign of the weighted sum, over the sum of their weights."""
    weighted = [weight * change for weight, change in zip(weights, changes)]
    sign = np.where(sum(weighted) >= 0, 1.0, -1.0)
    agree = [np.sign(one) == sign for one in weighted]
    total = sum(np.where(mask, one, 0.0) for mask, one in zip(agree, weighted))
    share = sum(weight * mask for weight, mask in zip(weights, agree))
    return total / np.where(share == 0.0, 1.0, share) if normalize else total


def siblings(count: int, shape: tuple[int, int] = (24, 300), seed: int = 0, dtype=np.float32) -> list[np.ndarray]:
    """A base and so many models near it, a third of whose entries are the base's."""
    generator = np.random.default_rng(seed)
    base = generator.standard_normal(shape)
    models = [base + 0.1 * generator.standard_normal(shape) * (generator.random(shape) < 2 / 3) for _ in range(count)]
    return [array.astype(dtype) for array in (base, *models)]
