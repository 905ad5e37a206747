"""What configs/sft.py says of the steps, before any weight is read."""

import jax.numpy as jnp
import pytest
from support import tiny_config

from clinmerge_jax.errors import BadInput
from clinmerge_jax.fine_tuning.settings import step_settings
from clinmerge_jax.llama.attention import Backend
from clinmerge_jax.parallel.layout import one_device
from configs import sft

LLAMA = tiny_config()
DEVICE = one_device(LLAMA).device


def test_on_a_processor_steps_are_in_float32_with_the_reference_attention():
    settings = step_settings(sft.get_config("full"), LLAMA, 64, 0.0, DEVICE)
    assert (settings.dtype, settings.attention) == (jnp.float32, Backend.REFERENCE)


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        ("splash", "splash needs a TPU, but this is a CPU; give auto or "),
        ("cudnn", "cudnn needs a GPU, but this is a CPU; give auto or "),
        ("ragged", "ragged does not attend over whole sequences; give auto or "),
    ],
)
def test_attention_that_cannot_be_had_here_is_refused_in_one_line(attention, reason):
    config = sft.get_config()
    config.attention = attention
    with pytest.raises(BadInput, match="^config.attention: ") as refused:
        step_settings(config, LLAMA, 64, 0.0, DEVICE)
    message = str(refused.value)
    assert reason in message and "\n" not in message
