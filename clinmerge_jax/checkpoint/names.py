"""Maps stored tensor names to the usual ones: wrappers and base models store the tensors under other prefixes.

The package uses the names of transformers' causal language models (`model.layers.0...`, `lm_head.weight`). A checkpoint
may have `language_model.model.layers.0...` (saved from a multimodal wrapper) or `layers.0...` (saved from the base
model). Such tensors are read under the usual names, and results are written with the stored names.
"""

import dataclasses
import re
from collections.abc import Collection

_BASE, _HEAD = "model.", "lm_head.weight"
_LAYERS = re.compile(r"^(.*?)layers\.\d+\.")


@dataclasses.dataclass(frozen=True)
class Naming:
    """How a checkpoint spells the names of its tensors.

    Attributes:
      base: the prefix in place of the usual `model.`.
      head: the prefix before `lm_head.weight`.
    """

    base: str = _BASE
    head: str = ""

    def usual(self, stored: str) -> str:
        """The usual name of a stored tensor."""
        if stored == self.head + _HEAD:
            return _HEAD
        return _BASE + stored.removeprefix(self.base) if stored.startswith(self.base) else stored

    def stored(self, usual: str) -> str:
        """The stored name of a tensor; the inverse of `usual`."""
        if usual == _HEAD:
            return self.head + _HEAD
        return self.base + usual.removeprefix(_BASE) if usual.startswith(_BASE) else usual


USUAL = Naming()


def naming_of(names: Collection[str]) -> Naming:
    """Recognises how these tensors are named; USUAL if that is unclear.

    A prefix is recognised if all layers share it, the embedding and the final norm have it, and every other tensor has
    it too, except at most one head.

    Args:
      names: the stored names of all tensors.
    """
    prefixes = {match[1] for match in map(_LAYERS.match, names) if match}
    if len(prefixes) != 1 or prefixes == {_BASE}:
        return USUAL
    (base,) = prefixes
    outside = [name for name in names if not name.startswith(base) or (not base and name.endswith(_HEAD))]
    if not {base + "embed_tokens.weight", base + "norm.weight"} <= set(names) or len(outside) > 1:
        return USUAL
    if any(not name.endswith(_HEAD) for name in outside):
        return USUAL
    # A wrapper's own prefix also stands before the head: language_model.model.layers, language_model.lm_head.
    wrapper = base.removesuffix(_BASE) if base == _BASE or base.endswith("." + _BASE) else ""
    return Naming(base, outside[0].removesuffix(_HEAD) if outside else wrapper)
