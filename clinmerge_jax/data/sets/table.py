"""The table of data sets, with one line for each family."""

from clinmerge_jax.data.sets import (
    aci_bench,
    gsm8k,
    hospital_course,
    mts_dialog,
    multiple_choice,
    pubmedqa,
    question_summaries,
    radiology,
)
from clinmerge_jax.data.sets.data_set import DataSet

SETS: dict[str, DataSet] = {
    data_set.name: data_set
    for family in (
        mts_dialog,
        aci_bench,
        radiology,
        hospital_course,
        question_summaries,
        multiple_choice,
        pubmedqa,
        gsm8k,
    )
    for data_set in family.SETS
}
