"Packaging, read from settings.ini; the notebooks travel inside the wheel as ae_course/nbs."

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).resolve().parent
config = ConfigParser(interpolation=None)
config.read(here / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]


class BuildWithNotebooks(build_py):
    "Copies lessons, experiments, presets and result tables beside the modules (an editable install reads ../nbs instead)."

    def run(self):
        super().run()
        if not self.editable_mode:
            keep = ("*.ipynb", "*.yaml", "*.csv", "experiments/*.ipynb", "experiments/_text/*.py", "experiments/presets/*.yaml",
                    "experiments/results/*.csv", "experiments/results/SHA256SUMS")  # fmt: skip
            target = Path(self.build_lib) / "ae_course" / "nbs"
            for source in sorted(path for pattern in keep for path in (here / "nbs").glob(pattern)):
                copy = target / source.relative_to(here / "nbs")
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    url=settings["git_url"],
    author=settings["author"],
    license="Apache-2.0",
    keywords=settings["keywords"],
    python_requires=f">={settings['min_python']}",
    packages=find_packages(include=["ae_course", "ae_course.*"]),
    install_requires=settings["requirements"].split(),
    extras_require={key.removesuffix("_requirements"): settings[key].split() for key in settings if key.endswith("_requirements")},
    entry_points={"console_scripts": settings["console_scripts"].split()},
    cmdclass={"build_py": BuildWithNotebooks},
    zip_safe=False,
)
