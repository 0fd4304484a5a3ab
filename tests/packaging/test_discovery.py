import json
import re

import pytest

pytestmark = pytest.mark.packaging

MODELS = """
import json
from lm_eval.api.registry import get_model, model_registry
import lm_eval.models
names = sorted(model_registry.keys())
ours = model_registry._objs.get("sae_steered")
classes = {n: f"{get_model(n).__module__}:{get_model(n).__name__}" for n in ("hf", "dummy")}
print(json.dumps({"names": names, "ours": str(ours), "classes": classes,
                  "map": lm_eval.models.MODEL_MAPPING}))
"""

TASKS = """
import json
from lm_eval.tasks import TaskManager
manager = TaskManager(include_defaults=False)
print(json.dumps([manager.all_tasks, manager.all_subtasks, manager.include_path]))
"""


def models(environment, **env):
    return json.loads(environment.python(MODELS, **env)[0])


def tasks(environment, **env):
    return json.loads(environment.python(TASKS, **env)[0])


def test_model_is_found_and_the_built_in_ones_are_untouched(installed, bare):
    with_ours, without = models(installed), models(bare)
    assert with_ours["ours"] == "harness_ext.model:SAESteeredLM"
    assert set(with_ours["names"]) - set(without["names"]) == {"sae_steered"}
    assert set(without["names"]) - set(with_ours["names"]) == set()
    assert with_ours["classes"] == without["classes"]
    assert with_ours["map"] == without["map"]


def test_model_class_loads_through_the_registry(installed):
    code = 'from lm_eval.api.registry import get_model; print(get_model("sae_steered").__name__)'
    assert installed.python(code)[0].split() == ["SAESteeredLM"]


def test_task_folder_is_found(installed):
    names, subtasks, include_path = tasks(installed)
    assert {"steer_arith", "steer_arith_hint", "steer_gsm8k", "steer_gsm8k_hint"} <= set(subtasks)
    assert all(re.fullmatch(r"steer(_.+)?", name) for name in names), names
    assert include_path is None


def test_users_own_task_of_the_same_name_wins(from_wheel, tmp_path):
    (tmp_path / "mine.yaml").write_text("task: steer_arith\ndataset_path: json\n")
    code = (
        "import sys\nfrom lm_eval.tasks import TaskManager\n"
        f"manager = TaskManager(None, {str(tmp_path)!r}, False)\n"
        "print(manager.task_index['steer_arith'].yaml_path, manager.include_path, sep='|')\n"
        "print('steer_gsm8k' in manager.all_tasks)"
    )
    out, _ = from_wheel.python(code)
    assert out.splitlines() == [f"{tmp_path / 'mine.yaml'}|{tmp_path}", "True"]


def test_environment_variable_switches_discovery_off(from_wheel):
    code = (
        "import json, lm_eval.models as m; from lm_eval.api.registry import model_registry as r\n"
    )
    code += "print(json.dumps([sorted(r.keys()), sorted(m.MODEL_MAPPING)]))"
    registered, built_in = json.loads(from_wheel.python(code, SAE_STEERED_AUTOLOAD="0")[0])
    assert registered == built_in
    assert tasks(from_wheel, SAE_STEERED_AUTOLOAD="0")[0] == []


@pytest.mark.parametrize(
    ("value", "finders"), [("0", 0), ("false", 0), (" OFF", 0), ("no", 0), ("1", 1), ("", 1)]
)
def test_values_of_the_switch(from_wheel, value, finders):
    code = "import sys; print(sum(hasattr(f, '_sae_steered_autoload') for f in sys.meta_path))"
    assert from_wheel.python(code, SAE_STEERED_AUTOLOAD=value)[0].split() == [str(finders)]


def test_commands_of_ours_work_where_the_hook_is_switched_off(installed):
    code = "import harness_ext.autoload as a; a.install()\n"
    out, _ = installed.python(code + TASKS, SAE_STEERED_AUTOLOAD="0")
    assert "steer_arith" in json.loads(out)[0]
    out, _ = installed.python("import lm_eval.models\n" + code + MODELS, SAE_STEERED_AUTOLOAD="0")
    assert "sae_steered" in json.loads(out)["names"]


def test_interpreter_start_loads_one_small_module(from_wheel, bare):
    code = "import sys; print(*sys.modules)"
    loaded = {name: set(env.python(code)[0].split()) for name, env in
              {"ours": from_wheel, "bare": bare}.items()}  # fmt: skip
    assert loaded["ours"] - loaded["bare"] == {"_sae_steered_autoload"}


