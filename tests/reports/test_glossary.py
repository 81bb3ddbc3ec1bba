"""One sentence a word, said alike on the library's pages and on the site's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tangentune.reports import pages
from tangentune.reports.gallery import Gallery
from tangentune.reports.glossary import TERMS, Words, anchor, page

ROOT = Path(__file__).parents[2]


def test_the_site_has_the_same_sentences() -> None:
    shown = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    assert shown == page(), "run python docs/make_glossary.py"
    assert re.findall(r"^## (.*)$", shown, re.MULTILINE) == sorted(TERMS, key=str.lower)


@pytest.mark.parametrize("term", TERMS)
def test_a_word_is_explained_in_one_plain_sentence(term: str) -> None:
    sentence = TERMS[term]
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert ". " not in sentence
    assert len(sentence.split()) <= 40


def test_templates_ask_only_for_words_that_are_explained() -> None:
    templates = (ROOT / "src/tangentune/reports/templates").glob("*.j2")
    asked = {term for path in templates for term in re.findall(r'word\("([^"]+)"', path.read_text(encoding="utf-8"))}
    assert len(asked) > 8
    assert asked <= set(TERMS)


def test_a_page_lists_the_words_that_it_links() -> None:
    text = pages.render(
        "suspects.html.j2",
        {"gallery": Gallery([], [], None, []), "n": 3, "network": "small", "classification": True, "several": False},
    )
    links = re.findall(r'href="#(word-[^"]+)"', text)
    assert links == [f"word-{anchor('leave-one-out')}"]
    assert re.findall(r'<dt id="([^"]+)">', text) == links
    other = pages.render(
        "suspects.html.j2",
        {"gallery": Gallery([], [], None, []), "n": 3, "network": "small", "classification": False, "several": False},
    )
    assert "Words on this page" not in other, "each page has its own words"


def test_a_word_is_shown_as_the_sentence_has_it_and_escaped() -> None:
    words = Words()
    assert str(words("damping", "<b>")).endswith(">&lt;b&gt;</a>")
    with pytest.raises(KeyError):
        words("no such word")
    assert [term for _, term, _ in words.used] == ["damping"]
