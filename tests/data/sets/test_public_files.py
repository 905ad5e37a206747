"""The files that the authors published, where they lie beside the repository."""

import pytest
import tensorflow_datasets as tfds

from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.data.sets.prepared import prepare
from clinmerge_jax.data.sets.table import SETS

COUNTS = {
    "mts_dialog": {"train": 1201, "valid": 100, "test1": 200, "test2": 200},
    "aci_bench": {"train": 67, "valid": 20, "test1": 40, "test2": 40, "test3": 40},
    "aci_bench_subjective": {"train": 67, "valid": 20, "test1": 40, "test2": 40, "test3": 40},
    "aci_bench_objective_exam": {"train": 64, "valid": 19, "test1": 40, "test2": 39, "test3": 39},
    "aci_bench_objective_results": {"train": 53, "valid": 18, "test1": 32, "test2": 29, "test3": 27},
    "aci_bench_assessment_and_plan": {"train": 67, "valid": 20, "test1": 40, "test2": 40, "test3": 40},
    "meqsum": {"train": 500, "test": 500},
    "mediqa_qs": {"train": 1000, "valid": 50, "test": 100},
    "medqa_4options": {"test": 1273},
    "medqa_5options": {"test": 1273},
    "medmcqa": {"test": 2816},
    "mmlu_anatomy": {"test": 135},
    "mmlu_clinical_knowledge": {"test": 265},
    "mmlu_college_biology": {"test": 144},
    "mmlu_college_medicine": {"test": 173},
    "mmlu_medical_genetics": {"test": 100},
    "mmlu_professional_medicine": {"test": 272},
    "pubmedqa": {"train": 500, "test": 500},
    "gsm8k": {"train": 7473, "test": 1319},
}


def test_every_public_set_has_its_published_rows(shared, tmp_path):
    data = shared / "data"
    if not data.is_dir():
        pytest.skip("the shared data lacks the folder data")
    source = Source(str(data), str(tmp_path))
    found = {}
    for name in COUNTS:
        summary = prepare(name, source)
        splits = tfds.builder_from_directory(summary.folder).info.splits
        found[name] = {split: splits[split].num_examples for split in SETS[name].splits if split in splits}
    assert found == COUNTS
    assert sum(found[name]["test"] for name in COUNTS if name.startswith("mmlu")) == 1089