def test_running_twice_installs_once(from_wheel):
    code = """
import sys, _sae_steered_autoload as hook
import runpy
hook.install(); hook.install(force=True)
runpy.run_path(hook.__file__)["install"]()
import harness_ext.autoload; harness_ext.autoload.install()
from lm_eval.tasks.manager import TaskManager
harness_ext.autoload.install(); hook.install()
finders = [f for f in sys.meta_path if getattr(f, "_sae_steered_autoload", False)]
print(len(finders), hasattr(TaskManager.__init__, "__wrapped__"),
      hasattr(TaskManager.__init__.__wrapped__, "__wrapped__"))
"""
    assert from_wheel.python(code)[0].split() == ["1", "True", "False"]


def test_broken_installation_warns_and_leaves_lm_eval_working(from_wheel, tmp_path):
    (tmp_path / "harness_ext").mkdir()
    (tmp_path / "harness_ext" / "__init__.py").write_text("raise OSError('disk gone')")
    code = "from lm_eval.api.registry import get_model; print(get_model('dummy').__name__)"
    out, err = from_wheel.python(code, PYTHONPATH=str(tmp_path))
    assert out.split() == ["DummyLM"]
    assert "OSError: disk gone" in err
    assert "SAE_STEERED_AUTOLOAD=0" in err


NEWER = {
    "__init__.py": "",
    "api/__init__.py": "",
    "api/registry.py": """
class Registry(dict):
    def register(self, name, target): self[name] = target
model_registry = Registry()
{reader}
""",
    "models/__init__.py": "",
    "tasks/__init__.py": "",
    "tasks/manager.py": """
{reader}
class TaskManager:
    def __init__(self, verbosity=None, include_path=None, include_defaults=True): pass
""",
}
REPORT = """
import lm_eval.models, lm_eval.tasks.manager as m
from lm_eval.api.registry import model_registry
print(dict(model_registry), hasattr(m.TaskManager.__init__, "__wrapped__"))
"""


@pytest.fixture
def fake_lm_eval(tmp_path):
    """Write the parts of lm-eval that the hook touches, with or without entry-point scanning."""

    def make(scans: bool) -> str:
        readers = {
            "api/registry.py": "def load_plugins(): pass",
            "tasks/manager.py": "def discover_plugin_task_paths(): pass",
        }
        for name, text in NEWER.items():
            path = tmp_path / "lm_eval" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("{reader}", readers.get(name, "") if scans else ""))
        return str(tmp_path)

    return make


@pytest.mark.parametrize(
    ("scans", "expected"),
    [(True, "{} False"), (False, "{'sae_steered': 'harness_ext.model:SAESteeredLM'} True")],
)
def test_hook_steps_aside_where_lm_eval_scans_entry_points(
    installed, fake_lm_eval, scans, expected
):
    out, err = installed.python(REPORT, PYTHONPATH=fake_lm_eval(scans))
    assert out.strip() == expected, err


def table_names(text):
    return {cell for cell in re.findall(r"^\|([A-Za-z0-9_.\-+]+) *\|", text, re.MULTILINE)}


@pytest.mark.slow
def test_lm_eval_lists_our_tasks_and_every_built_in_one(from_wheel, from_checkout):
    # Each builds lm-eval's index of some 14,000 entries; together they take the time of one.
    commands = {
        "hook": from_wheel.start(from_wheel.script("python"), "-m", "lm_eval", "ls", "tasks"),
        "off": from_wheel.start(
            from_wheel.script("python"), "-m", "lm_eval", "ls", "tasks", SAE_STEERED_AUTOLOAD="0"
        ),
        "main": from_checkout.start(
            from_checkout.script("python"), "-m", "harness_ext", "ls", "tasks",
            SAE_STEERED_AUTOLOAD="0",
        ),
    }  # fmt: skip
    results = {name: process.communicate(timeout=600) for name, process in commands.items()}
    assert {name: process.returncode for name, process in commands.items()} == {
        "hook": 0,
        "off": 0,
        "main": 0,
    }, results
    names = {name: table_names(out) for name, (out, _) in results.items()}
    ours = set(tasks(from_wheel)[0])
    assert len(names["off"]) > 5000
    assert ours
    assert names["hook"] == names["main"] == names["off"] | ours
    assert not names["off"] & ours
    assert "overrides existing" not in results["hook"][1]
