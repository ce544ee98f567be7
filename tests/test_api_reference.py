"""What is public stands in the API reference with an example; the site's check finds faults."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pgkmeans_sk"
NOT_FOR_USERS = {
    "pgkmeans_sk.callbacks",  # scikit-learn's own names, or what stands in for them
}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parsed(module):
    stem = ROOT.joinpath(*module.split("."))
    path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
    return ast.parse(path.read_text("utf-8"))


def exported(tree):
    """The names in ``__all__``, or None."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else ()
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return set(ast.literal_eval(node.value))
    return None


def documented():
    """Module and name of all entries of the API reference, in its order."""
    module, entries = None, []
    for line in (ROOT / "docs" / "api" / "index.rst").read_text("utf-8").splitlines():
        if line.startswith(".. currentmodule:: "):
            module = line.split()[-1]
        elif re.fullmatch(r"   \w+", line):
            entries.append((module, line.strip()))
    return entries


def home(module, name):
    """The module that defines the name, wherever ``module`` has it from, and the definition."""
    tree = parsed(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return home(node.module, name)
    raise AssertionError(f"{module} has no {name}")


ENTRIES = documented()


def test_every_public_name_is_documented():
    listed = {(home(*entry)[0], entry[1]) for entry in ENTRIES}
    missing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = module_of(path)
        names = exported(ast.parse(path.read_text("utf-8")))
        if names is None or module in NOT_FOR_USERS:
            continue
        missing += [
            f"{module}.{name}"
            for name in sorted(names - {"__version__"})
            if (home(module, name)[0], name) not in listed
        ]
    assert missing == []


def test_nothing_is_documented_twice_or_not_public():
    assert len(set(ENTRIES)) == len(ENTRIES) > 50
    for module, name in ENTRIES:
        names = exported(parsed(module))
        assert names is not None, f"{module} has no __all__"
        assert name in names, f"{module}.{name} is not in its __all__"


@pytest.mark.parametrize(("module", "name"), ENTRIES, ids=lambda part: part.split(".")[-1])
def test_docstrings(module, name):
    node = home(module, name)[1]
    text = ast.get_docstring(node)
    assert text is not None
    assert re.search(r"^Examples\n-+\n(.|\n)*^>>> ", text, re.MULTILINE), "no example"
    takes = [a.arg for a in node.args.args] if isinstance(node, ast.FunctionDef) else ["self"]
    if takes:
        assert re.search(r"^(Parameters|Attributes)\n-+\n", text, re.MULTILINE), "no parameters"


@pytest.mark.parametrize(("module", "name"), ENTRIES, ids=lambda part: part.split(".")[-1])
def test_methods_have_docstrings(module, name):
    node = home(module, name)[1]
    for method in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
            is_overload = any("overload" in ast.unparse(d) for d in method.decorator_list)
            assert is_overload or ast.get_docstring(method), f"{name}.{method.name}"


# ------------------------------------------------------------------ the checks of the site


@pytest.fixture(scope="module")
def check_site():
    spec = importlib.util.spec_from_file_location("check_site", ROOT / "docs" / "check_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOOD = (
    '<a href="b.html#here">b</a> <a href="#own">x</a> <p id="own"><img src="p.png" alt="A plot">'
    '<a href="https://example.org/no">away</a><a href="sub/">folder</a>'
)


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        (GOOD, None),
        ('<a href="c.html">', "a.html: no such file: c.html"),
        ('<a href="b.html#there">', "a.html: no such place: b.html#there"),
        ('<a href="#gone">', "a.html: no such place: #gone"),
        ('<img src="p.png">', "a.html: no description of p.png"),
        ('<img src="q.png" alt="A plot">', "a.html: no such file: q.png"),
    ],
)
def test_faults_of_pages_are_found(check_site, tmp_path, page, fault):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "index.html").write_text("")
    (tmp_path / "p.png").write_bytes(b"")
    (tmp_path / "b.html").write_text('<p id="here">')
    (tmp_path / "a.html").write_text(page)
    assert check_site.faults(tmp_path) == ([] if fault is None else [fault])
    assert check_site.main([str(tmp_path)]) == (fault is not None)


def test_a_site_without_pages(check_site, tmp_path):
    assert check_site.faults(tmp_path) == [f"{tmp_path}: there are no pages"]
