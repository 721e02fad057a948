"""The command line itself: what it prints, where, and with which exit status."""

import json
import subprocess
import sys

import pytest

import chaos_ext
from chaos_ext import cli
from chaos_ext.errors import UnsupportedError
from chaos_ext.experiments import fig1, options


def status(*arguments):
    try:
        return cli.main(list(arguments))
    except SystemExit as end:
        return end.code


def test_info_as_json_is_build_info(capsys):
    assert status("info", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(chaos_ext.build_info()))


def test_info_names_every_entry_on_a_line_of_its_own(capsys):
    assert status("info") == 0
    lines = capsys.readouterr().out.splitlines()
    info = chaos_ext.build_info()
    assert [line.split()[0] for line in lines] == list(info)
    assert f"{info['version']}" in lines[0]
    cuda = next(line for line in lines if line.startswith("cuda "))
    assert cuda.split()[1] == ("yes" if info["cuda"] else "no")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (False, "no"),
        (None, "none"),
        ([], "none"),
        (["sm_80", "sm_90"], "sm_80, sm_90"),
        ("x", "x"),
        (3, "3"),
    ],
)
def test_values_are_readable(value, text):
    assert cli._readable(value) == text


@pytest.mark.parametrize("options", [["-v", "info"], ["info", "-v"], ["-v", "info", "-v"], ["info"]])
def test_verbose_may_stand_before_or_after_the_command(options):
    assert cli._parser().parse_args(options).verbose == ("-v" in options)
    nested = ["reproduce", "fig1"] if options == ["info"] else ["reproduce", "fig1", "--verbose"]
    assert cli._parser().parse_args(nested).verbose == ("-v" in options)


def test_version(capsys):
    assert status("--version") == 0
    assert capsys.readouterr().out.strip() == f"chaos-ext {chaos_ext.__version__}"


@pytest.mark.parametrize("arguments", [["-v"], ["reproduce"], ["reproduce", "fig99"], ["nonsense"], ["info", "--xml"]])
def test_incomplete_or_unknown_commands_are_usage_errors(arguments, capsys):
    assert status(*arguments) == 2
    assert "error" in capsys.readouterr().err


def test_without_a_command_it_shows_what_it_can_do(capsys):
    assert status() == 0
    text = capsys.readouterr().out
    shown = [line.split()[1] for line in text.splitlines() if line.startswith("  chaos-ext ")]
    assert set(shown) == {"analyze", "reproduce", "report", "doctor", "info"}
    for line in text.splitlines():
        if line.startswith("  chaos-ext ") and "FOLDER" not in line and "my_module" not in line:
            command = line.split("  ")[1].split()[1:]
            if "--help" not in command:
                assert cli._parser().parse_args(command).command


def test_help_names_every_option_with_its_default(capsys):
    assert status("reproduce", "fig1", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    options = (
        "data model activation epochs lr batch-size momentum seeds prune k order device dtype root out resume quick"
    )
    assert all(f"--{option}" in text for option in options.split())
    for default in ("digits", "40", "0.001", "(default: 8)", "42", "float64", "top_abs"):
        assert default in text


def test_defaults_are_the_papers_settings():
    args = cli._parser().parse_args(["reproduce", "fig1"])
    assert (args.epochs, args.lr, args.batch_size, args.momentum) == (40, 1e-3, 8, 0)
    assert (args.data, args.model, args.activation, args.seeds) == ("digits", "mlp", "relu", (42,))
    assert args.prune == ("chaotic", "negative", "positive")
    assert (args.k, args.order, args.device, args.dtype) == (None, "top_abs", "cpu", "float64")
    assert not args.resume
    assert not args.quick


@pytest.mark.parametrize(
    ("error", "expected"),
    [(UnsupportedError("tied weights"), 1), (OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 130)],
)
def test_failures_are_one_line_and_a_status(error, expected, monkeypatch, capsys):
    def fail(args, parser):
        raise error

    monkeypatch.setattr(fig1, "run", fail)
    assert status("reproduce", "fig1") == expected
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("chaos-ext: ")


def test_runs_as_a_module(tmp_path):
    """From another folder: in a source tree ``-m`` would find the sources instead of what was installed."""
    command = [sys.executable, "-m", "chaos_ext", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, f"chaos-ext {chaos_ext.__version__}")


def test_package_and_command_need_no_optional_package(tmp_path):
    """A module that is None in sys.modules raises ImportError like one that is not installed."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('matplotlib', 'tqdm', 'sklearn', 'torchvision', 'scipy')));"
        "import chaos_ext; from chaos_ext import cli; sys.exit(cli.main(['info']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["version", chaos_ext.__version__]


AT_ONCE = [["--help"], ["--version"], ["reproduce", "--help"], ["reproduce", "fig1", "--help"], ["info", "--help"], []]
AT_ONCE += [["nonsense"], ["reproduce", "fig99"], ["reproduce", "fig1", "--epochs", "0"], ["info", "--xml"]]


@pytest.mark.parametrize("arguments", AT_ONCE, ids=" ".join)
def test_help_and_usage_errors_do_not_wait_for_torch(arguments, tmp_path):
    code = (
        "import sys\nfrom chaos_ext import cli\nstatus = None\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit as end:\n    status = end.code\n"
        "slow = {'torch', 'numpy', 'chaos_ext._ops', 'chaos_ext._contents'} & set(sys.modules)\n"
        "print('\\n', status, sorted(slow))"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    wrong = bool(arguments) and not {"--help", "--version"} & set(arguments)
    ended = 2 if wrong else 0 if arguments else None  # without a command main returns
    assert done.stdout.splitlines()[-1].strip() == f"{ended} []", done.stderr


def test_options_offer_what_there_is():
    assert options.DATA == chaos_ext.data.NAMES
    assert tuple(chaos_ext.models.MODELS) == options.MODELS
