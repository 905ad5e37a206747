"""Checkers for the 30 of IFBench's 58 kinds (arXiv 2507.02833) whose rule is defined by its data and wording.

The verdicts were not compared with the authors' program. Where a prompt's wording leaves the rule open (which words are
stop words, what a section is), there is no checker, and prompts with such a kind are left out and counted. A score over
the remaining prompts is not an IFBench score and must not be called one.
"""

from clinmerge_jax.instructions.checkers import Checker
from clinmerge_jax.instructions.ifbench import layout as ifbench_layout
from clinmerge_jax.instructions.ifbench import sentences as ifbench_sentences
from clinmerge_jax.instructions.ifbench import words as ifbench_words

IFBENCH: dict[str, Checker] = {
    "count:conjunctions": ifbench_words.conjunctions,
    "count:keywords_multiple": ifbench_words.keywords_multiple,
    "count:unique_word_count": ifbench_words.unique_word_count,
    "count:word_count_range": ifbench_words.word_count_range,
    "custom:multiples": ifbench_layout.multiples,
    "custom:sentence_alphabet": ifbench_sentences.sentence_alphabet,
    "format:line_indent": ifbench_layout.line_indent,
    "format:newline": ifbench_layout.newline,
    "format:no_bullets_bullets": ifbench_layout.no_bullets_bullets,
    "format:no_whitespace": ifbench_layout.no_whitespace,
    "format:output_template": ifbench_layout.output_template,
    "format:parentheses": ifbench_layout.parentheses,
    "format:sub-bullets": ifbench_layout.sub_bullets,
    "ratio:sentence_type": ifbench_sentences.sentence_type,
    "ratio:sentence_words": ifbench_sentences.sentence_words,
    "repeat:repeat_change": ifbench_layout.repeat_change,
    "repeat:repeat_simple": ifbench_layout.repeat_simple,
    "sentence:increment": ifbench_sentences.increment,
    "sentence:keyword": ifbench_sentences.keyword,
    "words:alphabet": ifbench_words.alphabet,
    "words:consonants": ifbench_words.consonants,
    "words:keywords_specific_position": ifbench_words.keywords_specific_position,
    "words:last_first": ifbench_words.last_first,
    "words:no_consecutive": ifbench_words.no_consecutive,
    "words:palindrome": ifbench_words.palindrome,
    "words:paragraph_last_first": ifbench_words.paragraph_last_first,
    "words:prime_lengths": ifbench_words.prime_lengths,
    "words:repeats": ifbench_words.repeats,
    "words:vowel": ifbench_words.vowel,
    "words:words_position": ifbench_words.words_position,
}

# Kinds without a checker, and what their data and wording leave undefined.
UNDEFINED: dict[str, str] = {
    "count:numbers": "whether 3.5, 1,000 and words such as two are one number",
    "count:person_names": "the list of names is in the prompt alone",
    "count:pronouns": "which words are pronouns, and whether one counts each time",
    "count:punctuation": "which marks are standard",
    "count:words_japanese": "what a word is where Japanese has no spaces",
    "custom:character_reverse": "what the right answer is",
    "custom:csv_city": "what must be in a cell, and in which columns",
    "custom:csv_quotes": "whether the header counts as a row",
    "custom:csv_special_character": "which characters are special",
    "custom:date_format_list": "which battles belong in the list",
    "custom:european_capitals_sort": "which capitals, and their latitudes",
    "custom:mcq_count_length": "how options are marked, and the length of what must grow",
    "custom:reverse_newline": "which countries belong in the list",
    "custom:word_reverse": "what the right answer is",
    "format:emoji": "which characters are emoji, and whether one stands before or after the mark",
    "format:list": "how many items make a list, and what may stand beside them",
    "format:options": "how the options are told apart: each prompt separates them otherwise",
    "format:quote_unquote": "what an explanation is",
    "format:quotes": "how apostrophes are told from quotation marks",
    "format:thesis": "what a section and a thesis statement are",
    "format:title_case": "which words are major",
    "ratio:overlap": "trigrams of what, and a share of which text's",
    "ratio:sentence_balance": "how unequal the three kinds of sentences may be",
    "ratio:stop_words": "which words are stop words",
    "repeat:repeat_span": "whether the first word has index 0 or 1",
    "sentence:alliteration_increment": "whether sounds or letters alliterate",
    "words:odd_even_syllables": "how syllables are counted",
    "words:start_verb": "which words are verbs",
}
