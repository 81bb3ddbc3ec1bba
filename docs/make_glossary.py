"""Write docs/glossary.md from the table that the library's own pages use: `python docs/make_glossary.py`."""

from __future__ import annotations

from pathlib import Path

from tangentune.reports.glossary import page

if __name__ == "__main__":
    Path(__file__).with_name("glossary.md").write_text(page(), encoding="utf-8")
