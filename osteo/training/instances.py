"""Lightning's parts from a configuration: callbacks, loggers and arguments of the Trainer, by `_target_`."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from osteo import parts
from osteo.checks import TARGET, check_targets
from osteo.errors import UserError, first_line, unknown
from osteo.libraries import check_arguments, parameters_of

T = TypeVar("T", Callback, Logger)


def find_class(path: str, key: str) -> type[Any]:
    """The class that a path names.

    A module may have other libraries' modules as attributes, so the class itself must be one of a trusted package.

    Raises:
        UserError: there is none, with the nearest names of its module; or it is not to be trusted.
    """
    check_targets({TARGET: path}, key)
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{key}.{TARGET}={path}: there is no module {module_name} ({error})") from error
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        classes = [n for n, value in vars(module).items() if inspect.isclass(value) and not n.startswith("_")]
        raise unknown(f"{key}.{TARGET}: class of {module_name}", name, classes)
    if found.__module__.partition(".")[0] not in parts.trusted_roots():
        raise UserError(
            f"{key}.{TARGET}={path} is {found.__module__}.{name}, which comes from no library or plugin allowed here"
        )
    return found


def check_part(node: Mapping[str, Any], key: str, kind: type[Any]) -> type[Any]:
    """The class of a part, which is of a kind and has the arguments that the configuration gives; nothing is built.

    Raises:
        UserError: one line that names the part and what is allowed.
    """
    found = find_class(node[TARGET], key)
    if not issubclass(found, kind):
        raise UserError(f"{key}.{TARGET}={node[TARGET]} is not a {kind.__name__} of Lightning")
    check_arguments(parameters_of(found), _arguments(node), key)
    return found


def _arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name != TARGET}


def build(node: Mapping[str, Any], key: str, kind: type[T], **context: Any) -> T:
    """An object of a class that a configuration names, with its arguments, which may be such objects too.

    Args:
        node: `_target_` and arguments, plain values.
        key: of the configuration, for errors.
        kind: what it must be.
        context: arguments that the class is given where it takes them and the configuration has none.

    Raises:
        UserError: one line on what cannot be built.
    """
    return _call(check_part(node, key, kind), node, key, context)  # type: ignore[no-any-return]


def resolve(node: Any, key: str, **context: Any) -> Any:
    """A value of a configuration with its parts built, as `build` does; anything else stays as it is."""
    if isinstance(node, Mapping):
        if TARGET in node:
            return _call(find_class(node[TARGET], key), node, key, context)
        return {name: resolve(value, f"{key}.{name}", **context) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [resolve(value, f"{key}[{place}]", **context) for place, value in enumerate(node)]
    return node


def _call(found: type[Any], node: Mapping[str, Any], key: str, context: Mapping[str, Any]) -> Any:
    given = {name: resolve(value, f"{key}.{name}", **context) for name, value in _arguments(node).items()}
    check_arguments(parameters_of(found), given, key)
    takes = inspect.signature(found).parameters
    given = {**{name: value for name, value in context.items() if name in takes}, **given}
    try:
        return found(**given)
    except ImportError as error:  # Lightning says what to install
        raise UserError(f"{key} needs a package that is not installed: {first_line(error)}") from error
    except Exception as error:  # of any library's constructor
        raise UserError(f"{key}: {found.__name__} refuses its arguments: {first_line(error)}") from error
