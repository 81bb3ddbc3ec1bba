"""Run the notebooks of docs/tutorials anew, and keep what they print: `python docs/run_tutorials.py [NAME ...]`.

Each runs in an empty folder, as a reader's would. Needs the extra `docs`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parent / "tutorials"
# Names of this machine and times of the run are nobody's business, and would differ at every run.
KEPT = {
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}


def run(path: Path) -> None:
    """One notebook, with outputs as they come; an error in a cell ends it, and the file stays as it was."""
    notebook = nbformat.read(path, as_version=4)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for `!tangentune ...`
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    notebook.metadata = nbformat.NotebookNode(KEPT)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if (
            "outputs" in cell
        ):  # less what tqdm says of widgets that are not installed; the tests make errors of warnings
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for one in sorted(TUTORIALS.glob("*.ipynb")):
        if not sys.argv[1:] or one.stem in sys.argv[1:]:
            run(one)
