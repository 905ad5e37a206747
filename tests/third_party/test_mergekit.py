"""The same recipe files through mergekit and through us, where a Python that has mergekit is named."""

import os
import subprocess
import textwrap

import numpy as np
import pytest
import safetensors.numpy
import support
import tokenizers

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import read_tensor
from clinmerge_jax.checkpoint.tokenizers.embedding import has_vocabulary_rows

SIZE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 8}
SIZE |= {"num_key_value_heads": 4, "vocab_size": 300}
LIMIT = 1e-6  # of the tensor's largest value
TWO = "models: [{model: one}, {model: two}]"
THREE = "models: [{model: one}, {model: two}, {model: three}]"
# What the results in the shared folder do not show: other parameters, gradients, filters, slices, vocabularies.
RECIPES = {
    "task arithmetic, normalized": f"""
        merge_method: task_arithmetic
        base_model: base
        {THREE}
        parameters: {{weight: [0.5, 1.5], normalize: true, lambda: 0.7}}
        """,
    "ties over depth, with filters and a negative weight": """
        merge_method: ties
        base_model: base
        models:
        - {model: one, parameters: {weight: [0.2, 0.9], density: [{filter: mlp, value: [0.3, 0.6]}, {value: 0.5}]}}
        - {model: two, parameters: {weight: -0.4, density: 0.7}}
        - {model: three, parameters: {weight: 0.8, density: 1}}
        parameters: {normalize: false, lambda: 1.2}
        """,
    "ties, rescaled": f"""
        merge_method: ties
        base_model: base
        {THREE}
        parameters: {{weight: 0.5, density: 0.4, rescale: true}}
        """,
    "breadcrumbs_ties": f"""
        merge_method: breadcrumbs_ties
        base_model: base
        {THREE}
        parameters: {{weight: 0.5, density: 0.8, gamma: 0.04}}
        """,
    "dare_linear, dense": f"""
        merge_method: dare_linear
        base_model: base
        {THREE}
        parameters: {{weight: 0.5, density: 1.0, normalize: true}}
        """,
    "della_linear, dense": f"""
        merge_method: della_linear
        base_model: base
        {TWO}
        parameters: {{weight: 0.5, density: 1.0, lambda: 1.5}}
        """,
    "sce, sparse": f"{{merge_method: sce, base_model: base, {THREE}, parameters: {{select_topk: 0.5}}}}",
    "model_stock by rows": f"""
        merge_method: model_stock
        base_model: base
        {THREE}
        parameters: {{filter_wise: true}}
        """,
    "karcher of three": f"{{merge_method: karcher, {THREE}, parameters: {{max_iter: 20, tol: 1.0e-9}}}}",
    "multislerp with a base": f"""
        merge_method: multislerp
        base_model: base
        {THREE}
        parameters: {{weight: [0.3, 0.9]}}
        """,
    "nuslerp by rows from a base": """
        merge_method: nuslerp
        base_model: base
        models: [{model: one, parameters: {weight: 0.7}}, {model: two, parameters: {weight: 0.6}}]
        parameters: {nuslerp_flatten: false}
        """,
    "nuslerp by columns from a base": """
        merge_method: nuslerp
        base_model: base
        models: [{model: one, parameters: {weight: 0.7}}, {model: two, parameters: {weight: 0.6}}]
        parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}
        """,
    "ramplus_tl": f"{{merge_method: ramplus_tl, base_model: base, {THREE}, parameters: {{r: .3, alpha: .5}}}}",
    "linear over slices": """
        merge_method: linear
        slices:
        - sources:
          - {model: one, layer_range: [0, 2], parameters: {weight: 0.3}}
          - {model: two, layer_range: [2, 4], parameters: {weight: [0.2, 0.8]}}
        - sources:
          - {model: two, layer_range: [1, 3]}
          - {model: three, layer_range: [2, 4]}
          parameters: {weight: 2}
        """,
    "layers stacked and scaled": """
        merge_method: passthrough
        slices:
        - sources: [{model: one, layer_range: [0, 3]}]
        - sources:
          - model: two
            layer_range: [1, 4]
            parameters: {scale: [{filter: o_proj, value: 0}, {filter: down_proj, value: [0.5, 1.5]}, {value: 1}]}
        """,
    "slerp over depth": f"""
        merge_method: slerp
        base_model: one
        {TWO}
        parameters:
          t: [{{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}}, {{filter: mlp, value: [1, 0.5, 0]}}, {{value: 0.4}}]
        """,
    "union of tokenizers": f"""
        merge_method: linear
        {TWO}
        parameters: {{weight: 0.5}}
        tokenizer:
          source: union
          tokens:
            patient: {{source: two, force: true}}
            cough: {{source: {{kind: model_token, model: one, token: fever}}, force: true}}
        """,
    "the tokenizer of one model": f"""
        merge_method: linear
        {TWO}
        parameters: {{weight: 0.5}}
        tokenizer: {{source: two}}
        """,
}
SHARED_WORDS = support.WORDS
ADDED = {"one": ("stat", "dose"), "two": ("wound", "dose", "edema")}


