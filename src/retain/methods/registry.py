"""Registry of methods: built in, from installed packages, and from plugins that the user names.

An installed package lists its methods in the entry-point group `retain.methods`. A plugin is a
module that registers methods when it is imported. Only plugins that the user names are imported,
never one that a stored run asks for: a run from elsewhere must not run code.
"""

from __future__ import annotations

import importlib
import reprlib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeVar

from retain.errors import RetainError, first_line
from retain.methods.base import Method, MethodConfig, Traits
from retain.runs.environment import PLUGIN, PLUGINS
from retain.system.files import checksum
from retain.system.paths import expanded

GROUP = "retain.methods"
"""The entry-point group; its entries look like `name = "package.module:Class"`."""

METHODS: dict[str, type[Method]] = {}
"""The registered methods by name. Those of installed packages are added on first use."""

_SOURCES: dict[str, str] = {}
"""The plugin or package of each method that is not built in."""

MethodClass = TypeVar("MethodClass", bound=type[Method])


def register(name: str) -> Callable[[MethodClass], MethodClass]:
    """Registers a method class under a name, as a decorator: `@register("mine")`.

    Raises:
        RetainError: when another class has this name already.
    """

    def add(method: MethodClass) -> MethodClass:
        _add(name, method, method.__module__)
        return method

    return add


def _add(name: str, method: object, source: str) -> None:
    problem = _problem(name, method)
    if problem:
        raise RetainError(f"{source}: the method {name!r} {problem}; correct it")
    assert isinstance(method, type)
    existing = METHODS.get(name)
    if existing is not None and _identity(existing) != _identity(method):
        raise RetainError(
            f"{source}: registers the method '{name}', which {_SOURCES.get(name, 'retain')} has "
            "registered already; give it another name"
        )
    METHODS[name] = method
    if not source.startswith("retain."):
        _SOURCES[name] = source
        file = getattr(sys.modules.get(method.__module__), "__file__", None)
        if file is not None:  # a class typed into an interpreter has none
            PLUGINS[f"{PLUGIN}{source}"] = checksum(Path(file))[:16]


def _problem(name: object, method: object) -> str:
    """Says why something cannot be a method; empty if it can."""
    if not isinstance(name, str) or not name.strip():
        return "needs a text as its name"
    if not (isinstance(method, type) and issubclass(method, Method)):
        return f"is not a subclass of retain.Method but {reprlib.repr(method)}"
    config, traits = getattr(method, "Config", None), getattr(method, "traits", None)
    if not (isinstance(config, type) and issubclass(config, MethodConfig)):
        return f"({method.__name__}) has no Config that is a subclass of MethodConfig"
    if not isinstance(traits, Traits):
        return f"({method.__name__}) has no traits (a retain.methods.Traits)"
    return ""


def _identity(method: type[Method]) -> tuple[str, str]:
    """Returns what stays the same when a module or a notebook cell is executed again."""
    return method.__module__, method.__qualname__


def load_plugins(names: Iterable[str], beside: Path) -> None:
    """Imports modules that register methods.

    Args:
        names: module names such as `pulled` or `package.module`, or paths of .py files.
        beside: the folder that is searched first, and that relative paths start from.

    Raises:
        RetainError: when a module does not exist, cannot be imported, or registers no method.
    """
    for name in names:
        if name.endswith(".py"):
            file = _expanded(beside, name)
            if not file.is_file():
                raise RetainError(f"plugin {file}: no such file; check the path")
            _import(file.stem, file.parent.resolve(), file.resolve())
        else:
            file = (beside / f"{name}.py").resolve()
            _import(name, beside.resolve(), file if file.is_file() else None)


def module_of(plugin: str) -> str:
    """Returns the module name of a plugin that was named by module or by path."""
    return Path(plugin).stem if plugin.endswith(".py") else plugin


def is_loaded(plugin: str) -> bool:
    """Whether a plugin has been imported, and has registered a method."""
    return module_of(plugin) in _SOURCES.values()


