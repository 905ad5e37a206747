"""The miniature's tokenizer: byte-level BPE with Llama-3-like special tokens and chat template."""

from collections.abc import Iterable

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, EOT, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|eot|>", "<|pad|>"
USER, ASSISTANT, SYSTEM = "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL_TOKENS = (BOS, EOS, EOT, USER, ASSISTANT, SYSTEM, PAD)  # ids 0 to 6, in this order

# Each turn is its role token, a newline, the stripped content and <|eot|>. The template writes the
# BOS token itself, so rendered text must be encoded with add_special_tokens=False.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in ['user', 'assistant', 'system'] -%}
{{- raise_exception('unknown role ' ~ message['role'] ~ ': use user, assistant or system') -}}
{%- endif -%}
{{- '<|' ~ message['role'] ~ '|>\\n' ~ message['content'] | trim ~ '<|eot|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>\\n' -}}
{%- endif -%}
"""

_BYTES = 256


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 1024, context: int = 512
) -> transformers.PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer; the same texts give the same tokenizer.

    Every Unicode string is encoded without loss:
    `decode(encode(x, add_special_tokens=False)) == x`.
    `encode` prepends one BOS token unless `add_special_tokens=False`. Padding is on the right with
    `<|pad|>`, and the end-of-sequence token is `<|end_of_text|>`.

    Args:
      texts: the training texts.
      vocab_size: the size of the vocabulary, including bytes and special tokens.
      context: the maximum length, `model_max_length`.

    Raises:
      ValueError: `vocab_size` cannot hold the bytes and the special tokens, or the texts are too few to
        fill it. The model's embedding would then have rows that no text uses.
    """
    smallest = _BYTES + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size is {vocab_size}, but bytes and specials need {smallest}")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() != vocab_size:
        raise ValueError(
            f"the texts gave {backend.get_vocab_size()} tokens instead of {vocab_size}: "
            "train on more text, or ask for a smaller vocabulary"
        )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS}:1 $B:1",
        special_tokens=[(BOS, backend.token_to_id(BOS))],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[EOT, USER, ASSISTANT, SYSTEM],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,  # otherwise decoding would change " ." to "."
        model_max_length=context,
        padding_side="right",
    )
