"""The page of the retraining study: `python -m benchmarks.retraining.page`; its plot is drawn by the run."""

from __future__ import annotations

from benchmarks import record
from benchmarks.study import publishing

NAME = "retraining"


def publish() -> None:
    """docs/results/retraining.md from the stored figures."""
    results = record.load(NAME)["results"]
    halves, single = results["half_subsets"], results["one_picture"]
    exact = [
        {
            "retrained": what,
            "correlation": f"{value['correlation']:.6f}",
            "largest difference": f"{value['largest_relative_difference']:.1e}",
        }
        for what, value in results["exact"].items()
    ]
    ranked = sorted(halves["lds"].items(), key=lambda item: -item[1]["mean"])
    scores = [{"prediction": what, "LDS": f"{v['mean']:.3f} ± {v['standard_error']:.3f}"} for what, v in ranked]
    rows = {"(two sets of trainings)": single["ceiling_between_halves_of_seeds"]} | single["correlation"]
    pairs = [{"prediction": what} | {kind: f"{v:.3f}" for kind, v in value.items()} for what, value in rows.items()]
    parts = {
        "exact": record.markdown_table(exact),
        "halves": record.markdown_table(scores),
        "singles": record.markdown_table(pairs),
        "ceiling": f"{halves['ceiling_between_halves_of_seeds']['mean']:.3f}",
        "perfect": f"{halves['ceiling_of_a_perfect_prediction']:.3f}",
        "spread": f"{halves['spread_over_subsets']:.2f}",
        "noise": f"{halves['noise_of_one_training']:.2f}",
        "accuracy": f"{halves['accuracy']:.3f}",
        "subsets": halves["subsets"],
        "seeds": halves["seeds"],
        "pictures": len(single["pictures"]),
        "single_seeds": single["seeds"],
        "single_spread": f"{single['spread_of_effects']:.3f}",
        "single_noise": f"{single['noise_of_one_effect']:.3f}",
        "single_perfect": f"{single['ceiling_of_a_perfect_prediction']:.3f}",
    }
    record.write_page(NAME, __file__, parts)


if __name__ == "__main__":
    publishing(publish, __doc__)
