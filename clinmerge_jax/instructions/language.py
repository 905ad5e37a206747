"""The language of an answer (IFEval, arXiv 2311.07911: "Language")."""

import functools
import pathlib
from typing import NewType

import langdetect
from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

Language = NewType("Language", str)  # a code of ISO 639-1; Chinese is zh-cn or zh-tw


def response_language(response: str, *, language: Language) -> bool:
    """langdetect finds the language likelier than all others."""
    return is_in(response, language)


def is_in(text: str, language: str) -> bool:
    """Whether text is in a language, by langdetect's guess; text that it can say nothing of, such as digits, passes.

    The guess draws random numbers. They are seeded anew for every text here, so that the verdict depends on it alone;
    the authors' program draws on, and its verdicts on short texts differ from run to run.
    """
    detector = _profiles().create()
    detector.append(text)
    try:
        return detector.detect() == language
    except langdetect.LangDetectException:
        return True


@functools.cache
def languages() -> frozenset[str]:
    """The codes that langdetect knows."""
    return frozenset(_profiles().get_lang_list())


@functools.cache
def _profiles() -> DetectorFactory:
    """Profiles of our own, in an order of our own, so that no seed but this one and no file system has a say."""
    factory = DetectorFactory()
    files = sorted(path for path in pathlib.Path(PROFILES_DIRECTORY).iterdir() if path.is_file())
    factory.load_json_profile([path.read_text(encoding="utf-8") for path in files])
    factory.set_seed(0)
    return factory
