"""Specs as YAML; needs the library PyYAML (extra ``cli``)."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from pgkmeans_sk.spec import Spec


def read_spec(path: str | PathLike[str]) -> Spec:
    """Read a spec from a YAML file (docs/command_line.md).

    Raises
    ------
    ValueError
        If it is not YAML, or no spec; the message names the file.
    OSError
        If it cannot be read.
    ImportError
        If PyYAML is absent.
    """
    content = Path(path).read_bytes()
    try:
        return spec_from_yaml(content.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def spec_from_yaml(text: str) -> Spec:
    """The spec that a YAML text describes; an empty one means defaults.

    Raises
    ------
    ValueError
        If it is not YAML, or no spec.
    ImportError
        If PyYAML is absent.
    """
    yaml = _library()
    try:
        content = yaml.load(text, Loader=_strict_loader(yaml))
    except yaml.YAMLError as error:
        raise ValueError(f"Got a text that is not YAML: {' '.join(str(error).split())}") from error
    return Spec.of(content) if content is None else Spec.from_dict(content)


def spec_to_yaml(spec: Spec) -> str:
    """The YAML text of a spec, which ``spec_from_yaml`` reads.

    Raises
    ------
    ImportError
        If PyYAML is absent.
    """
    return str(_library().safe_dump(spec.to_dict(), sort_keys=False, allow_unicode=True))


def _library() -> Any:
    """The module yaml; an ImportError that says how to install it."""
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "Specs in YAML need the library PyYAML: pip install pgkmeans_sk[cli]"
        ) from error
    return yaml


def _strict_loader(yaml: Any) -> Any:
    """A loader of plain types that refuses a key given twice: PyYAML would take the last."""

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = []
            for key_node, _ in node.value:
                if key_node.tag == "tag:yaml.org,2002:merge":  # "<<" takes in another mapping
                    continue
                key = self.construct_object(key_node, deep=True)
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} is there twice", key_node.start_mark
                    )
                seen.append(key)
            return super().construct_mapping(node, deep)

    return StrictLoader