def _expanded(beside: Path, name: str) -> Path:
    try:
        return expanded(name) if name.startswith("~") else beside / name
    except ValueError as error:
        raise RetainError(f"plugin {name}: {error}") from None


def _import(module: str, folder: Path, file: Path | None) -> None:
    """Imports a plugin from a folder or the installed modules, unless it is imported already.

    Args:
        module: its name.
        folder: is searched first.
        file: the file that has to be imported; None for a package or an installed module.
    """
    present = sys.modules.get(module)
    if present is not None and file is not None:
        other = getattr(present, "__file__", None)
        if other is None or Path(other).resolve() != file:
            raise RetainError(
                f"plugin {file}: a module '{module}' is imported already, from "
                f"{other or 'Python itself'}; rename one of them"
            )
    if module in _SOURCES.values():
        return
    known_methods, known_modules = set(METHODS), set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        importlib.import_module(module)
        new = METHODS.keys() - known_methods
        for name in new:
            _SOURCES[name] = module
        if not new and not any(_load_all(module)):
            raise RetainError(
                f"plugin '{module}': registers no method; write @register(\"name\") from "
                "retain.methods above its class"
            )
    except (Exception, SystemExit) as error:
        _unregister(METHODS.keys() - known_methods, sys.modules.keys() - known_modules)
        if isinstance(error, RetainError):
            raise
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            raise RetainError(
                f"plugin '{module}': no such module in {folder} or among the installed ones; name "
                "a module or a .py file"
            ) from None
        raise RetainError(
            f"plugin '{module}': cannot be imported ({type(error).__name__}: {first_line(error)}, "
            f"{_place(error)}); correct it"
        ) from error
    finally:
        sys.path.remove(str(folder))


def _place(error: BaseException) -> str:
    """Returns file and line of an error at import."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{where.filename}, line {where.lineno}"


def _unregister(names: set[str], modules: set[str]) -> None:
    """Removes what a plugin that failed has registered and imported so far."""
    for name in names:
        del METHODS[name]
        PLUGINS.pop(f"{PLUGIN}{_SOURCES.pop(name, None)}", None)
    for module in modules:
        del sys.modules[module]


def _load_all(module: str) -> Iterator[str]:
    """Registers the entry points of a module or package and yields their names."""
    for point in _entry_points():
        if point.module == module or point.module.startswith(f"{module}."):
            _load(point)
            yield point.name


def find(name: str) -> type[Method] | None:
    """Returns the method with this name, built in or installed; None if there is none.

    Raises:
        RetainError: when its package cannot be imported, or two packages claim the name.
    """
    installed = [point for point in _entry_points() if point.name == name]
    if installed and (name not in METHODS or _SOURCES.get(name) != _package(installed[0])):
        for point in installed:
            _load(point)
    return METHODS.get(name)


def _load(point: EntryPoint) -> None:
    package = _package(point)
    try:
        method = point.load()
    except Exception as error:
        raise RetainError(
            f"package {package}: its method '{point.name}' cannot be imported "
            f"({type(error).__name__}: {first_line(error)}); repair or uninstall the package"
        ) from error
    _add(point.name, method, package)
    PLUGINS[f"{PLUGIN}{package}"] = point.dist.version if point.dist else ""


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.module


@cache
def _entry_points() -> Iterable[EntryPoint]:
    """The entry points of installed packages, whose files are read once: a thousand lookups ask."""
    return entry_points(group=GROUP)


def list_methods() -> list[str]:
    """Returns the names that `method.name` may have, those of installed packages included."""
    return sorted({*METHODS, *(point.name for point in _entry_points())})


def source_of(name: str) -> str | None:
    """Returns the plugin or package that a method comes from; None for a built-in method."""
    return _SOURCES.get(name)


def is_installed(name: str) -> bool:
    """Tells whether a method comes from an installed package and so needs no `--plugin`."""
    return any(point.name == name for point in _entry_points())
