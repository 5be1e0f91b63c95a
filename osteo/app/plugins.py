"""Plugins on the command line, loaded before anything is composed: they may bring choices of their own."""

from collections.abc import Sequence

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin

from osteo import parts
from osteo.errors import UserError


class PluginConfigurations(SearchPathPlugin):
    """Shows Hydra the folders of YAML files that plugins bring; conf/ comes first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra."""
        for folder in parts.configurations:
            search_path.append("osteo.plugins", f"file://{folder}")


def load_named(arguments: Sequence[str]) -> None:
    """Loads the plugins that `plugins=[...]` names on the command line, and those of installed packages.

    Raises:
        UserError: one of them cannot be imported, or the value is no list of modules.
    """
    parts.load(named(arguments))
    Plugins.instance().register(PluginConfigurations)


def named(arguments: Sequence[str]) -> list[str]:
    """The modules that `plugins=[...]` names on the command line.

    Raises:
        UserError: the value is no list of modules.
    """
    modules: list[str] = []
    for argument in arguments:
        if argument.startswith("plugins="):
            try:
                value = OverridesParser.create().parse_override(argument).value()
            except OverrideParseException as error:
                raise UserError(f"cannot read '{argument}' as plugins=[my_package.parts]") from error
            modules += [str(module) for module in (value if isinstance(value, list) else [value])]
    return modules
