"""The page on what one LQF step costs: `python -m benchmarks.lqf_step.page`."""

from __future__ import annotations

import platform

from benchmarks import record
from benchmarks.study import met, publishing

NAME, BAR, LAYOUTS = "lqf_step", 1.7, ("plain", "channels_last")
STEPS = {
    "fine_tuning": "(a) ordinary fine-tuning: forward, cross-entropy, backward, fused AdamW",
    "lqf": "(b) LQF: `Linearization.step` on the squared loss, fused AdamW on the tangent",
    "func_jvp": "(c) `torch.func.jvp` of the network, squared loss, `backward()` to the tangent, fused AdamW",
}


def publish() -> None:
    """docs/results/lqf_step.md: the verdict first."""
    results = record.load(NAME)
    best, table, less = results["fastest"]["lqf_to_fine_tuning"], [], True
    for layout in LAYOUTS:
        wall, cpu, memory = (results[layout][key] for key in ("seconds", "cpu_seconds", "peak_bytes_above_idle"))
        less &= memory["lqf"] < memory["func_jvp"]
        for name, words in STEPS.items():
            table.append(
                {
                    "layout": layout.replace("_", " "),
                    "step": words,
                    "ms": f"{1e3 * wall[name]:.0f}",
                    "to (a)": f"{wall[name] / wall['fine_tuning']:.2f}",
                    "CPU ms": f"{1e3 * cpu[name]:.0f}",
                    "CPU to (a)": f"{cpu[name] / cpu['fine_tuning']:.2f}",
                    "MiB above idle": f"{memory[name] / 2**20:.0f}",
                }
            )
    parts = {"best": f"{best:.2f}", "met": met(best <= BAR), "less": "less" if less else "NOT less"}
    parts |= {name: str(results[name]) for name in ("batch", "size", "runs")}
    record.write_page(NAME, __file__, parts | {"table": record.markdown_table(table), "machine": platform.machine()})


if __name__ == "__main__":
    publishing(publish, __doc__)
