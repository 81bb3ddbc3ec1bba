"""Page of the study of what fits cost as pictures grow: `python -m benchmarks.scale.page`."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.record import Row, markdown_table
from benchmarks.scale.many_rows import NAME as MANY_ROWS
from benchmarks.scale.run import NAME
from benchmarks.scale.spans import NAME as SPANS
from benchmarks.study import publishing

LEFT_OUT = {"leave-one-out": "loo_accuracy", "its squared error": "loo_error"}
SHOWN = {
    "numbers": ("numbers in a row", ",.0f"),
    "seconds": ("seconds", ".0f"),
    "error": ("squared error", ".3f"),
    "loo_error": ("leave-one-out error", ".3f"),
    "accuracy": ("accuracy", ".3f"),
}


def publish() -> None:
    """docs/results/scale.md, and its plot."""
    found = record.load(NAME)
    costs = sorted(found.get("costs", []), key=lambda row: row["pictures"])
    pairs: dict[tuple[str, int], dict[str, Row]] = {}
    for row in found["choices"]:
        pairs.setdefault((row["key"]["set"], row["key"]["seed"]), {})[row["key"]["chosen_on"]] = row
    both = {key: pair for key, pair in pairs.items() if len(pair) == 2}
    parts = {"costs": markdown_table([cost(row) for row in costs])}
    parts["choices"] = markdown_table([compared(*key, pair["all"], pair["a part"]) for key, pair in both.items()])
    parts["directions"] = markdown_table(directions(found.get("directions", [])))
    spanned = sorted(found.get("landmarks", []), key=lambda row: (row["key"]["set"], row["pictures"], row["landmarks"]))
    parts["landmarks"] = markdown_table([on_landmarks(row) for row in spanned])
    probes = sorted(found.get("probes", []), key=lambda row: row["pictures"])
    for name, own, seed in (("part", ("moved", "tuned_part"), 0), ("whole", ("whole", "tuned"), 100)):
        rows = [row for section in own for row in found.get(section, [])]
        known = [row for row in probes if row["pictures"] == rows[0]["pictures"] and row["key"]["seed"] == seed]
        lines = [beside(row) for row in rows + known]
        titles = dict.fromkeys(title for line in lines for title in line)
        parts[name] = markdown_table([{title: line.get(title, "") for title in titles} for line in lines])
    parts["rows"] = markdown_table([many_rows(row) for row in record.load(MANY_ROWS).get("rows", [])])
    many = [row for row in spanned if row["key"]["set"] == "CIFAR-10" and row["landmarks"] == 1000]
    many += [row for row in found.get("whole", []) if not row["outer_steps"]]
    tuned = [*found.get("tuned", []), *found.get("tuned_part", [])]
    drawn = [row for row in probes if row["key"]["seed"]]
    parts["spans"] = markdown_table([line for row in record.load(SPANS)["rows"] for line in spans(row)])
    record.write_page(NAME, __file__, parts, {NAME: plot(costs, many, drawn, tuned)})


def share(row: Row, stage: str) -> float:
    """Of the seconds of a fit, what a stage took."""
    return sum(one["seconds"] for one in row["stages"] if one["stage"] == stage) / row["seconds"]


def cost(row: Row) -> Row:
    """One line of the table of costs."""
    spent = row["seconds"] / row["pictures"]
    out = {"pictures": f"{row['pictures']:,}", "seconds": f"{row['seconds']:.0f}"}
    out |= {"as passes": f"{spent / row['tuning_seconds_a_picture']:.1f}"}
    out |= {"as epochs of fine-tuning": f"{spent / row['epoch_seconds_a_picture']:.1f}"}
    out |= {"selection": f"{share(row, 'selection'):.0%}"}
    out |= {"peak GiB": f"{row['seen_bytes'] / 2**30:.1f}", "promised s": f"{row['planned_seconds']:.0f}"}
    out |= {"promised GiB": f"{row['planned_bytes'] / 2**30:.1f}"}
    return out | {"accuracy": f"{row['accuracy']:.3f}", "leave-one-out": f"{row['loo_accuracy']:.3f}"}


def on_landmarks(row: Row) -> Row:
    """One line of the table of fits on landmarks."""
    out = {"set": row["key"]["set"], "landmarks": f"{row['landmarks']:,}" if row["landmarks"] else "all (dual)"}
    return out | cost(row) | {"squared error": f"{row['error']:.3f}"}


def spans(row: Row) -> list[Row]:
    """Of one set, the shares of the kernel's gain over the probe that are kept, by how directions are chosen."""
    gain, counts = row["probe"] - row["kernel"], list(row["kept"])
    kept = {count: {way: np.array(errors) for way, errors in row["kept"][count].items()} for count in counts}
    lines = list[Row]()
    for way in kept[counts[0]]:
        line: Row = {"set": row["key"]["set"], "directions": way}
        for count in counts:
            shares = (row["probe"] - kept[count][way]) / gain
            spread = f" ± {shares.std(ddof=1) / len(shares) ** 0.5:.0%}" if len(shares) > 1 else ""
            line[f"{int(count):,}"] = f"{shares.mean():.0%}{spread}"
        lines.append(line)
    return lines


