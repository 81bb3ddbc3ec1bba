"""The page of the retraining study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.record import markdown_table


def page(results: Mapping[str, Any], name: str, protocol: Mapping[str, str]) -> str:
    """docs/results/retraining.md from the figures."""
    halves, single = results["half_subsets"], results["one_picture"]
    lines = ["# Does exact influence predict real retraining?", "", "## The linearised model", ""]
    exact = [
        {
            "retrained": what,
            "correlation": f"{value['correlation']:.6f}",
            "largest difference": f"{value['largest_relative_difference']:.1e}",
        }
        for what, value in results["exact"].items()
    ]
    lines += [markdown_table(exact, dict.fromkeys(exact[0], "")), ""]
    lines += ["Effects `f - f_without_i` on the scores of the test pictures; differences over the largest effect.", ""]
    lines += ["## Ordinary fine-tuning on random halves", ""]
    table = [
        {"prediction": what, "LDS": f"{value['mean']:.3f} ± {value['standard_error']:.3f}"}
        for what, value in sorted(halves["lds"].items(), key=lambda item: -item[1]["mean"])
    ]
    lines += [markdown_table(table, dict.fromkeys(table[0], "")), ""]
    ceiling = halves["ceiling_between_halves_of_seeds"]["mean"]
    lines += [
        f"Noise ceiling: trainings of the same subsets with other seeds agree to {ceiling:.3f}, so a perfect "
        f"prediction would reach {halves['ceiling_of_a_perfect_prediction']:.3f}. ± is over test pictures. "
        f"{halves['subsets']} subsets, {halves['seeds']} trainings each; margins spread by "
        f"{halves['spread_over_subsets']:.2f} over subsets and by {halves['noise_of_one_training']:.2f} over the seeds "
        f"of one subset; accuracy of the fine-tuned networks {halves['accuracy']:.3f}.",
        "",
        "## Ordinary fine-tuning without one picture",
        "",
    ]
    rows = {"(two sets of trainings)": single["ceiling_between_halves_of_seeds"]} | single["correlation"]
    table = [{"prediction": what} | {kind: f"{v:.3f}" for kind, v in value.items()} for what, value in rows.items()]
    lines += [markdown_table(table, dict.fromkeys(table[0], "")), ""]
    lines += [
        f"Over {len(single['pictures'])} training pictures and all test pictures; {single['seeds']} trainings with and "
        f"without each. Effects spread by {single['spread_of_effects']:.3f}; one pair of trainings is noisy by "
        f"{single['noise_of_one_effect']:.3f}, so that a perfect prediction would reach a Pearson correlation of "
        f"{single['ceiling_of_a_perfect_prediction']:.3f}.",
        "",
        f"![Predicted against real]({name}.png)",
        "",
        "## Protocol",
        "",
    ]
    return "\n".join([*lines, *(f"- {key}: {words}." for key, words in protocol.items())]) + "\n"
