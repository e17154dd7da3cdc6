"""Which letter an answer counts as, by the rules that lmms-eval had when the paper was made, October 2024.

lmms-eval has replaced both parsers since. They differ for answers with more than the letter: October's reads
"D. A book" as A on LongVideoBench, and today's does not find the letter of every "The answer is A. text" on
VideoMME. The rules are written here from what lmms-eval at commit 7a191d22 does, slips included, because the
paper's figures hold them.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Mapping

SCORINGS = CURRENT, OCT2024 = "current", "oct2024"
# What VideoMME's parser takes away. Two more prefixes run into their neighbours in its list, so it never
# finds them.
_PREFIXES = ("The best answer is", "The correct answer is", "The answer is", "The answer")
_MAX_WORDS_WITHOUT_LETTER = 5  # LongVideoBench: longer answers are searched for an option's text


def longvideobench_letter(answer: str, options: Mapping[str, str], question_id: str) -> str:
    """The letter that an answer to a LongVideoBench question counts as.

    Letters in brackets come first, then letters before a space, then letters before a full stop, then, in an
    answer of more than five words, the options' texts. Of several the last one counts. Where there is none,
    a letter is drawn; upstream draws it by Python's random numbers, this by the question's id, so that a
    second look gives the same.

    Args:
        answer: what the model wrote.
        options: letter to text.
        question_id: draws the letter of an answer that names none.
    """
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    answer = f" {answer} "
    # What tells a letter, and what tells where it stands; a letter that does not stand there comes first.
    for mark, position in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        places = {letter: answer.rfind(position.format(letter)) for letter in options}
        found = [letter for letter in options if mark.format(letter) in answer]
        if found:
            return max(found, key=places.__getitem__)
    if len(answer.split()) > _MAX_WORDS_WITHOUT_LETTER:
        places = {letter: answer.lower().rfind(text.lower()) for letter, text in options.items()}
        found = [letter for letter, place in places.items() if place >= 0]
        if found:
            return max(found, key=places.__getitem__)
    return random.Random(question_id).choice(list(options))


def videomme_letter(answer: str) -> str:
    """The letter that an answer to a VideoMME question counts as: the first of A to D; "" without one."""
    answer = answer.strip()
    for prefix in _PREFIXES:
        answer = answer.replace(prefix, "")
    found = re.search("[ABCD]", answer)
    return found[0] if found else ""


def parse_options(prompt: str) -> dict[str, str]:
    """The options, letter to text, out of a prompt that lists them last: a line each, "A. text" and so on.

    >>> parse_options("What is red?\\nA. a car\\nB. a bus\\nAnswer with the option's letter from ...")
    {'A': 'a car', 'B': 'a bus'}
    """
    prompt = f"\n{prompt}\n"
    starts = [prompt.rfind("\nA. ")]
    for letter in string.ascii_uppercase[1:]:
        if starts[-1] < 0:
            break
        starts.append(prompt.find(f"\n{letter}. ", starts[-1] + 1))
    starts.pop()  # where the search ended
    ends = [*starts[1:], prompt.find("\n", starts[-1] + 1)] if starts else []
    return {
        letter: prompt[start + len("\nA. ") : end]
        for letter, start, end in zip(string.ascii_uppercase, starts, ends, strict=False)
    }
