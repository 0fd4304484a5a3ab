"""Fresh virtual environments that see the big dependencies of the test environment.

They are linked by a path line in a `.pth` file, which puts the folder on `sys.path` without
running the `.pth` files in it: torch and lm-eval are there, an installed sae-steered is not
active. Nothing is downloaded.
"""

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest


def clean_environment(**extra: str) -> dict[str, str]:
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "SAE_STEERED_AUTOLOAD")
    env = {key: value for key, value in os.environ.items() if key not in dropped}
    return {**env, "HF_HUB_OFFLINE": "1", **extra}


@dataclass(frozen=True)
class Environment:
    folder: Path

    @property
    def site_packages(self) -> Path:
        (found,) = self.folder.glob("lib/python3*/site-packages")
        return found

    def script(self, name: str) -> str:
        return str(self.folder / "bin" / name)

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            # Not the checkout, whose folders would be found before the installed ones.
            cwd=self.folder,
            env=clean_environment(**env),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *command: str, **env: str) -> tuple[str, str]:
        process = self.start(*command, **env)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, f"{command} ended with {process.returncode}:\n{out}\n{err}"
        return out, err

    def python(self, code: str, **env: str) -> tuple[str, str]:
        return self.run(self.script("python"), "-c", code, **env)

    def pip(self, *arguments: str) -> None:
        python = self.script("python")
        self.run(sys.executable, "-m", "pip", "--python", python, "--quiet", *arguments)

    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}


@pytest.fixture(scope="session")
def new_environment(tmp_path_factory):
    def make(name: str) -> Environment:
        folder = tmp_path_factory.mktemp(name) / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        environment = Environment(folder)
        link = environment.site_packages / "zz_dependencies.pth"
        link.write_text(sysconfig.get_paths()["purelib"] + "\n")
        return environment

    return make


@pytest.fixture(scope="session")
def wheel(tmp_path_factory, repo_root) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(repo_root)],
        check=True,
        env=clean_environment(),
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def bare(new_environment) -> Environment:
    return new_environment("bare")


@pytest.fixture(scope="session")
def from_wheel(new_environment, wheel) -> Environment:
    environment = new_environment("wheel")
    environment.pip("install", "--no-deps", "--no-index", str(wheel))
    return environment


@pytest.fixture(scope="session")
def from_checkout(new_environment, repo_root) -> Environment:
    environment = new_environment("editable")
    environment.pip("install", "--no-deps", "--no-build-isolation", "-e", str(repo_root))
    return environment


@pytest.fixture(params=["from_wheel", "from_checkout"])
def installed(request) -> Environment:
    return request.getfixturevalue(request.param)
