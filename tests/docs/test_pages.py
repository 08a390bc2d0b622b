"""README and docs: no broken link, and every command and call in them is one that the project takes."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

import finetune
from analysis.figures.plots_probe import layers_svg, property_lines
from finetune.cli import SUBCOMMANDS, parser_of
from finetune.commands.train import parse_argv
from finetune.config import KNOBS, TrialConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
         ROOT / "docs" / "results" / "README.md"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def commands(page: Path) -> list[list[str]]:
    """What a shell would see, a list per command line; `[--option]` is taken as given."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(re.sub(r" \[(--[^\]]+)\]", r" \1", line), comments=True) for line in lines]
    return [words for words in found if words]


def problem(words: list[str]) -> str | None:
    """What is wrong with a command, or None; of other programs' only what they call of ours."""
    words = words[:words.index(">")] if ">" in words else words
    while words and "=" in words[0]:
        words = words[1:]
    if "-m" in words and words[0] != "finetune":
        module, rest = words[words.index("-m") + 1], words[words.index("-m") + 2:]
        if module == "venv":
            return None
        if importlib.util.find_spec(module) is None:
            return f"no module {module}"
        words = {"finetune.train": ["finetune", "train", *rest], "finetune": ["finetune", *rest]}.get(module, [])
    if words[:1] == ["make"]:
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        return None if words[1] in targets else f"make has no {words[1]}"
    if words[:1] != ["finetune"]:
        return None
    return wrong_options(words[1], words[2:])


def wrong_options(name: str, rest: list[str]) -> str | None:
    try:
        if name == "train":
            TrialConfig.from_mapping(parse_argv(rest)[0])
        elif name not in SUBCOMMANDS:
            return f"no command {name}"
        else:
            args = parser_of(name).parse_args(rest)
            given = [text.partition("=")[0] for text in getattr(args, "overrides", []) if isinstance(text, str)]
            return next((f"--set {knob}: no such knob" for knob in given if knob not in KNOBS), None)
    except (finetune.FinetuneError, SystemExit) as error:
        return str(error) or "refused"
    return None


def calls(source: str) -> list[str]:
    """What is wrong with the calls of `finetune.X(…)` in a piece of Python."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name) and node.func.value.id == "finetune"):
            continue
        if node.func.attr not in finetune.__all__:
            wrong.append(f"finetune.{node.func.attr} does not exist")
            continue
        taken = inspect.signature(getattr(finetune, node.func.attr)).parameters
        known = {*taken, *(KNOBS if "knobs" in taken else ())}
        wrong += [f"{node.func.attr}({word.arg}=…)" for word in node.keywords if word.arg and word.arg not in known]
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_its_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / name) if name else page
        titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M) if anchor and file.is_file() else []
        anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        if not file.exists() or (anchor and anchor not in anchors):
            missing.append(target)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_its_commands_and_calls_are_taken(page):
    wrong = [f"{' '.join(words)}: {said}" for words in commands(page) if (said := problem(words))]
    wrong += [said for block in blocks(page, "python") for said in calls(block)]
    assert not wrong


def test_the_files_of_the_clusters_page_are_yaml_whose_commands_are_taken():
    files = [yaml.safe_load(block) for block in blocks(ROOT / "docs" / "clusters.md", "yaml")]
    container, = files[0]["spec"]["template"]["spec"]["containers"]
    lines = [*container["args"], *files[1]["run"].splitlines()]
    called = [shlex.split(line.removeprefix("exec ")) for line in lines]
    assert [words[:2] for words in called] == [["finetune", "sweep"], ["wandb", "agent"]]
    assert not [said for words in called if (said := problem(words))]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in files[0]["spec"]["template"]["spec"]["volumes"]}
    loop, = (block for block in blocks(ROOT / "docs" / "clusters.md", "bash") if "ssh" in block)
    remote = re.search(r"nohup (finetune .*?) >", loop).group(1)
    assert problem(shlex.split(remote)) is None


@pytest.mark.parametrize(("line", "said"), [
    ("finetune train --freeze_dept=4", "did you mean"), ("finetune swep x", "no command swep"),
    ("finetune sweep x --workrs 2", "2"), ("finetune sweep x --set sed=1", "no such knob"), ("make tests", "no tests"),
    ("accelerate launch -m finetune.train --sed=1", "did you mean"), ("python -m analysis.archiv x", "no module"),
])
def test_a_wrong_command_is_seen(line, said):
    assert said in (problem(shlex.split(line)) or "")


def test_a_wrong_call_is_seen():
    assert calls("finetune.run_trail()\nfinetune.run_trial(sed=1)\nfinetune.run_trial(seed=1)") == [
        "finetune.run_trail does not exist", "run_trial(sed=…)"]


def test_the_pages_build_without_a_broken_link(tmp_path):
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (tmp_path / "site").glob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= pages


def test_every_page_stands_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    missing = [page.name for page in PAGES if page.parent == ROOT / "docs" and page.stem != "index"
               and f"({page.name})" not in index]
    assert not missing


def test_the_picture_of_the_layers_is_drawn_from_the_kept_numbers():
    table = pd.read_csv(ROOT / "docs" / "layers.csv")
    kept = (ROOT / "docs" / "layers.svg").read_text(encoding="utf-8")
    drawn = layers_svg(property_lines(table, "and"), "What each depth of all-MiniLM-L6-v2 holds")
    assert re.findall(r"<title>(.*?)</title>", drawn) == re.findall(r"<title>(.*?)</title>", kept)
    rows = table.set_index(["property", "freeze_depth"])["estimate"]
    page = (ROOT / "docs" / "layers.md").read_text(encoding="utf-8")
    for name in table["property"].unique():
        assert " | ".join(f"{100 * rows[name, depth]:.1f}%" for depth in (-1, 2, 4, 6)) in page
