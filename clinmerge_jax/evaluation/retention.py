"""What a merge retains: held-out loss of the parents and the merged model on several sets of documents."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from clinmerge_jax.checkpoint.folder import Checkpoint
from clinmerge_jax.checkpoint.parameters.params import llama_config, load_params
from clinmerge_jax.data.documents import Document, Encoded, encode
from clinmerge_jax.data.miniature import corpus
from clinmerge_jax.data.reading import read_documents
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.loss import document_losses, truncate
from clinmerge_jax.miniature.facts import TEST
from clinmerge_jax.parallel.layout import make_layout
from clinmerge_jax.parallel.mesh import MeshShape
from clinmerge_jax.statistics.documents import bootstrap
from clinmerge_jax.statistics.interval import Interval

_MINIATURE_DOCUMENTS = 200  # of each set
_MINIATURE_SEED = 1


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A named set of documents, and the parent that is expected to be good at it ("" for none)."""

    name: str
    documents: Sequence[Document]
    specialist: str = ""

    @property
    def sha256(self) -> str:
        """A digest of the documents as given, before any chat template."""
        content = [document.content for document in self.documents]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def held_out_sets(spec: str, miniature: bool) -> list[HeldOut]:
    """Returns the held-out sets that the config field `evaluate` names.

    Args:
      spec: "auto" (the miniature's own text for miniature parents, else none), "" for none, "miniature",
        or `NAME=FILE.jsonl` separated by commas.
      miniature: whether every parent is a miniature.

    Raises:
      BadInput: the spec or a file is malformed.
    """
    if spec == "auto":
        if not miniature:
            logging.info(
                "evaluate=auto: held-out text is included only for the miniature; name yours with NAME=FILE.jsonl"
            )
        spec = "miniature" if miniature else ""
    if not spec:
        return []
    if spec == "miniature":
        return [
            HeldOut("clinical notes", corpus("clinical", _MINIATURE_SEED, _MINIATURE_DOCUMENTS, TEST), "clinical"),
            HeldOut(
                "everyday instructions", corpus("instruct", _MINIATURE_SEED, _MINIATURE_DOCUMENTS, TEST), "instruct"
            ),
        ]
    sets = []
    for part in spec.split(","):
        name, equals, path = part.partition("=")
        if not equals or not name.strip() or not path.strip():
            raise BadInput(f"config.evaluate: {part!r} is not NAME=FILE.jsonl; separate several with commas")
        if name.strip() in (held_out.name for held_out in sets):
            raise BadInput(f"config.evaluate: the name {name.strip()!r} is given twice; rename one of the two")
        sets.append(HeldOut(name.strip(), read_documents(path.strip(), "config.evaluate")))
    return sets


@dataclasses.dataclass(frozen=True)
class EncodedSet:
    """A HeldOut as tokens, truncated to the models' context length."""

    name: str
    specialist: str
    documents: Sequence[Encoded]

    @property
    def counts(self) -> np.ndarray:
        """The number of scored tokens of each document."""
        return np.array([item.targets.sum() for item in self.documents])


def encode_sets(sets: Sequence[HeldOut], tokenizer, context: int) -> list[EncodedSet]:
    """Tokenizes the sets, and logs how many documents were truncated to the context length.

    Raises:
      BadInput: a document has no scored token within the context length.
    """
    encoded = []
    for held_out in sets:
        documents, cut = truncate([encode(document, tokenizer) for document in held_out.documents], context)
        if cut:
            logging.warning("%s: %d of %d documents cut to %d tokens", held_out.name, cut, len(documents), context)
        result = EncodedSet(held_out.name, held_out.specialist, documents)
        empty = np.flatnonzero(result.counts == 0)
        if empty.size:
            name = held_out.documents[empty[0]].name
            raise BadInput(f"{name}: has no token to score within {context} tokens; remove or shorten it")
        encoded.append(result)
    return encoded


@dataclasses.dataclass(frozen=True)
class Retention:
    """Summed losses of every model on every document of every set."""

    sets: Sequence[EncodedSet]
    totals: Mapping[str, Sequence[np.ndarray]]  # by model, one array [D documents] per set

    def loss(self, model: str, index: int) -> Interval:
        """A model's loss on a set in nats per token, with its interval over documents."""
        totals_1D = self.totals[model][index][None]
        return bootstrap(totals_1D, self.sets[index].counts, lambda means: means[..., 0])

    def kept(self, index: int) -> Interval | None:
        """The share of the specialist's gain over base that the merged model keeps.

        None if there is no specialist or no base (or another parent is the same model), or if the interval of the gain
        reaches 0.
        """
        held_out = self.sets[index]
        names = ("base", "merged", held_out.specialist)
        if not set(names) <= set(self.totals):
            return None
        totals_MD = np.stack([self.totals[name][index] for name in names])
        gain = bootstrap(totals_MD, held_out.counts, lambda means: means[..., 0] - means[..., 2])
        if gain.low <= 0:  # no clear gain, so there is nothing to keep
            return None
        return bootstrap(
            totals_MD, held_out.counts, lambda means: (means[..., 0] - means[..., 1]) / (means[..., 0] - means[..., 2])
        )

    def json_lines(self, provenance: Mapping[str, Any]) -> str:
        """One JSON line per model and set."""
        lines = []
        for model in self.totals:
            for index, held_out in enumerate(self.sets):
                interval = dataclasses.asdict(self.loss(model, index))
                lines.append(
                    json.dumps(
                        {
                            "model": model,
                            "task": held_out.name,
                            "metric": "loss in nats per token",
                            **interval,
                            "documents": len(held_out.documents),
                            "tokens": int(held_out.counts.sum()),
                            "per_document": [round(float(x), 4) for x in self.totals[model][index]],
                            "provenance": provenance,
                        }
                    )
                )
        return "\n".join(lines) + "\n"


def measure(
    models: Mapping[str, Checkpoint],
    sets: Sequence[EncodedSet],
    mesh_shape: MeshShape,
    progress: Callable[[int], None],
) -> Retention:
    """Measures the losses of every model on every set, loading one model at a time.

    Args:
      models: checkpoints by the name that the table shows.
      sets: tokenized with a vocabulary that all models share.
      mesh_shape: how the models are sharded; axes at 0 are chosen for each model.
      progress: called with the number of documents finished since the last call.
    """
    totals = {}
    for name, checkpoint in models.items():
        layout = make_layout(llama_config(checkpoint), mesh_shape)
        _, params = load_params(checkpoint, jnp.float32, mesh=layout.mesh)
        totals[name] = [document_losses(params, layout, held_out.documents, progress) for held_out in sets]
        del params  # before the next model is loaded
    return Retention(sets, totals)
