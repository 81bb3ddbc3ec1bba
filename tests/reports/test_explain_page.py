"""Attributions of single answers against actual refits, and the pages that show them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import FIXED, backbone, pictures
from test_report import Page, only_our_script
from torch import nn

from tangentune import Backbone, Pictures, TangentClassifier, TangentRegressor, load_pictures
from tangentune.errors import StoreError
from tangentune.reports.explanation import EDGE, Attribution, document, explain, familiarity
from tangentune.reports.explanation_page import render_explanations, render_suspects
from tangentune.reports.pages import write_page
from tangentune.solvers.calibration import probabilities

N, TOP = 24, 4
X, Y = pictures(30)
NUMBERS = np.stack([X.mean((1, 2, 3)) / 10, X[:, 0].mean((1, 2))], 1)


def asked(*rows: int) -> Pictures:
    return load_pictures(X[list(rows)], contract=backbone().contract, need_labels=False)


@cache
def classifier(*gone: int, **options: Any) -> TangentClassifier:
    rest = [i for i in range(N) if i not in gone]
    return TangentClassifier(backbone(), **{**FIXED, **options}).fit(X[rest], Y[rest])


@cache
def regressor(targets: int, *gone: int) -> TangentRegressor:
    rest = [i for i in range(N) if i not in gone]
    y = NUMBERS[:, 0] if targets == 1 else NUMBERS
    return TangentRegressor(backbone(), **FIXED).fit(X[rest], y[rest])


def lead(model: TangentClassifier, account: Attribution, x: np.ndarray) -> float:
    assert account.against is not None
    names = [str(name) for name in model.classes_]
    scores = model.decision_function(x[None])[0]
    return scores[names.index(account.answer.label)] - scores[names.index(account.against.label)]


def test_influence_is_what_a_refit_loses() -> None:
    model = classifier()
    for row, one in zip((25, 26), explain(model, asked(25, 26), N), strict=True):
        (account,) = one.attributions
        assert one.given is None
        assert one.answers[0].label == str(model.predict(X[row][None])[0])
        assert [a.confidence for a in one.answers] == pytest.approx(
            sorted(model.predict_proba(X[row][None])[0], reverse=True), rel=1e-8
        )
        assert account.total == pytest.approx(lead(model, account, X[row]), abs=1e-9)
        for pull in (*account.raised[:2], *account.lowered[:2]):
            without = classifier(pull.position)
            assert pull.influence == pytest.approx(account.total - lead(without, account, X[row]), abs=1e-8)
            scores = torch.from_numpy(without.decision_function(X[row][None]))
            proba = probabilities(scores, model.temperature_, model.softness_)[0]  # they stay
            assert pull.without is not None
            assert pull.without.label == str(model.classes_[int(proba.argmax())])
            assert pull.without.confidence == pytest.approx(float(proba.max()), abs=1e-8)


def test_lists_are_sorted_and_contributions_add_up() -> None:
    (one,) = explain(classifier(), asked(25), N)
    (account,) = one.attributions
    raised, lowered = ([pull.influence for pull in pulls] for pulls in (account.raised, account.lowered))
    assert raised == sorted(raised, reverse=True)
    assert lowered == sorted(lowered)
    assert min(raised) > 0 > max(lowered)
    assert (len(raised), len(lowered)) == account.counts
    assert sum(account.counts) == N
    sizes = [abs(pull.contribution) for pull in account.largest]
    assert sizes == sorted(sizes, reverse=True)
    added = account.intercept + sum(pull.contribution for pull in account.largest)
    assert added == pytest.approx(account.total, abs=1e-10)
    (short,) = explain(classifier(), asked(25), TOP)[0].attributions
    assert short.raised == account.raised[:TOP]
    assert short.lowered == account.lowered[:TOP]
    assert short.largest == account.largest[:TOP]
    assert short.counts == account.counts
    assert short.strongest in (short.raised[0], short.lowered[0])
    assert abs(getattr(short.strongest, "influence", 0)) == max(raised[0], -lowered[0])


@pytest.mark.parametrize("options", [{}, {"class_weight": "balanced"}], ids=str)
def test_training_picture_is_answered_without_itself(options: dict[str, Any]) -> None:
    model, rest = classifier(**options), classifier(3, **options)
    (one,) = explain(model, asked(3), TOP)
    (account,) = one.attributions
    assert one.given == str(Y[3])
    assert account.total == pytest.approx(lead(rest, account, X[3]), abs=1e-9)
    assert account.total != pytest.approx(lead(model, account, X[3]), abs=1e-2)
    pulls = (*account.raised, *account.lowered)
    assert 3 not in {pull.position for pull in pulls}
    pull = max(pulls, key=lambda one: one.position)  # beyond the picture itself, where positions shift
    assert pull.position > 3
    assert pull.id == model.ids_[pull.position]
    assert pull.influence == pytest.approx(
        account.total - lead(classifier(3, pull.position, **options), account, X[3]), abs=1e-8
    )
    assert [a.confidence for a in one.answers] == pytest.approx(sorted(model.loo_proba_[3], reverse=True), rel=1e-8)


def test_all_copies_of_a_training_picture_are_left_out() -> None:
    x, y = np.concatenate([X[:N], X[3:4]]), np.concatenate([Y[:N], Y[3:4]])
    with pytest.warns(UserWarning, match="more than once"):
        model = TangentClassifier(backbone(), **FIXED).fit(x, y)
    (twice,), (once,) = explain(model, asked(3), TOP), explain(classifier(), asked(3), TOP)
    assert twice.attributions[0].total == pytest.approx(once.attributions[0].total, abs=1e-9)


@pytest.mark.parametrize("targets", [1, 2])
def test_numbers_and_their_error_bars(targets: int) -> None:
    model = regressor(targets)
    new, known = explain(model, asked(27, 5), TOP)
    mean, error = (np.atleast_1d(v[0]) for v in model.predict(X[27][None], return_std=True))
    assert len(new.attributions) == targets
    assert [account.total for account in new.attributions] == pytest.approx(mean, rel=1e-9)
    assert [account.error for account in new.attributions] == pytest.approx(error, rel=1e-9)
    scatter = np.sqrt(error**2 + model.noise_)
    assert [account.scatter for account in new.attributions] == pytest.approx(scatter, rel=1e-9)
    for k, account in enumerate(new.attributions):
        pull = account.strongest
        assert pull is not None
        without = np.atleast_1d(regressor(targets, pull.position).predict(X[27][None])[0])
        assert pull.influence == pytest.approx(mean[k] - without[k], abs=1e-8)
        assert pull.without is not None
        assert float(pull.without.label) == pytest.approx(without[k], rel=1e-3)
    assert [account.total for account in known.attributions] == pytest.approx(model.loo_predictions_[5], rel=1e-9)
    assert known.given is not None
    given = np.atleast_1d(model.targets_[5])
    assert [float(part) for part in known.given.split(", ")] == pytest.approx(given, rel=1e-3)
    page = Page(render_explanations(model, asked(27, 5), [new, known]))
    assert ("Target 2" in page.text) == (targets == 2)
    assert "one of the training pictures" in page.text


@pytest.mark.parametrize("name", ["dirichlet", "laplace"])
def test_other_likelihoods_keep_their_probabilities(name: str) -> None:
    model = classifier(likelihood=name)
    new, known = explain(model, asked(25, 3), TOP)
    proba = model.predict_proba(X[25][None])[0]
    assert [a.confidence for a in new.answers] == pytest.approx(sorted(proba, reverse=True), rel=1e-9)
    assert [a.confidence for a in known.answers] == sorted(model.loo_proba_[3], reverse=True)
    assert all(pull.without is None for pull in (*new.attributions[0].raised, *known.attributions[0].raised))
    page = render_explanations(model, asked(25, 3), [new, known])
    assert f"the {name} likelihood" in Page(page).text
    assert ">without it" not in page
    assert ">without it" in render_explanations(classifier(), asked(25), explain(classifier(), asked(25), TOP))


def test_distance_is_the_models_score_and_words_follow_it() -> None:
    model = classifier()
    strange = np.zeros((1, 3, 8, 8), np.uint8)
    strange[0, 0] = 255
    far = load_pictures(strange, contract=backbone().contract, need_labels=False)
    found = [one.distance for one in (*explain(model, asked(25, 26), 1), *explain(model, far, 1))]
    assert found == pytest.approx([*model.ood_score(asked(25, 26)), *model.ood_score(far)], rel=1e-9)
    assert found[2] > max(found[:2])
    words = [familiarity(value) for value in (0.0, 0.5, 0.51, EDGE, 0.96, 1.0, 1.2, 40.0)]
    starts = ["Familiar", "Familiar", "Within", "Within", "Unusual", "Unusual", "Unlike", "Unlike"]
    assert [word.split()[0].rstrip(":") for word in words] == starts
    assert "than 100 % of them" in words[0]
    assert "only 4 %" in words[4]
    assert "no training picture lies as far" in words[5]
    assert "20 % more" in words[6]


def test_document_is_plain_and_whole() -> None:
    from tangentune._files import plain

    (one,) = explain(classifier(), asked(25), TOP)
    fields = plain(document(one))
    assert fields["id"] == "0"
    assert fields["given"] is None
    assert fields["familiarity"] == familiarity(one.distance)
    (account,) = fields["accounts"]
    assert [pull["influence"] for pull in account["raised"]] == [p.influence for p in one.attributions[0].raised]
    assert account["raised"][0]["without"] == vars(one.attributions[0].raised[0].without)
    assert account["answer"] == fields["answers"][0]


def test_page_stands_alone_and_shows_every_picture() -> None:
    model, px = classifier(), asked(25, 3)
    found = explain(model, px, TOP)
    text = render_explanations(model, px, found)
    page = Page(text)
    shown = sum(len(a.raised) + len(a.lowered) + len(a.largest) for one in found for a in one.attributions)
    assert page.counts["img"] == shown + 2 + 2  # each picture once more in the list at the top
    assert all(alt.strip() for alt in page.alts)
    assert only_our_script(text)
    assert all(source.startswith(("data:image/png;base64,", "#answer-", "#word-")) for source in page.sources)
    assert {"answer-0", "answer-1"} <= set(page.ids)
    for one in found:
        (account,) = one.attributions
        assert account.strongest is not None
        assert f"{100 * (one.answers[0].confidence or 0):.1f} %" in page.text
        assert f"{account.raised[0].influence:+.3f}" in page.text
        assert f"{account.lowered[0].influence:+.3f}".replace("-", "−") in page.text
        assert familiarity(one.distance) in page.text
    assert text == render_explanations(model, px, explain(model, px, TOP))
    single = Page(render_explanations(model, px, found[:1]))
    assert f"Why the network says {found[0].answers[0].label}" in single.text
    assert "nav" not in single.counts


def test_names_in_a_sentence_are_broken_where_the_page_ends() -> None:
    page = render_explanations(classifier(), asked(25), explain(classifier(), asked(25), TOP))
    assert re.search(r"^p {[^}]*overflow-wrap: anywhere", page, re.MULTILINE)


def test_answer_that_one_picture_decides_is_pointed_at() -> None:
    options: dict[str, Any] = {**FIXED, "damping": 1e-3}
    model = TangentClassifier(backbone(), **options).fit(X[:N], Y[:N])
    found = explain(model, asked(*range(24, 30)), TOP)
    verdicts = {True: "would be\nthe same, with", False: 'would be\n<b class="strange">'}
    for one in found:
        strongest = one.attributions[0].strongest
        assert strongest is not None
        assert strongest.without is not None
        page = render_explanations(model, asked(*range(24, 30)), [one])
        same = strongest.without.label == one.answers[0].label
        assert verdicts[same] in page
        assert verdicts[not same] not in page


def test_hostile_names_are_text() -> None:
    names = np.array(["<script>alert(1)</script>", 'a"&b', "猫", "plain"])[Y[:N]]
    model = TangentClassifier(backbone(), **FIXED).fit(X[:N], names)
    px = Pictures(asked(25).pixels, None, ['<img src="x">.png'])
    text = render_explanations(model, px, explain(model, px, N))
    page = Page(text)
    assert only_our_script(text)
    assert '<img src="x">.png' in page.text
    assert all(name in page.text for name in ("<script>alert(1)</script>", 'a"&b', "猫"))
    assert only_our_script(render_suspects(model, model.suspects(N)))


def test_many_classes_are_shown_together() -> None:
    model = TangentClassifier(backbone(), **FIXED).fit(X[:28], np.arange(28) % 7)
    (one,) = explain(model, asked(28), 1)
    text = " ".join(Page(render_explanations(model, asked(28), [one])).text.split())
    rest = sum(answer.confidence or 0 for answer in one.answers[5:])
    assert f"2 others{100 * rest:.1f} %" in text
    assert (
        "2 others" not in Page(render_explanations(classifier(), asked(28), explain(classifier(), asked(28), 1))).text
    )


def test_vectors_have_no_thumbnails() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8)).double()
    x = np.random.default_rng(0).normal(size=(30, 4))
    model = TangentClassifier(Backbone(net), **FIXED).fit(x, x[:, 0] * x[:, 1] > 0)
    px = Pictures(torch.from_numpy(x[:2]), None, ["0", "1"])
    page = Page(render_explanations(model, px, explain(model, px, TOP)))
    assert "img" not in page.counts
    assert "True" in page.text
    assert "img" not in Page(render_suspects(model, model.suspects(3))).counts


def test_suspects_page_shows_given_and_suggested_labels() -> None:
    names = np.array(["ant", "bee", "cat", "dog"])
    model = TangentClassifier(backbone(), **FIXED).fit(X[:N], names[Y[:N]])
    suspects = model.suspects(N)
    page = Page(render_suspects(model, suspects))
    assert page.counts["img"] == N
    assert page.alts == [f"{one.id}, given as {one.label}" for one in suspects]
    words, place = page.text.split(), 0
    for one in suspects:
        share = f"{100 * (one.probability or 0):.0f}"
        shown = ["given,", share, "%", "likely", "right", str(one.label), "suggested", str(one.suggestion), one.id]
        place = words.index(f"{one.score:.2f}", place) + 1 + len(shown)
        assert words[place - len(shown) : place] == shown
    assert render_suspects(model, suspects).count("label wrong") == sum(
        (one.probability or 0) < 0.5 for one in suspects
    )
    numbers = regressor(1)
    assert f"{numbers.suspects(1)[0].score:.3g}" in Page(render_suspects(numbers, numbers.suspects(3))).text


def test_page_is_written_whole_or_not(tmp_path: Path) -> None:
    assert write_page("new", tmp_path / "below" / "p.html").read_text() == "new"
    with pytest.raises(StoreError, match=r"cannot write .*p\.html"):
        write_page("x", tmp_path / "below" / "p.html" / "p.html")
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["p.html"]
