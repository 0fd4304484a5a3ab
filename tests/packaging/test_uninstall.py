import pytest

pytestmark = pytest.mark.packaging


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_uninstall_leaves_nothing(new_environment, wheel, repo_root, kind):
    environment = new_environment(f"uninstall-{kind}")
    environment.python("pass")
    before = environment.files()
    source = ["--no-index", str(wheel)] if kind == "wheel" else ["-e", str(repo_root)]
    environment.pip("install", "--no-deps", "--no-build-isolation", *source)
    # Uses what was installed, so that compiled files of the hook and the package exist.
    environment.python("import lm_eval.models, harness_ext.cli, interventions.errors")
    assert (environment.site_packages / "sae_steered_autoload.pth").is_file()

    environment.pip("uninstall", "--yes", "sae-steered")

    empty = f"{environment.site_packages.relative_to(environment.folder)}/__pycache__"
    assert environment.files() - before <= {empty}
    out, err = environment.python("import lm_eval.models as m; print('hf' in m.MODEL_MAPPING)")
    assert (out.split(), err) == (["True"], "")
