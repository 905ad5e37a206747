"""What lies beside the weights of a result whose vocabularies were aligned."""

import json

import pytest
import transformers
from tokenizer_builders import BOS, EOT, llama_3

from clinmerge_jax.merging.plan import plan_merge
from clinmerge_jax.merging.recipes.recipe import Recipe, Source, VocabularyChoice
from clinmerge_jax.merging.recipes.schedule import Schedule

CHAT = [{"role": "user", "content": "fever"}]


def _plan(sources, **choice):
    recipe = Recipe(
        "linear",
        tuple(map(Source, sources)),
        {"weight": Schedule.parse("1", "weight")},
        leading=next(iter(sources)),
        vocabulary=VocabularyChoice(**choice),
    )
    return plan_merge(recipe, list(sources.values()))


def _written(plan, folder):
    folder.mkdir()
    for name, content in plan.small_files().items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return folder


def test_the_tokenizer_stays_where_only_generation_config_changes(write):
    gone = llama_3().get_vocab_size(True)
    sources = {"a": write("a", llama_3(["<b>"])), "b": write("b", llama_3())}
    (sources["a"].path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, gone]}))
    files = _plan(sources, cut_to_common=True).small_files()
    assert json.loads(files["generation_config.json"]) == {"eos_token_id": [3]}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert files[name] == sources["a"].path / name


@pytest.mark.parametrize("apart", [False, True])
def test_a_given_tokenizer_keeps_its_chat_template_wherever_the_leading_models_lies(write, tmp_path, apart):
    special = {"bos_token": BOS, "eos_token": EOT}
    leading = "leading {{ messages[0].content }}"
    own = {"chat_template": "own {{ messages[0].content }}"}
    sources = {
        "a": write("a", llama_3(["<a>"]), settings={**special, **({} if apart else {"chat_template": leading})}),
        "b": write("b", llama_3(["<b>"], shuffle=1), settings={**special, **own}),
    }
    if apart:
        (sources["a"].path / "chat_template.jinja").write_text(leading)
    folder = _written(_plan(sources, source="b"), tmp_path / "result")
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    assert loaded.apply_chat_template(CHAT, tokenize=False) == "own fever"
