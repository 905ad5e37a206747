"""The decode engine behind lm-eval's model interface.

Requests are tokenized as in lm-eval's adapter for transformers. The engine batches and caches them and shards them over
the mesh. lm-eval sees one process, whatever the mesh.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import tqdm
from absl import logging
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string

from clinmerge_jax.data.documents import check_vocabulary, without_second_bos
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.harness.model_args import open_engine
from clinmerge_jax.generation.engine import Engine, Request
from clinmerge_jax.generation.reading import CHUNKS
from clinmerge_jax.generation.sampling import Sampling

NAME = "clinmerge_jax"  # the value of --model in lm-eval's command
_PIECE = CHUNKS[-1]  # tokens of a continuation whose logits are held at once
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_GENERATION = ("until", "max_gen_toks", "do_sample", "num_beams", *_SAMPLING)


@register_model(NAME)
class ClinmergeLM(TemplateLM):
    """An lm-eval model on the decode engine.

    Two intended differences from lm-eval's adapter for transformers:
      * A text of `loglikelihood_rolling` has one BOS token, as with that adapter's add_bos_token=False. By default that
        adapter scores a second BOS token after the first if the tokenizer adds one itself.
      * A request that does not fit is refused with a one-line error instead of an assertion.

    Args:
      engine: its `length` is lm-eval's max_length: longer contexts are truncated on the left. Its stop ids end answers.
      tokenizer: a transformers tokenizer.
      name: stands for the model in lm-eval's request caches.
      max_gen_toks: the maximum number of tokens of an answer where a task sets none; the default is lm-eval's.
      seed: seed of sampled answers; each request's own seed is derived from it and the request's position.

    Attributes:
      truncated: the number of contexts truncated so far.
    """

    def __init__(self, engine: Engine, tokenizer, name: str = NAME, *, max_gen_toks: int = 256, seed: int = 0):
        super().__init__()
        self.engine = engine
        self.tokenizer = tokenizer
        self.max_gen_toks = max_gen_toks
        self.truncated = 0
        self._name = name
        self._seed = seed
        self._special = {one.content: index for index, one in tokenizer.added_tokens_decoder.items() if one.special}
        self._without_system = False

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> "ClinmergeLM":
        """Builds the model from --model_args as parsed by lm-eval.

        Args:
          arg_dict: the arguments of `open_engine`, and max_gen_toks and seed of this class.
          additional_config: batch_size, max_batch_size and device as lm-eval's command gives them. The device is
            ignored, because that command always names a GPU: JAX's devices are used.

        Raises:
          BadInput: as `open_engine`, or a batch size is given.
        """
        for field in ("batch_size", "max_batch_size"):
            value = (additional_config or {}).get(field)
            if value not in (None, 1):  # lm-eval's defaults
                raise BadInput(
                    f"--{field}: is {value}; leave it out and give --model_args slots=N, the requests at a time"
                )
        own = {key: arg_dict[key] for key in ("max_gen_toks", "seed") if key in arg_dict}
        engine, tokenizer = open_engine({key: value for key, value in arg_dict.items() if key not in own})
        return cls(engine, tokenizer, str(arg_dict["model"]), **own)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> "ClinmergeLM":
        """Builds the model from text such as "model=DIR,slots=32"; see `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def max_length(self) -> int:
        """The maximum number of tokens read for one answer or likelihood."""
        return self.engine.length

    @property
    def eot_token_id(self) -> int:
        """The end-of-sequence token."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context: the BOS token, or the end-of-sequence token if there is no BOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name in lm-eval's request caches."""
        return self._name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encodes text to token ids, with at most one BOS token.

        Args:
          string: any text, with or without a BOS token of its own.
          add_special_tokens: None leaves it to the tokenizer.

        Raises:
          BadInput: a token id exceeds the model's vocabulary.
        """
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids = without_second_bos(self.tokenizer(string, **given)["input_ids"], self.tokenizer)
        check_vocabulary([ids], self.engine.layout.config.vocab_size, "config.model")
        return ids.tolist()

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Renders a conversation as text.

        If the template rejects a system message, the message is left out, with one warning, as in lm-eval.

        Raises:
          BadInput: there is no template, or it rejects the conversation.
        """
        if not self.tokenizer.chat_template:
            raise BadInput(
                f"config.model: {self._name} has no chat template; add one to its tokenizer, or run without it"
            )
        render = functools.partial(
            self.tokenizer.apply_chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        others = [message for message in chat_history if message["role"] != "system"]
        try:
            return render(chat_history)
        except jinja2.TemplateError as error:
            # The template's message is left out: it may quote the conversation.
            if len(others) == len(chat_history):
                raise BadInput(
                    "config.model: the chat template refuses a task's conversation; correct the template"
                ) from error
        if not self._without_system:
            logging.warning("the chat template does not accept a system message: tasks' descriptions are left out")
            self._without_system = True
        try:
            return render(others)
        except jinja2.TemplateError as error:
            raise BadInput(
                "config.model: the chat template refuses a task's conversation; correct the template"
            ) from error

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihoods in nats, and whether greedy decoding gives the continuation.

        Raises:
          BadInput: a continuation has no token, or more than `max_length`.
        """
        pairs: list[tuple[np.ndarray, np.ndarray]] = []
        owners: list[int] = []
        longest = self.max_length + 1  # the last token is predicted, not read
        for index, (_, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise BadInput(
                    f"config.harness_tasks: a continuation has {len(continuation)} tokens beyond its context; 1 to"
                    f" {self.max_length} can be scored; correct the task, or give a larger max_length"
                )
            tokens = np.array([*context, *continuation], np.int32)[-longest:]
            for start in range(len(tokens) - len(continuation), len(tokens), _PIECE):
                pairs.append((tokens[:start], tokens[start : start + _PIECE]))
                owners.append(index)
        self._count_truncated(sum(len(context) + len(more) > longest for _, context, more in requests), len(requests))
        totals, greedy = np.zeros(len(requests)), np.ones(len(requests), bool)
        for owner, (log, likeliest) in zip(owners, self.engine.score(pairs)):
            totals[owner] += log.sum(dtype=np.float64)
            greedy[owner] &= likeliest.all()
        answers = [(float(total), bool(all_greedy)) for total, all_greedy in zip(totals, greedy)]
        for (texts, _, _), answer in zip(requests, answers):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts in nats.

        Texts are read in windows of `max_length` tokens that do not overlap, each with the preceding token as context.
        """
        windows, owners = [], []
        for index, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            ids = ids[1:] if ids[:1] == [self.prefix_token_id] else ids  # the windows add the BOS token
            rolling = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            found = [(None, *make_disjoint_window(window)) for window in rolling]
            windows += found
            owners += [index] * len(found)
        totals = np.zeros(len(requests))
        for owner, (total, _) in zip(owners, self._loglikelihood_tokens(windows)):
            totals[owner] += total
        for request, total in zip(requests, totals):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, float(total))
        return totals.tolist()

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generates answers up to a stop text, a stop id or the token limit; greedy unless the task says otherwise.

        Raises:
          BadInput: a generation argument is unknown or out of range, or leaves no room for a prompt.
        """
        ours, ends, cut = [], [], 0
        for index, request in enumerate(requests):
            context, given = request.args
            settings = normalize_gen_kwargs(given, self.max_gen_toks)
            room = self.max_length - settings["max_gen_toks"]
            if room < 1:
                raise BadInput(
                    f"gen_kwargs: max_gen_toks {settings['max_gen_toks']} leaves no room for a prompt in the"
                    f" max_length of {self.max_length}; give fewer, or --model_args max_length=N"
                )
            ids = self.tok_encode(context) or [self.prefix_token_id]
            cut += len(ids) > room
            ends.append(_Ends([text for text in settings["until"] if text], self._special, self.tokenizer))
            tokens = np.array(ids[-room:], np.int32)
            sampling = _sampling(settings, self._seed, index)
            ours.append(Request(tokens, settings["max_gen_toks"], sampling, ends[-1].watch()))
        self._count_truncated(cut, len(requests))
        texts = [""] * len(requests)
        with tqdm.tqdm(total=len(requests), desc="generate", unit="answer", disable=disable_tqdm) as bar:
            for index, answer in self.engine.generate(ours):
                texts[index] = ends[index].text(answer.tokens)
                self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                bar.update()
        return texts

    def _count_truncated(self, cut: int, requests: int) -> None:
        self.truncated += cut
        if cut:
            logging.warning(
                "%d of %d contexts are over max_length %d and lost their beginning", cut, requests, self.max_length
            )


class _Ends:
    """The stop texts of one answer.

    A special token among them is matched by its id, because answers are decoded without special tokens.

    Args:
      texts: the stop texts, none of them empty.
      special: token id by special token.
      tokenizer: a transformers tokenizer.
    """

    def __init__(self, texts: Sequence[str], special: Mapping[str, int], tokenizer):
        self._texts = [text for text in texts if text not in special]
        self._ids = [special[text] for text in texts if text in special]
        self._tokenizer = tokenizer

    def watch(self) -> Callable[[np.ndarray], bool] | None:
        """A check whether generated tokens contain a stop text; None if there is no stop text."""
        return self._found if self._texts or self._ids else None

    def text(self, tokens: np.ndarray) -> str:
        """The answer up to the first stop text."""
        places = np.flatnonzero(np.isin(tokens, self._ids))
        answer = self._tokenizer.decode(tokens[: places[0]] if places.size else tokens, skip_special_tokens=True)
        for text in self._texts:  # one after the other, as lm-eval does
            answer = answer.split(text)[0]
        return answer

    def _found(self, tokens: np.ndarray) -> bool:
        answer = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return bool(np.isin(tokens, self._ids).any()) or any(text in answer for text in self._texts)


def _sampling(settings: Mapping[str, Any], seed: int, index: int) -> Sampling:
    """The sampling that lm-eval's generation arguments ask for, with the seed of one request."""
    unknown = sorted(set(settings) - set(_GENERATION))
    if unknown:
        raise BadInput(f"gen_kwargs: {', '.join(unknown)} unknown; choose from {', '.join(_GENERATION)}")
    if settings.get("num_beams", 1) != 1:
        raise BadInput(f"gen_kwargs: num_beams is {settings['num_beams']}; beam search is not supported, give 1")
    given = {key: settings[key] for key in _SAMPLING if key in settings}
    if settings["do_sample"] and not given.get("temperature"):
        raise BadInput("gen_kwargs: do_sample is True but temperature is 0; give a temperature over 0")
    own_seed = np.random.SeedSequence((seed, index)).generate_state(1)[0]
    return Sampling(**given, seed=int(own_seed))
