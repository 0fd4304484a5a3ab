import configparser
import zipfile

import pytest

from harness_ext import autoload

pytestmark = pytest.mark.packaging


@pytest.fixture(scope="module")
def members(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.getinfo(name).file_size for name in archive.namelist()}


def test_nothing_of_ours_is_called_tasks_or_scripts_in_site_packages(members):
    tops = {name.split("/")[0] for name in members}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "harness_ext",
        "interventions",
        "_sae_steered_autoload.py",
        "sae_steered_autoload.pth",
        "sae_steered_autoload.start",
    }


def test_every_tracked_file_of_the_four_folders_is_in_the_wheel(members, repo_root):
    expected = set()
    for folder, target in {
        "harness_ext": "harness_ext",
        "interventions": "interventions",
        "tasks": "harness_ext/tasks",
        "scripts": "harness_ext/scripts",
    }.items():
        for path in (repo_root / folder).rglob("*"):
            hook = path.stem in ("sae_steered_autoload", "_sae_steered_autoload")
            unwanted = path.suffix in (".sh", ".pyc") or hook or path.is_dir()
            if not unwanted:
                expected.add(f"{target}/{path.relative_to(repo_root / folder).as_posix()}")
    inside = {name for name in members if name.startswith(("harness_ext/", "interventions/"))}
    assert inside == expected


def test_entry_points_and_hook_name_the_same_model_and_tasks(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        points = configparser.ConfigParser()
        points.read_string(archive.read(name).decode())
    assert dict(points["lm_eval.models"]) == {autoload.MODEL_NAME: autoload.MODEL_TARGET}
    assert dict(points["lm_eval.tasks"]) == {autoload.MODEL_NAME: "harness_ext.tasks"}
    assert dict(points["console_scripts"]) == {"sae-steered": "harness_ext.cli:main"}


def test_the_registered_path_is_the_class_itself_and_no_reexport():
    module, name = autoload.MODEL_TARGET.split(":")
    cls = getattr(__import__(module, fromlist=[name]), name)
    # lm-eval upgrades the string to the class only if the two agree.
    assert f"{cls.__module__}:{cls.__name__}" == autoload.MODEL_TARGET


def test_pth_and_start_file_call_the_same_function(repo_root):
    folder = repo_root / "harness_ext"
    (line,) = (folder / "sae_steered_autoload.pth").read_text().splitlines()
    (start,) = (folder / "sae_steered_autoload.start").read_text().splitlines()
    module, function = start.split(":")
    assert line == f"import {module}; {module}.{function}()"
