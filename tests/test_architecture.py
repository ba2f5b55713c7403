"""The shape of the project: who may import whom, sizes, names, ledger, and what a wheel holds."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {"envs": 0, "world_models": 0, "agents": 1, "benchmarks": 2}
PRODUCT = sorted(path for room in LAYERS for path in (ROOT / room).rglob("*.py"))
EVERYTHING = [*PRODUCT, *sorted((ROOT / "tests").glob("**/*.py"))]
LEDGER = ("ops", "losses", "targets", "collapse", "probes")
OPTIONAL = {"torchrl": {"agents/replay/torchrl_buffers.py", "envs/torchrl_adapter.py"}}
OPTIONAL["ale_py"] = {"envs/atari.py", "benchmarks/doctor.py"}
OPTIONAL["metaworld"] = {"envs/metaworld.py"}
OPTIONAL["minari"] = OPTIONAL["h5py"] = {"agents/demos/minari.py"}
OPTIONAL["pyarrow"] = {"agents/demos/lerobot.py", "agents/demos/lerobot_files.py"}
OPTIONAL["cv2"] = {"envs/distractors/decode.py", "agents/inspection/films.py"}
OPTIONAL["ray"] = {"benchmarks/grid/ray_cluster.py"}
IMPORTED_IN_FUNCTIONS = {"benchmarks/doctor.py", "envs/metaworld.py"}
IMPORTED_IN_FUNCTIONS |= OPTIONAL["minari"] | OPTIONAL["pyarrow"] | OPTIONAL["cv2"]
IMPORTED_IN_FUNCTIONS |= OPTIONAL["ray"]
FAULTS = {*range(1, 26)}
TRAPS = {*range(1, 27)}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports are not used"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_imports_point_downwards(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for name in imports(ast.parse(path.read_text())):
        first, _, rest = name.partition(".")
        assert first not in LAYERS, f"{name}: import reverie.{name}, or classes exist twice"
        if first == "reverie":
            other = rest.partition(".")[0]
            assert other == room or LAYERS[other] < LAYERS[room], f"{room} must not know {name}"


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_names_and_sizes(path: Path) -> None:
    assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{node.name} has more than 60 lines"


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_library_code_neither_prints_nor_unpickles(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("print", "torch.load", "eval", "exec"), (
                node.lineno
            )
        assert not isinstance(node, ast.Global), f"line {node.lineno}: state in a global"
    allowed = {"envs/worker.py", "envs/process_vec.py"}
    if name_of(path) not in allowed:
        assert not {name.partition(".")[0] for name in imports(tree)} & {"pickle", "shelve", "dill"}


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_nothing_is_left_unfinished(path: Path) -> None:
    markers = "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error"))
    found = re.search(rf"\b({markers})\b", path.read_text())
    assert found is None, found


@pytest.mark.parametrize("package", sorted(OPTIONAL))
def test_optional_packages_are_named_in_few_places_and_imported_late(package: str) -> None:
    for path in PRODUCT:
        tree = ast.parse(path.read_text())
        uses = {name for name in imports(tree) if name.partition(".")[0] == package}
        assert not uses or name_of(path) in OPTIONAL[package], f"{name_of(path)} imports {uses}"


def ledger() -> list[tuple[str, str, str]]:
    rows = []
    for module in LEDGER:
        tree = ast.parse((ROOT / "world_models" / f"{module}.py").read_text())
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                rows.append((module, node.name, ast.get_docstring(node) or ""))
    assert len(rows) > 15
    return rows


@pytest.mark.parametrize(("module", "name", "doc"), ledger(), ids=lambda value: str(value)[:20])
def test_every_equation_is_documented_and_tested(module: str, name: str, doc: str) -> None:
    assert "gradient:" in doc, f"{module}.{name} does not say what carries gradient"
    assert any(test.startswith(f"test_{name}") for test in all_test_names()), f"no test_{name}"


@pytest.mark.parametrize("module", LEDGER)
def test_equations_stay_pure(module: str) -> None:
    tree = ast.parse((ROOT / "world_models" / f"{module}.py").read_text())
    assert not any(name.startswith("reverie.agents") for name in imports(tree))
    assert not any("config" in name for name in imports(tree))
    for node in tree.body:
        assert not isinstance(node, ast.ClassDef), f"{node.name}: equations are functions"


def all_test_names() -> list[str]:
    text = "\n".join(path.read_text() for path in (ROOT / "tests").glob("**/*.py"))
    return re.findall(r"^\s*(?:async )?def (test_\w+)", text, flags=re.MULTILINE)


@pytest.mark.parametrize(("kind", "numbers"), [("fault", FAULTS), ("trap", TRAPS)])
def test_every_fault_and_trap_has_a_test_that_names_it(kind: str, numbers: set[int]) -> None:
    named = re.findall(rf"\btest_{kind}_(\d\d)_", "\n".join(all_test_names()))
    assert numbers <= {int(number) for number in named}, sorted(numbers - {*map(int, named)})


def test_packages_and_links_match_the_folders() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {"reverie." + ".".join(path.relative_to(ROOT).parent.parts) for path in PRODUCT}
    assert folders == set(tools["packages"]), "an unlisted folder is missing from the wheel"
    assert tools["package-dir"] == {f"reverie.{room}": room for room in LAYERS}
    for room in LAYERS:
        assert (ROOT / room / "py.typed").is_file()
        link = ROOT / ".typing" / "reverie" / room
        assert link.is_symlink() and os.readlink(link) == f"../../{room}"


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]


@pytest.mark.parametrize("page", sorted(PAGES), ids=name_of)
def test_what_a_page_points_at_exists(page: Path) -> None:
    text = page.read_text()
    links = {unquote(link) for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    rooms = "|".join([*LAYERS, "tests", "docs"])
    paths = set(re.findall(rf"`((?:{rooms})/[\w./-]+)`", text))
    assert [link for link in sorted(links) if not (page.parent / link).exists()] == []
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_a_wheel_holds_exactly_the_tree(tmp_path: Path) -> None:
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "results")
    for room in LAYERS:
        shutil.copytree(ROOT / room, source / room, ignore=ignore)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    options = ["-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels)]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(source)],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = wheels.glob("reverie-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if ".dist-info/" not in name}
    data = [*(ROOT / "agents" / "presets").glob("*.toml"), *ROOT.glob("*/py.typed")]
    data += [p for p in (ROOT / "benchmarks" / "reference_scores").glob("*") if p.is_file()]
    data += (ROOT / "benchmarks" / "suites").glob("*.toml")
    assert held == {f"reverie/{name_of(path)}" for path in [*PRODUCT, *data]}
    assert any(name.endswith("licenses/LICENSE") for name in names)


BLOCKED = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for name in {modules!r}:
    importlib.import_module(name)
"""


def test_everything_imports_without_warning_and_without_optional_packages() -> None:
    special = set.union(*OPTIONAL.values()) - IMPORTED_IN_FUNCTIONS
    modules = [
        "reverie." + name_of(path)[:-3].replace("/", ".").removesuffix(".__init__")
        for path in PRODUCT
        if name_of(path) not in special
    ]
    # tensordict looks for h5py with find_spec, which must not raise
    code = BLOCKED.format(blocked=set(OPTIONAL) - {"h5py"}, modules=modules)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:::torch.utils.tensorboard", "-c", code],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".typing")},
        cwd=ROOT / "tests",
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_command_line_starts_without_torch() -> None:
    code = (
        "import sys, reverie.benchmarks.cli, reverie.agents.resolve, reverie.agents.flags;"
        "assert not {'torch', 'tyro', 'gymnasium'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".typing")},
        cwd=ROOT / "tests",
        timeout=120,
    )
