"""Merge methods as pure functions on arrays, independent of files and meshes; one small file per family."""

from clinmerge_jax.merging.methods.arcee_fusion import ARCEE_FUSION
from clinmerge_jax.merging.methods.breadcrumbs import BREADCRUMBS, BREADCRUMBS_TIES
from clinmerge_jax.merging.methods.common import (
    COLLINEAR_COSINE,
    DIFFERENCES,
    Base,
    Coefficients,
    Method,
    PairTotals,
    Reduction,
    TensorSpec,
)
from clinmerge_jax.merging.methods.dare import DARE_LINEAR, DARE_TIES
from clinmerge_jax.merging.methods.della import DELLA, DELLA_LINEAR
from clinmerge_jax.merging.methods.karcher import KARCHER
from clinmerge_jax.merging.methods.linear import LINEAR
from clinmerge_jax.merging.methods.model_stock import MODEL_STOCK
from clinmerge_jax.merging.methods.multislerp import MULTISLERP
from clinmerge_jax.merging.methods.nearswap import NEARSWAP
from clinmerge_jax.merging.methods.nuslerp import NUSLERP
from clinmerge_jax.merging.methods.passthrough import PASSTHROUGH
from clinmerge_jax.merging.methods.ram import RAM, RAMPLUS_TL
from clinmerge_jax.merging.methods.sce import SCE
from clinmerge_jax.merging.methods.slerp import SLERP
from clinmerge_jax.merging.methods.task_arithmetic import TASK_ARITHMETIC
from clinmerge_jax.merging.methods.ties import TIES

__all__ = [
    "COLLINEAR_COSINE",
    "DIFFERENCES",
    "METHODS",
    "Base",
    "Coefficients",
    "Method",
    "PairTotals",
    "TensorSpec",
    "Reduction",
]

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        LINEAR,
        SLERP,
        NUSLERP,
        MULTISLERP,
        KARCHER,
        TASK_ARITHMETIC,
        TIES,
        DARE_LINEAR,
        DARE_TIES,
        DELLA,
        DELLA_LINEAR,
        BREADCRUMBS,
        BREADCRUMBS_TIES,
        SCE,
        MODEL_STOCK,
        NEARSWAP,
        RAM,
        RAMPLUS_TL,
        ARCEE_FUSION,
        PASSTHROUGH,
    )
}
