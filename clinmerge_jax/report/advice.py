"""Rules of thumb for the choice of a merge method, from what the models have in common."""

import statistics

from clinmerge_jax.merging.inspection.lineage import Lineage
from clinmerge_jax.merging.inspection.measures import FROM_BASE, PARENTS, Measures
from clinmerge_jax.merging.methods import COLLINEAR_COSINE


def normal_top_share(top: float) -> float:
    """The share of a normal distribution's squares that its top entries hold, for comparison.

    Args:
      top: percentage of the entries, above 0 and up to 100.
    """
    share = top / 100
    if share >= 1:
        return 1.0
    normal = statistics.NormalDist()
    z = -normal.inv_cdf(share / 2)  # not of 1 - share / 2, which rounds to 1 for the smallest shares
    return share + 2 * z * normal.pdf(z)


def advice(found: Lineage, all_tensors: Measures, top: float) -> list[str]:
    """Rules of thumb about the method, each with the number behind it.

    Args:
      found: the verdict on the lineage; its figures are those of the layers' matrices.
      all_tensors: the figures of all tensors that were compared.
      top: the percentage of entries that `top_share` refers to.
    """
    matrices, parents = found.matrices, found.verdict(PARENTS)
    if parents != "one family":
        return [
            f"Do not expect a merge to work: the parents are {parents} (median cosine {found.medians[PARENTS]:.4f});"
            " look for a clinical and an instruct model of one base."
        ]
    if all_tensors.pairs[PARENTS].totals.difference_squared == 0.0:
        return ["There is nothing to merge: the parents are equal in every entry that was compared."]
    lines = [_on_slerp(all_tensors)]
    related = found.has_base and all(found.verdict(pair) == "one family" for pair in FROM_BASE)
    if related and matrices.change_cosine is not None:
        lines.append(_on_sums(matrices.change_cosine))
        lines.append(_on_signs(matrices.sign_agreement))
        changes = [("clinical's", matrices.pairs[FROM_BASE[0]]), ("instruct's", matrices.pairs[FROM_BASE[1]])]
    else:
        if not found.has_base:
            lines.append("Task arithmetic, ties, dare and della count changes from a base: none was given.")
        elif not related:
            doubt = "" if any(found.verdict(pair) == "unrelated" for pair in FROM_BASE) else "perhaps "
            lines.append(
                f"Task arithmetic, ties, dare and della would count changes from a base that is {doubt}no ancestor."
            )
        changes = [("the", matrices.pairs[PARENTS])]
    for whose, one in changes:
        if one.top_share is not None:
            lines.append(_on_sparsity(whose, one.top_share, top))
    return lines


def _on_slerp(measures: Measures) -> str:
    counted = f"{measures.collinear} of {measures.tensors} tensors have a cosine beyond {COLLINEAR_COSINE}"
    if measures.collinear == measures.tensors:
        return f"slerp and linear give the same result: {counted}."
    if 2 * measures.collinear >= measures.tensors:
        return f"slerp and linear differ in the other tensors only: {counted}."
    return f"slerp keeps the norm where linear shrinks it, and the two can differ: only {counted}."


def _on_sums(cosine: float) -> str:
    said = f"the two changes have cosine {cosine:.4f}"
    if abs(cosine) < 0.1:
        return f"Task arithmetic adds both changes without much interference: {said}, nearly orthogonal."
    if cosine >= 0.5:
        return f"Task arithmetic with full weights would count what is shared twice: {said}; let the weights sum to 1."
    if cosine > 0:
        return f"The changes overlap in part: {said}; weights that sum to 1 are the safer start for task arithmetic."
    return f"The changes oppose each other: {said}; a sum cancels, so compare ties or sce with it."


def _on_signs(agreement: float | None) -> str:
    if agreement is None:
        return "ties and sce have no conflicts of sign to settle: both parents changed no entry in common."
    said = f"where both parents changed an entry, {agreement:.1%} of the signs agree"
    if agreement < 0.45:
        return f"ties and sce are worth trying: {said}, fewer than chance, so plain sums cancel much."
    if agreement <= 0.55:
        return (
            f"ties and sce, which settle conflicts of sign, have much to settle: {said}, much as chance would have it."
        )
    if agreement < 0.75:
        return f"ties and sce have some conflicts of sign to settle: {said}."
    return f"ties and sce have few conflicts of sign to settle: {said}."


def _on_sparsity(whose: str, share: float, top: float) -> str:
    said = f"the top {top:g} % of entries hold {share:.1%} of {whose} squared change"
    said += f" (a normal distribution: {normal_top_share(top):.1%})"
    density = f"{top / 100:g}"
    if share >= 0.5:
        # ties keeps the largest changes; breadcrumbs drops the very largest.
        return f"Trimming to the largest changes (ties at a density of {density}) would keep most: {said}."
    return f"ties and breadcrumbs need a higher density than {density} to keep most of it: {said}."
