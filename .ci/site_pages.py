"""The site with what its lessons print and draw: python .ci/site_pages.py [--out DIR] [--workers 2]

Every page is executed from a fresh kernel, without any data set laid out; the outputs go into a copy of the notebooks, nbdev makes the
pages of that copy in `_proc/`, Quarto renders them where it is installed, else smalldocs. The notebooks in git stay without outputs.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sys.executable).parent
LESSONS = sorted((ROOT / "nbs").glob("*.ipynb"))
EXPERIMENTS = sorted((ROOT / "nbs" / "experiments").glob("*.ipynb"))


def execute(book, folder: Path):
    "Run a notebook from a fresh kernel in the empty `folder`, one thread, no data set but those that need none; outputs land in `book`."
    os.environ.update(OMP_NUM_THREADS="1", AE_COURSE_DATA=str(folder.parent / "no data"))
    widgets = {"store_widget_state": False}  # a page has no kernel that a slider could move: its static grid stands beside it
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}, **widgets).execute()
    for cell in book.cells:
        shown = [out for out in cell.get("outputs", []) if "application/vnd.jupyter.widget-view+json" not in out.get("data", {})]
        cell.update({"outputs": shown} if cell.cell_type == "code" else {})
    return book


def executed(path: Path):
    with tempfile.TemporaryDirectory() as folder:
        print(f"executing {path.name}", flush=True)
        return execute(nbformat.read(path, as_version=4), Path(folder))


def pages(books: dict, folder: Path) -> list[Path]:
    "nbdev's pages, in `_proc/`, of the notebooks with the outputs of `books` ({path: executed notebook}); a copy in `folder` is read."
    shutil.copytree(ROOT / "nbs", folder, dirs_exist_ok=True)
    for path, book in books.items():
        nbformat.write(book, folder / path.relative_to(ROOT / "nbs"))
    make = f"from nbdev.serve import proc_nbs\nif __name__ == '__main__': proc_nbs(path={str(folder)!r}, force=True, n_workers=1)"
    subprocess.run([sys.executable, "-c", make], cwd=ROOT, check=True)
    return sorted(p.relative_to(ROOT / "_proc") for p in (ROOT / "_proc").rglob("*.ipynb"))


def for_smalldocs(site: Path) -> None:
    "A copy of `_proc` in `site`, without what only Quarto reads."
    shutil.copytree(ROOT / "_proc", site, dirs_exist_ok=True)
    for page in site.rglob("*.ipynb"):
        page.write_text(re.sub(r'"output-file: [^"]*",?', '"",', page.read_text(encoding="utf-8")), encoding="utf-8")
    config = (site / "_quarto.yml").read_text(encoding="utf-8").splitlines(keepends=True)
    only_quarto = r"math-method|keep-md|commonmark|metadata-files|repo-actions|twitter|open-graph"
    (site / "_quarto.yml").write_text("".join(line for line in config if not re.search(only_quarto, line)), encoding="utf-8")


def render(out: Path) -> None:
    if shutil.which("quarto"):
        subprocess.run(["nbdev_docs"], cwd=ROOT, check=True)  # takes the pages of `_proc` that are up to date
        shutil.copytree(ROOT / "_docs", out, dirs_exist_ok=True)
        return
    print("quarto is not installed here: smalldocs renders the pages")
    with tempfile.TemporaryDirectory() as site:
        for_smalldocs(Path(site))
        subprocess.run([SCRIPTS / "smalldocs", "render"], cwd=site, check=True)
        shutil.copytree(Path(site) / "_site", out, dirs_exist_ok=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "_docs")
    parser.add_argument("--workers", type=int, default=2, help="lessons executed side by side")
    parser.add_argument("--only", nargs="*", help="execute these alone (file stems); the other pages stay without outputs")
    args = parser.parse_args()
    chosen = [path for path in LESSONS if not args.only or path.stem in args.only]
    with ThreadPoolExecutor(args.workers) as pool, tempfile.TemporaryDirectory() as folder:
        pages(dict(zip(chosen, pool.map(executed, chosen))), Path(folder) / "nbs")
        render(args.out)
    print(f"the site: {args.out / 'index.html'}")


if __name__ == "__main__":
    main()
