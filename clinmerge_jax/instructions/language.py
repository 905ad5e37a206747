"""The language of an answer (IFEval, arXiv 2311.07911: "Language")."""

import functools
import pathlib
from typing import NewType

import langdetect
from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

Language = NewType("Language", str)  # an ISO 639-1 code; Chinese is zh-cn or zh-tw


def response_language(response: str, *, language: Language) -> bool:
    """Check that langdetect ranks the language as the most likely one."""
    return is_in(response, language)


def is_in(text: str, language: str) -> bool:
    """Whether langdetect finds text to be in a language; text that it cannot classify, such as digits, passes.

    langdetect draws random numbers. They are seeded anew for every text here, so that the verdict depends on the text
    alone. The authors' program does not seed them, so its verdicts on short texts differ from run to run.
    """
    detector = _profiles().create()
    detector.append(text)
    try:
        return detector.detect() == language
    except langdetect.LangDetectException:
        return True


@functools.cache
def languages() -> frozenset[str]:
    """The language codes that langdetect supports."""
    return frozenset(_profiles().get_lang_list())


@functools.cache
def _profiles() -> DetectorFactory:
    """A private set of profiles in sorted order, so that results depend on neither global seeds nor the file system."""
    factory = DetectorFactory()
    files = sorted(path for path in pathlib.Path(PROFILES_DIRECTORY).iterdir() if path.is_file())
    factory.load_json_profile([path.read_text(encoding="utf-8") for path in files])
    factory.set_seed(0)
    return factory
