"""The page of the picture sets, and samples of them: `python -m benchmarks.picture_sets.page`; all must be fetched."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from benchmarks import record
from benchmarks.picture_sets.archives import ARCHIVES
from benchmarks.picture_sets.sets import SETS, PictureSet, read
from benchmarks.study import publishing

# Sets whose licence lets samples stand here; solar_cells is not for trade, deep_sky has many authors, stamps are GPL.
LINES = (("animals", "digits", "letters"), ("clip_art", "furniture"))
TILE, GAP, WIDTH = 34, 16, 27  # pixels, pixels, tiles in a line


def publish() -> None:
    """docs/results/sets.md and docs/images/sets.jpg."""
    data = {name: read(name) for name in SETS}
    folder = record.RESULTS.parent / "images"
    folder.mkdir(exist_ok=True)
    sheet([{name: data[name] for name in line} for line in LINES]).save(folder / "sets.jpg", quality=78)
    rows = [line(name, own) for name, own in data.items()]
    used = [ARCHIVES[package] for package in sorted({p for recipe in SETS.values() for p in recipe.archives})]
    files = [{"package": str(own), "MB": own.megabytes, "sha256": f"`{own.sha256}`"} for own in used]
    notes = "\n".join(
        f"- **{name}** ({', '.join(data[name].names)}). {recipe.licence}. Beware: {recipe.beware}."
        for name, recipe in SETS.items()
    )
    parts = {"sets": record.markdown_table(rows), "files": record.markdown_table(files), "notes": notes}
    record.write_page("sets", __file__, parts)


def line(name: str, data: PictureSet) -> dict[str, object]:
    """One set in the table."""
    counts = np.bincount(data.labels)
    return {
        "set": name,
        "what it shows": SETS[name].shows,
        "package": ", ".join(str(ARCHIVES[package]) for package in SETS[name].archives),
        "classes": len(data.names),
        "pictures": f"{len(data.labels):,} of {data.found:,}",
        "a class": f"{counts.min()} to {counts.max()}" if counts.min() < counts.max() else f"{counts.min()}",
        "px": data.pictures.shape[1],
    }


def sheet(lines: list[dict[str, PictureSet]]) -> Image.Image:
    """Random pictures, a row a class, several sets side by side in each line."""
    parts = []
    for sets in lines:
        across = WIDTH // len(sets)
        page = Image.new("RGB", (WIDTH * TILE + GAP * (len(sets) - 1), 10 * TILE + GAP), "white")
        page = page.crop((0, 0, page.width, max(len(own.names) for own in sets.values()) * TILE + GAP))
        for i, (name, own) in enumerate(sets.items()):
            left, rng = i * (across * TILE + GAP), np.random.default_rng(0)
            ImageDraw.Draw(page).text((left, 2), name, fill="black")
            for k in range(len(own.names)):
                for j, row in enumerate(rng.permutation(np.flatnonzero(own.labels == k))[:across]):
                    tile = Image.fromarray(own.pictures[row]).resize((TILE - 2, TILE - 2), Image.Resampling.LANCZOS)
                    page.paste(tile, (left + j * TILE, k * TILE + GAP))
        parts.append(page)
    whole = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), "white")
    for i, page in enumerate(parts):
        whole.paste(page, (0, sum(p.height for p in parts[:i])))
    return whole


if __name__ == "__main__":
    publishing(publish, __doc__)
