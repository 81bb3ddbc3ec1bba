"""Sentences of the library, which speak Python, in the words of the command line.

This is the one place for it: errors and notes pass through here on their way to the terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

import click

# What only Python has, or says at more length: pattern, and what stands for it here.
_PHRASES = {
    r"give labels= \(.*\), a CSV file with labels, or class folders": "give class folders, or a CSV file with labels",
    r"give labels=, class folders, or need_labels=False": "give class folders, or a CSV file with labels",
    r"class folders, a CSV file with labels, or target_labels=": "class folders, or a CSV file with labels",
    r"load_pictures\(\.\.\., ([^)]*)\)": r"\1",
    r"give Pictures with labels, class folders": "give class folders",
    r"give source= where they are, or select again": "put them back where they were, or select again",
    r"not as files; give them as source=": "not as files; fit with it in Python, fit(source=...)",
    r"its (\w+)(?: pictures)? are in ids_,": r"it has \1 pictures,",
    r"This backbone's input_size is None, so it takes no pictures": "the network takes vectors, and no pictures",
    r"or set clusters to": "or set --clusters to",
    r"normalize and damping mix": "--normalize and --damping mix",
    r" and features \(a name, or a function of \(module, x\)\)": "",
    r"make them with extract_features": "--cache of `tangentune select` makes them",
    r"give it: from_pretrained\(directory, backbone=Backbone\(\.\.\.\)\)": "name it: --backbone module:function",
    r"make one with TangentFeatures": "`tangentune map` makes one",
    r"; read it with \w+\.from_pretrained": "",
    r"raise max_iterations, or lower the penalties relative to eps": "a higher --cost-scale makes it easier",
}
# Advice that is code.
_WAYS = "use|wrap the network with|wrap it:|make it with|let it give|give it:|give|save"
_CODE = re.compile(rf"\b({_WAYS}) (?=[\w.]*\b\w+\(|features=)")
# An option with a value or without, and its bare name; file names and quoted words are left alone.
_SETTING = r"(?<![\w\"'/.-]){name}=(?:\"([^\"]*)\"|'([^']*)'|([\w.]+))?"
_BARE = r"(?<![\w\"'/.=-]){name}(?![\w\"'/=-]|\.\w)"


def spoken(sentence: str, options: Iterable[click.Parameter], others: Iterable[str] = ()) -> str:
    """A sentence in which options are called as this command calls them, and Python's own ways are said to be such.

    `others` are Python's names of options that this command has not: they become plain words.

    Example:
        >>> spoken('use on_error="skip", or n_jobs=1', [click.Option(["--on-error"]), click.Option(["--n-jobs"])])
        'use --on-error skip, or --n-jobs 1'
    """
    for pattern, words in _PHRASES.items():
        sentence = re.sub(pattern, words, sentence)
    parts = _CODE.split(sentence, maxsplit=1)
    if len(parts) == 1:
        return _named(sentence, options, others)
    return f"{_named(parts[0], options, others)}in Python, {parts[1]} {parts[2]}"  # the code stands as it is


def _named(sentence: str, options: Iterable[click.Parameter], others: Iterable[str]) -> str:
    names = {name: name.replace("_", " ") for name in others}
    names |= {one.name: one.opts[0] for one in options if isinstance(one, click.Option) and one.name}
    for name, flag in names.items():
        sentence = re.sub(_SETTING.format(name=name), partial(_setting, flag), sentence)
        if "_" in name:
            sentence = re.sub(_BARE.format(name=name), flag, sentence)
    return sentence


def _setting(flag: str, found: re.Match[str]) -> str:
    value = next((text for text in found.groups() if text is not None), "")
    return f"{flag} {value.replace('...', 'NAME', 1)}".rstrip()
