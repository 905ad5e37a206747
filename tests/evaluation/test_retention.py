"""What a merge keeps, from summed losses."""

import json

import numpy as np
import pytest

from clinmerge_jax.data.documents import Document, Encoded
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.retention import EncodedSet, HeldOut, Retention, held_out_sets
from clinmerge_jax.report.retention import retention_text


def _set(name, specialist="", documents=20):
    encoded = [Encoded(np.arange(11, dtype=np.int32), np.arange(11) > 0) for _ in range(documents)]
    return EncodedSet(name, specialist, encoded)


def _retention(names, losses, specialist="clinical"):
    noise = np.random.default_rng(0).uniform(-1, 1, 20)
    return Retention([_set("notes", specialist)], {n: [10 * x + noise] for n, x in zip(names, losses)})


def test_the_share_kept_is_that_of_the_specialists_gain_over_base():
    kept = _retention(["base", "clinical", "instruct", "merged"], [4.0, 2.0, 4.5, 2.5]).kept(0)
    # The same noise is in every model, so a paired interval has no width.
    assert (kept.estimate, kept.low, kept.high) == pytest.approx((0.75, 0.75, 0.75))


def test_without_base_or_specialist_nothing_is_said_of_shares():
    assert _retention(["clinical", "instruct", "merged"], [2.0, 4.5, 2.5]).kept(0) is None
    assert _retention(["base", "instruct", "merged"], [4.0, 2.0, 2.5]).kept(0) is None  # clinical is another parent
    retention = _retention(["base", "clinical", "instruct", "merged"], [4.0, 2.0, 4.5, 2.5], specialist="")
    assert retention.kept(0) is None and "share" not in retention_text(retention)


def test_losses_are_per_scored_token_with_an_interval_over_documents():
    loss = _retention(["base"], [4.0]).loss("base", 0)
    assert loss.estimate == pytest.approx(4.0, abs=0.05) and loss.low < loss.estimate < loss.high
    (row,) = [json.loads(line) for line in _retention(["base"], [4.0]).json_lines({"seed": 1}).splitlines()]
    assert row["tokens"] == 200 and row["provenance"] == {"seed": 1} and row["estimate"] == loss.estimate


def test_a_parent_that_gained_nothing_has_nothing_to_keep():
    assert _retention(["base", "clinical", "instruct", "merged"], [2.0, 2.0, 4.5, 2.5]).kept(0) is None


def test_the_digest_of_a_set_is_that_of_its_documents():
    one, two = Document("a:1", text="A note."), Document("b:7", text="A note.")
    assert HeldOut("x", [one]).sha256 == HeldOut("y", [two]).sha256 != HeldOut("x", [one, two]).sha256


def test_auto_means_the_miniatures_text_for_miniatures_only():
    names = [held_out.name for held_out in held_out_sets("auto", miniature=True)]
    assert names == ["clinical notes", "everyday instructions"]
    assert held_out_sets("auto", miniature=False) == held_out_sets("", miniature=True) == []


def test_files_are_named_sets(tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_text('{"text": "A note."}\n')
    (held_out,) = held_out_sets(f"my notes={path}", miniature=False)
    assert held_out.name == "my notes" and held_out.documents == [Document(f"{path}:1", text="A note.")]
    with pytest.raises(BadInput, match="given twice"):
        held_out_sets(f"a={path},a={path}", miniature=False)