def many_rows(row: Row) -> Row:
    """The line of rows that are streamed."""
    spent, rates = row["seconds"], row["rate_of_product"]
    out: Row = {"rows": f"{row['key']['rows']:,}", "peak GiB": f"{row['peak_bytes'] / 2**30:.1f}"}
    out |= {name: f"{spent[name]:.0f} s" for name in ("sums", "factor", "leave-one-out")}
    return out | {f"{name}, of a product's rate": f"{rate:.0%}" for name, rate in rates.items()}


def beside(row: Row) -> Row:
    """One line of a table of fits beside ordinary fine-tuning, on the same pictures."""
    key = row["key"]
    tuned = (
        f"fine-tuning, {key['epochs']} epoch{'s' * (key['epochs'] > 1)} at {key['rate']:g}" if "epochs" in key else ""
    )
    tuned = "linear probe" if key.get("probe") else tuned
    steps = f"moved {row['outer_steps']:,} steps" if row.get("outer_steps") else "pre-trained weights"
    out: Row = {"method": tuned or f"tangent kernel, {steps}"}
    out |= {"seconds": f"{row.get('cpu_seconds', row['seconds']):,.0f}", "peak GiB": f"{row['seen_bytes'] / 2**30:.1f}"}
    out |= {"accuracy": f"{row['accuracy']:.3f}", "squared error": f"{row['error']:.3f}"}
    own = {name: f"{row[what]:.3f}" for name, what in LEFT_OUT.items() if not tuned}
    if "forget_seconds" in row:
        own |= {f"{name} {key['edited']}": f"{row[f'{name}_seconds']:.1f} s" for name in ("relabel", "forget")}
    return out | own


def directions(rows: list[Row]) -> list[Row]:
    """The table of what the metric keeps: means over draws, beside all directions."""
    out = list[Row]()
    for name, count in dict.fromkeys((row["key"]["set"], row["key"]["a_class"]) for row in rows):
        own = [row for row in rows if (row["key"]["set"], row["key"]["a_class"]) == (name, count)]
        for kept in sorted({row["key"]["kept"] for row in own}, reverse=True):
            some = [row for row in own if row["key"]["kept"] == kept]
            mean = {what: float(np.mean([row[what] for row in some])) for what in some[0] if what in SHOWN}
            line: Row = {"set": name, "pictures": f"{some[0]['pictures']:,}", "draws": len(some), "kept": f"{kept:g}"}
            out.append(line | {title: f"{mean[what]:{spec}}" for what, (title, spec) in SHOWN.items()})
    return out


def compared(name: str, seed: int, whole: Row, part: Row) -> Row:
    """One line of the table of choices."""
    out: Row = {"set": name, "seed": seed}
    for title, what, spec in (("seconds", "seconds", ".0f"), ("squared error", "error", ".3f")):
        out[title] = f"{whole[what]:{spec}} to {part[what]:{spec}}"
    out["leave-one-out error"] = f"{whole['loo_error']:.3f} to {part['loo_error']:.3f}"
    out["accuracy"] = f"{whole['accuracy']:.3f} to {part['accuracy']:.3f}"
    return out | {"selection": f"{share(whole, 'selection'):.0%} to {share(part, 'selection'):.0%}"}


def plot(costs: list[Row], spanned: list[Row], probes: list[Row], tuned: list[Row]) -> Figure:
    """Processor seconds and peak memory against pictures."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(5.5, 5.6), layout="constrained", sharex=True)
    lines = {
        "the kernel of all pictures": (costs, "o-"),
        "1,000 landmarks": (spanned, "s-"),
        "linear probe": (probes, "^-"),
    }
    for label, (rows, style) in lines.items():
        counts = [row["pictures"] for row in rows]
        above.loglog(counts, [row.get("cpu_seconds", row["seconds"]) for row in rows], style, label=label)
        below.semilogx(counts, [row["seen_bytes"] / 2**30 for row in rows], style)
    counts = sorted({row["pictures"] for rows, _ in lines.values() for row in rows})
    an_epoch = float(np.median([row["epoch_seconds_a_picture"] for row in costs]))
    for count, style in ((1, ":"), (15, "--")):
        words = f"{count} epoch{'s' * (count > 1)} of fine-tuning"
        above.loglog(counts, [count * an_epoch * n for n in counts], style, color="gray", label=words)
    counted, memory = zip(*((row["pictures"], row["seen_bytes"] / 2**30) for row in tuned), strict=True)
    below.plot(counted, memory, "x", color="gray", label="fine-tuning, measured")
    above.plot(counted, [row["cpu_seconds"] for row in tuned], "x", color="gray")
    above.set(ylabel="processor seconds")
    below.set(xlabel="pictures", ylabel="peak memory, GiB", ylim=(0, None))
    below.set_xticks(counts, [f"{count:,}" for count in counts], rotation=30)
    below.minorticks_off()
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize="small")
    return figure


if __name__ == "__main__":
    publishing(publish, __doc__)
