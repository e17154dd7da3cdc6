"""October 2024's rules for the letter of an answer."""

from __future__ import annotations

import pytest

from aks.labels import load_labels
from evaluation.scoring import longvideobench_letter, parse_options, videomme_letter

OPTIONS = {"A": "a red car", "B": "the blue bus", "C": "A dog", "D": "nothing at all"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("'B'", "B"),
        ("Answer: B", "B"),
        ("(A) or (C)", "C"),  # the last one
        ("(A), not D", "A"),  # brackets first
        ("A, then B then C", "C"),
        ("C. A dog", "A"),  # the article counts as a letter
        ("see the BBC now", "C"),  # and so does a word's end
        ("B. the blue bus", "B"),
        ("A.B.x", "A"),  # before a full stop: neither stands between spaces, so the first
        ("I can see that the Blue Bus is there", "B"),  # longer than five words: the text
        ("a red car and the blue bus leave together", "B"),
    ],
)
def test_longvideobench(answer, letter):
    assert longvideobench_letter(answer, OPTIONS, "q") == letter


@pytest.mark.parametrize("answer", ["", "E", "b", "A:no", "the blue bus", "**B**"])
def test_longvideobench_draws_a_letter_by_the_question(answer):
    drawn = [longvideobench_letter(answer, OPTIONS, f"q{index}") for index in range(40)]
    assert set(drawn) == set(OPTIONS)
    assert drawn == [longvideobench_letter(answer, OPTIONS, f"q{index}") for index in range(40)]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" (C) ", "C"),
        ("The best answer is D.", "D"),
        ("The answer is A. Because", "A"),
        ("The best option is B", "B"),
        ("Answer: D", "A"),  # the word's own letter
        ("Best answer: D", "B"),
        ("the first one", ""),
        ("E", ""),
    ],
)
def test_videomme(answer, letter):
    assert videomme_letter(answer) == letter


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("What?\nA. one\nB. two\nAnswer with the option's letter.\n", {"A": "one", "B": "two"}),
        (
            "said: \nA. B. C.\nWhat?\nA. one. A. two\nB. \nC. three",
            {"A": "one. A. two", "B": "", "C": "three"},
        ),
        ("What?\nA. one\nC. three", {"A": "one"}),
        ("What?\nA. on\ne\nB. t\u2028wo\nAnswer.", {"A": "on\ne", "B": "t\u2028wo"}),
        ("What?", {}),
    ],
)
def test_options_are_those_at_the_end_of_the_prompt(prompt, options):
    assert parse_options(prompt) == options


# Shares of all options that are found, in percent, as lmms-eval's code of October 2024 finds them.
@pytest.mark.parametrize(
    ("dataset", "form", "share"),
    [
        ("longvideobench", "{letter}", 100),
        ("longvideobench", "{letter}.", 100),
        ("longvideobench", "({letter})", 100),
        ("longvideobench", "{letter}. {text}", 90.6),
        ("longvideobench", "Answer: {letter}", 100),
        ("videomme", "{letter}", 100),
        ("videomme", "{letter}. {text}", 100),
        ("videomme", "The answer is {letter}. {text}", 100),
        ("videomme", "Answer: {letter}", 25),
    ],
)
def test_every_option_of_the_real_label_files(reference, dataset, form, share):
    (path,) = (reference / dataset).glob("lvb_val.json" if dataset == "longvideobench" else "videomme.json")
    found = []
    for question in load_labels(dataset, label_file=path).questions:
        texts = [text.split(". ", 1)[-1] if dataset == "videomme" else text for text in question.options]
        options = dict(zip("ABCDE", texts, strict=False))
        for letter, text in options.items():
            answer = form.format(letter=letter, text=text)
            got = (
                videomme_letter(answer)
                if dataset == "videomme"
                else longvideobench_letter(answer, options, question.id)
            )
            found.append(got == letter)
    assert 100 * sum(found) / len(found) == pytest.approx(share, abs=0.05)
