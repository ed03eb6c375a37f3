"""YAML by libyaml where PyYAML has it, which is several times as fast as PyYAML's own parser."""

from typing import Any

import yaml

LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: type[yaml.SafeDumper] = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def parse_yaml(text: str, loader: type[yaml.SafeLoader] = LOADER) -> Any:
    """Returns the content of `text`; raises `yaml.YAMLError` where it is not well-formed or nested too deeply."""
    try:
        return yaml.load(text, loader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error


def format_yaml(content: object) -> str:
    """Returns `content` as YAML, with mappings in their order."""
    return yaml.dump(content, Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
