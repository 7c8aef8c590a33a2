"""The house rules that a linter does not know: sizes, cheap imports, unique names, nothing of one machine."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("gateway", "detectors", "backends", "trainer", "dashboards")
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 70
HEAVY = {"torch", "transformers", "sentence_transformers", "onnxruntime", "xllamacpp", "vllm", "onnx"}
# Written so that the pattern does not match itself.
HOST_PATHS = re.compile(r"/wor[k]/|/tm[p]/build|/roo[t]/|/hom[e]/[a-z]|\.pyen[v]")
TEXT = {".py", ".toml", ".md", ".txt", ".yaml", ".yml", ".json", ".html", ".css", ".js", ".mjs", ".mako", ".cfg", ""}


def modules() -> Iterator[Path]:
    for package in (*PACKAGES, "scripts", "migrations", "tests"):
        yield from sorted((ROOT / package).rglob("*.py"))


def own(path: Path) -> bool:
    return "node_modules" not in path.parts


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_module_is_longer_than_a_room() -> None:
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in modules() if own(path)}
    assert len(lengths) > 20
    assert {path: lines for path, lines in lengths.items() if lines > MAX_MODULE_LINES} == {}


def test_no_function_is_longer_than_a_page() -> None:
    long: dict[str, int] = {}
    seen = 0
    for path in filter(own, modules()):
        if path.parent.name == "versions":  # a migration lists tables from top to bottom, and is never edited again
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                seen += 1
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{name(path)}:{node.name}"] = lines
    assert seen > 100
    assert long == {}


def imported_by(module: str) -> set[str]:
    code = f"import {module}, json, sys; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", ["gateway.main", "gateway.cli", "gateway.registry"])
def test_importing_the_gateway_costs_no_model_library(module: str) -> None:
    found = imported_by(module)
    assert "gateway" in found
    assert found & HEAVY == set()


@pytest.mark.parametrize("module", ["detectors.api", "backends.api"])
def test_contracts_import_the_standard_library_and_msgspec_only(module: str) -> None:
    beyond = imported_by(module) - imported_by("msgspec") - set(sys.stdlib_module_names)
    assert beyond == {module.partition(".")[0]}


def test_each_top_level_name_has_one_owner() -> None:
    """A stranger's distribution with a package of the same name would silently overwrite ours."""
    owners = importlib.metadata.packages_distributions()
    for package in PACKAGES:
        assert set(owners.get(package, ())) <= {"havengate"}
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin == str(ROOT / package / "__init__.py")


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return [ROOT / found for found in done.stdout.split("\0") if found]


def test_no_file_names_a_path_of_one_machine() -> None:
    found = {}
    for path in tracked():
        if path.suffix in TEXT and path.is_file():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if HOST_PATHS.search(line):
                    found[f"{name(path)}:{number}"] = line.strip()[:80]
    assert found == {}


def test_the_pins_of_the_project_are_the_pins_of_the_constraints() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [
        *project["project"]["dependencies"],
        *(pin for group in project["dependency-groups"].values() for pin in group),
    ]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))
    wanted = dict(re.sub(r"\[.*?\]", "", pin).lower().replace("_", "-").split("==") for pin in asked)
    assert {pin: pinned.get(pin) for pin in wanted} == wanted
