"""The page on the tangent kernel of a small network: `python -m benchmarks.ntk_kernel.page`."""

from __future__ import annotations

from benchmarks import record
from benchmarks.study import met, read_arguments, study_parser

NAME, OUTPUTS, BAR, ERROR_BAR = "ntk_kernel", (1, 10), 1.0, 1e-6
WORDS = {
    "vmap": "`vmap(jacrev)`, then one matrix product",
    "vmap_chunk_16": "the same, 16 pictures at a time",
    "vmap_channels_last": "the same, all at once, pictures channels last",
    "tangent_kernel": "`tangent_kernel`, network surveyed before",
    "tangent_kernel_cold": "`survey_rows` and `tangent_kernel`",
}


def publish() -> None:
    """docs/results/ntk_kernel.md: the verdict first."""
    results = record.load(NAME)
    one, ten = (results[f"outputs_{outputs}"] for outputs in OUTPUTS)
    speed, error = one["speed_to_fastest_vmap"], one["relative_error"]["tangent_kernel"]
    table = [
        {
            "outputs": outputs,
            "way": words,
            "ms": f"{1e3 * own['seconds'][name]:.1f}",
            "error": f"{own['relative_error'][name]:.1e}",
        }
        for outputs, own in zip(OUTPUTS, (one, ten), strict=True)
        for name, words in WORDS.items()
    ]
    parts = {
        "speed": f"{speed:.2f}",
        "fast": met(speed >= BAR),
        "cold": f"{one['cold_speed_to_fastest_vmap']:.2f}",
        "error": f"{error:.1e}",
        "exact": met(error <= ERROR_BAR),
        "ten": f"{ten['speed_to_fastest_vmap']:.2f}",
        "table": record.markdown_table(table),
        "runs": results["runs"],
    }
    record.write_page(NAME, __file__, parts)


if __name__ == "__main__":
    read_arguments(study_parser(__doc__))
    publish()
