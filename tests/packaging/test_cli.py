import sys

import pytest

from harness_ext import __version__, cli
from interventions.errors import SpecError


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"sae-steered {__version__}\n"


def test_help_names_every_command_on_stdout(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "usage: sae-steered"),
        (["evalute"], "unknown command 'evalute', did you mean 'evaluate'?"),
        (["xyz", "--help"], "unknown command 'xyz' (commands: "),
        (["--nonsense"], "error"),
    ],
)
def test_wrong_usage_ends_with_2_and_a_message_on_stderr(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help_with_an_example(capsys, name):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    # Once in the usage line, and once as something to type.
    assert f"usage: sae-steered {name}" in out
    assert out.count(f"sae-steered {name} ") >= 2


def test_help_does_not_import_lm_eval_or_torch(repo_root, monkeypatch):
    import subprocess

    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from harness_ext.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'lm_eval', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_root, text=True, capture_output=True, check=True
    )
    assert run.stdout.splitlines()[-1] == "[]"


def test_errors_of_ours_are_one_line_and_exit_code_2(capsys):
    def run(argv):
        raise SpecError(f"layer {argv[0]} is outside 0..29; choose one of them")

    assert cli.report_errors("sae-steered train", run, ["40"]) == 2
    expected = "sae-steered train: error: layer 40 is outside 0..29; choose one of them\n"
    assert capsys.readouterr().err == expected


def test_errors_of_others_are_not_hidden():
    def run(argv):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        cli.report_errors("sae-steered train", run, [])


def test_errors_of_the_system_are_one_line(capsys, tmp_path):
    def missing(argv):
        (tmp_path / "notes.txt").read_text()

    def offline(argv):
        raise OSError("We couldn't connect,\n  and found no copy.")

    for run, told in (
        (missing, f"{tmp_path}/notes.txt: No such file or directory"),
        (offline, "We couldn't connect, and found no copy."),
    ):
        assert cli.report_errors("sae-steered threshold", run, []) == 2
        assert capsys.readouterr().err == f"sae-steered threshold: error: {told}\n"


def test_an_interrupt_is_one_line_even_where_a_library_turns_it_into_an_error(capsys):
    def plain(argv):
        raise KeyboardInterrupt

    def turned(argv):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ModuleNotFoundError("Could not import module 'AutoTokenizer'") from error

    for run in (plain, turned):
        assert cli.report_errors("sae-steered facts", run, []) == 130
        assert capsys.readouterr().err == "sae-steered facts: interrupted\n"


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_exit_code_is_what_the_command_returns(returned, code):
    assert cli.report_errors("x", lambda argv: returned, []) == code


def test_folders_are_found_in_a_checkout(repo_root):
    from harness_ext import paths

    assert paths.tasks_dir() == repo_root / "tasks"
    assert paths.scripts_dir() == repo_root / "scripts"
