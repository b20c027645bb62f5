"""The walls of the house, read from the imports: who may know whom, and which door a library uses."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[3] / "sae_dist"
STAGES = ("tokens", "llm", "transport", "shuffle", "dictionary", "optim", "checkpoint", "metrics", "export")
BASE = ("core", "config")
FLOORS: dict[str, tuple[str, ...]] = {
    "__init__": ("core", "interpret", "graph"),
    "core": (),
    "config": ("core",),
    "distributed": BASE,
    "kernels": BASE,
    **{stage: (*BASE, "distributed", "kernels") for stage in STAGES},
    "atlas": (*BASE, "distributed", "kernels", *STAGES),
    "train": (*BASE, "distributed", "kernels", *STAGES, "atlas"),
    "evaluation": (*BASE, "distributed", "kernels", *STAGES, "atlas"),
    "interpret": (*BASE, "distributed", "kernels", *STAGES, "atlas"),
    "graph": (*BASE, "distributed", "kernels", *STAGES, "atlas", "interpret"),
    "serve": (*BASE, "atlas", "interpret"),
    "launch": (*BASE, "distributed", "train", "evaluation", "export", "tokens", "llm", "transport", "atlas"),
    "bench": (*BASE, "distributed", "kernels", *STAGES, "train", "interpret", "launch"),
    "commands": (
        *BASE,
        "tokens",
        "export",
        "metrics",
        "train",
        "evaluation",
        "atlas",
        "interpret",
        "graph",
        "serve",
        "launch",
        "bench",
    ),
    "cli": ("commands", "core"),
}
DOORS = {
    "transformers": ("llm", "tokens"),
    "huggingface_hub": ("core/hub", "llm", "export"),
    "pyarrow": ("interpret", "tokens", "atlas"),
    "duckdb": ("atlas",),
    "starlette": ("serve",),
    "uvicorn": ("serve",),
    "datasets": ("tokens", "transport"),
    "webdataset": ("tokens", "transport"),
    "wandb": ("metrics",),
    "wandb_workspaces": ("metrics",),
    "psutil": ("metrics", "llm", "distributed/network"),
    "pynvml": ("metrics",),
    "deepspeed": ("llm", "optim"),
    "triton": ("kernels",),
    "scipy": ("evaluation", "interpret", "atlas"),
    "submitit": ("launch",),
    "matplotlib": ("metrics", "evaluation", "bench"),
    "jinja2": ("core/template",),
    "markupsafe": ("evaluation/report", "interpret", "atlas", "serve", "graph"),
    "hydra": ("config/run", "launch"),
    "torch.distributed": (
        "distributed",
        "checkpoint",
        "transport",
        "launch",
        "train/state",
        "bench/stream/raw_wire",
        "bench/first/right",
    ),
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(tree: ast.AST) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def uses(tree: ast.AST, library: str) -> bool:
    """Whether a file imports a library, or reaches it as an attribute (`torch.distributed.x`)."""
    if any(name == library or name.startswith(library + ".") for name in imports(tree)):
        return True
    written = (ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return "." in library and library in written


def broken_rules(path: str, source: str) -> list[str]:
    """What a file, given by its path in the package, may not do and does."""
    tree, place = ast.parse(source), path.removesuffix(".py")
    floor = place.split("/")[0]
    found = []
    ours = {name.split(".")[1] for name in imports(tree) if name.startswith("sae_dist.")}
    found += [f"imports {other}" for other in sorted(ours - {floor, *FLOORS[floor]})]
    for library, doors in DOORS.items():
        if uses(tree, library) and not any(place == door or place.startswith(door + "/") for door in doors):
            found.append(f"uses {library}")
    if path.endswith("/__init__.py") and source:  # the package's own is the Python API
        found.append("is not empty")
    if source.count("\n") > 300:
        found.append(f"has {source.count(chr(10))} lines")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > 60:
                found.append(f"{node.name} has {length} lines")
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_keeps_the_rules(module):
    assert broken_rules(module.relative_to(PACKAGE).as_posix(), module.read_text()) == []


def imported_at_load(node: ast.AST) -> set[str]:
    """Names that loading a file imports: not those of functions, nor of `if TYPE_CHECKING`."""
    found = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            found |= imports(ast.Module([child], []))
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            found |= imported_at_load(ast.Module(child.orelse, []))
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found |= imported_at_load(child)
    return found


def circles(sources: dict[str, str]) -> list[str]:
    """Modules, given as sources by dotted name, that lie on a circle of imports, or import one that does."""
    arrows = {name: imported_at_load(ast.parse(text)) & sources.keys() for name, text in sources.items()}
    while free := {name for name, others in arrows.items() if not others & arrows.keys()}:
        arrows = {name: others for name, others in arrows.items() if name not in free}
    return sorted(arrows)


def test_no_import_leads_back():
    named = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in MODULES}
    assert circles({name: path.read_text() for name, path in named.items()}) == []


@pytest.mark.parametrize(
    ("importing", "found"),
    [
        ("import b", ["a", "b"]),
        ("try:\n    from b import x\nexcept ImportError:\n    pass", ["a", "b"]),
        ("def f():\n    import b", []),
        ("if TYPE_CHECKING:\n    import b", []),
    ],
)
def test_a_circle_shows(importing, found):
    assert circles({"a": importing, "b": "import c, a", "c": ""}) == found


def test_every_folder_has_a_floor_and_an_init():
    folders = [each for each in PACKAGE.iterdir() if each.is_dir() and any(each.glob("*.py"))]
    assert {each.name for each in folders} <= set(FLOORS)
    assert all((each / "__init__.py").is_file() for each in folders)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tokens/a.py", "from sae_dist.llm.facts import llm_facts"),
        ("core/a.py", "def f():\n    import sae_dist.distributed.runtime"),
        ("optim/a.py", "import transformers"),
        ("core/a.py", "from torch import distributed"),
        ("dictionary/a.py", "import torch\ntorch.distributed.barrier()"),
        ("config/resolve.py", "from hydra import compose"),
        ("train/__init__.py", "x = 1\n"),
        ("train/a.py", "x = 1\n" * 301),
        ("train/a.py", "def f():\n" + "    x = 1\n" * 60),
    ],
)
def test_a_broken_rule_shows(path, source):
    assert len(broken_rules(path, source)) == 1