@pytest.fixture(scope="module")
def python():
    path = os.environ.get("CLINMERGE_MERGEKIT_PYTHON")
    if not path:
        pytest.skip("CLINMERGE_MERGEKIT_PYTHON names no Python with third_party/peers/requirements-mergekit.txt")
    return path


def _write_siblings(folder, rows):
    """A base and three models near it in float32, with embeddings of so many rows."""
    for seed, name in enumerate(("base", "one", "two", "three")):
        config = {**SIZE, "vocab_size": rows.get(name, SIZE["vocab_size"])}
        tensors = support.llama_tensors({**support.TINY, **config}, 0, np.float32)
        if seed:
            changes = support.llama_tensors({**support.TINY, **config}, seed, np.float32)
            tensors = {key: values + np.float32(0.1) * changes[key] for key, values in tensors.items()}
        support.write_llama(folder / name, dtype=np.float32, tensors=tensors, **config)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Models of one vocabulary."""
    folder = tmp_path_factory.mktemp("models")
    _write_siblings(folder, {})
    return folder


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """Models whose tokenizers have the same words at other ids, and added tokens of their own."""
    folder = tmp_path_factory.mktemp("tokenized")
    _write_siblings(folder, {name: len(SHARED_WORDS) + len(added) for name, added in ADDED.items()})
    for name, added in ADDED.items():
        words = (*SHARED_WORDS[:3], *(reversed(SHARED_WORDS[3:]) if name == "two" else SHARED_WORDS[3:]))
        support.write_tokenizer(folder / name, words)
        backend = tokenizers.Tokenizer.from_file(str(folder / name / "tokenizer.json"))
        backend.add_tokens(list(added))
        backend.save(str(folder / name / "tokenizer.json"))
    return folder


def _rows_there(folder):
    """The peer's row of every token of ours; it may begin a union with another model."""
    one, two = (tokenizers.Tokenizer.from_file(str(folder / who / "tokenizer.json")) for who in ("ours", "theirs"))
    assert set(one.get_vocab()) == set(two.get_vocab())
    return [two.token_to_id(one.id_to_token(index)) for index in range(one.get_vocab_size())]


def _takes_the_written_recipe(python, path):
    code = (
        "import sys, yaml; from mergekit.config import MergeConfiguration;"
        " MergeConfiguration.model_validate(yaml.safe_load(open(sys.argv[1])))"
    )
    subprocess.run([python, "-c", code, path], check=True, capture_output=True)


@pytest.mark.parametrize("name", RECIPES)
def test_the_peer_gives_the_same_weights(python, request, repository, tmp_path, figures, monkeypatch, name):
    models = request.getfixturevalue("tokenized" if "tokenizer" in RECIPES[name] else "plain")
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(textwrap.dedent(RECIPES[name]))
    command = [python, repository / "third_party" / "peers" / "merge_with_mergekit.py", recipe, tmp_path / "theirs"]
    process = subprocess.run(command, cwd=models, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    theirs = {}
    for file in (tmp_path / "theirs").glob("*.safetensors"):
        theirs |= safetensors.numpy.load_file(file)

    output = f"--config.output={tmp_path / 'ours'}"
    monkeypatch.chdir(models)
    command = (f"--config={repository}/configs/merge.py", f"--config.recipe={recipe}", output)
    assert support.run_command(*command) == 0
    ours = open_checkpoint(str(tmp_path / "ours"), "ours")
    assert set(ours.tensors) == set(theirs)
    largest, rows = 0.0, _rows_there(tmp_path) if "tokenizer" in RECIPES[name] else slice(None)
    for key, values in theirs.items():
        mine = read_tensor(ours.tensors[key])
        if has_vocabulary_rows(key):
            values = values[rows]
        assert mine.shape == values.shape, key
        largest = max(largest, np.abs(mine - values).max() / (np.abs(values).max() or 1.0))
    _takes_the_written_recipe(python, tmp_path / "ours" / "recipe.yml")
    figures.append(f"{name}: largest difference to mergekit {largest:.2g} of the tensor's largest value")
    assert largest <= LIMIT
