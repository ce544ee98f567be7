"""Spec: how each tensor of a model is to be compressed; settings for all, and rules by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import translate
from typing import Any

from pgkmeans_sk.product_quantizer import ProductQuantizer
from pgkmeans_sk.quantizer_parameters import check_parameters
from pgkmeans_sk.validation import InvalidParameterError, check_choice, check_integer

__all__ = ["Rule", "Spec", "TensorSettings"]

IMPORTANCES = ("block", "column")


@dataclass(frozen=True, kw_only=True)
class TensorSettings:
    """How one tensor is to be compressed.

    Attributes
    ----------
    block_size, n_codes, codebook, max_iter, rows_per_code, n_stages, rotation, scale,
    codebook_dtype
        As of ``ProductQuantizer``, with defaults for weights of a model: one codebook that all
        blocks of a tensor share, stored in float16; and more work for it, as it is done once.
    skip : bool
        Whether the tensor is left as it is.
    min_size : int
        Tensors of fewer values are left as they are.
    importance : {"block", "column", None}
        For ``nn.compress_model`` with a calibration only: which errors count. "block": those in
        the metric of a block of a layer's inputs; "column": weighted by the mean square of
        each input. Rows of embeddings are weighted by how often they are looked up, with either.
        None: all alike.
    feedback : bool
        For ``nn.compress_model`` with a calibration only: whether the error of the layer's output
        is minimised, of all blocks together.
    group : str or None
        For ``nn.compress_model`` only: weights of the same group share one codebook.

    Raises
    ------
    InvalidParameterError
        If a value is none that is accepted.

    Examples
    --------
    >>> from pgkmeans_sk.spec import Spec, TensorSettings
    >>> spec = Spec(TensorSettings(block_size=4))
    >>> spec.settings_for("any.weight").block_size
    4
    """

    block_size: int = 8
    n_codes: int = 256
    codebook: str = "shared"
    max_iter: int = 25
    rows_per_code: int | None = None
    n_stages: int = 1
    rotation: str | None = None
    scale: str | None = None
    codebook_dtype: str | None = "float16"
    skip: bool = False
    min_size: int = 0
    importance: str | None = "block"
    feedback: bool = False
    group: str | None = None

    def __post_init__(self) -> None:
        check_parameters(self.quantizer())
        check_integer("min_size", self.min_size, 0)
        for name in ("block_size", "n_codes", "max_iter", "n_stages", "min_size"):
            # An integer of NumPy would not go into YAML or JSON.
            object.__setattr__(self, name, int(getattr(self, name)))
        for name in ("skip", "feedback"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidParameterError(
                    f"Got {name}={getattr(self, name)!r}, but expected true or false."
                )
        if self.importance is not None:
            check_choice("importance", self.importance, IMPORTANCES)
        if self.group is not None and (not isinstance(self.group, str) or not self.group):
            raise InvalidParameterError(f"Got group={self.group!r}, but expected a name or None.")

    def quantizer(self, random_state: int | None = 0) -> ProductQuantizer:
        """The quantizer that compresses a tensor so, as a matrix (shape[0], -1)."""
        return ProductQuantizer(
            self.block_size,
            self.n_codes,
            codebook=self.codebook,
            max_iter=self.max_iter,
            rows_per_code=self.rows_per_code,
            n_stages=self.n_stages,
            rotation=self.rotation,
            scale=self.scale,
            codebook_dtype=self.codebook_dtype,
            random_state=random_state,
        )


SETTINGS = tuple(entry.name for entry in fields(TensorSettings))
"""Names of all settings."""

PATTERNS = ("match", "regex", "type")
"""What a rule says of the tensors that it is for."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Settings for the tensors whose names, or modules, fit a pattern.

    Attributes
    ----------
    match : str or None
        A glob that the whole name has to fit: ``*`` is any text, dots included, ``?`` one
        character, ``[ab]`` one of these. Upper and lower case differ.
    regex : str or None
        A regular expression that the whole name has to fit. A rule has one of the two, or a type.
    type : str or None
        The class of the tensor's module or one of its bases, as "Conv2d"; with a pattern, both
        have to fit. Tensors in files belong to no module: such a rule fits none of them.
    settings : mapping of str to value
        What it sets, by the names of ``TensorSettings``; all others stay as they are.

    Raises
    ------
    ValueError
        If the pattern, a name or a value is none that is accepted.

    Examples
    --------
    >>> from pgkmeans_sk.spec import Rule, Spec
    >>> rule = Rule(match="encoder.*", settings={"n_codes": 64})
    >>> rule.fits("encoder.0.weight"), rule.fits("head.weight")
    (True, False)
    >>> Spec(rules=(rule,)).settings_for("encoder.0.weight").n_codes
    64
    """

    match: str | None = None
    regex: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    type: str | None = None

    def __post_init__(self) -> None:
        n_patterns = (self.match is not None) + (self.regex is not None)
        if n_patterns > 1 or (n_patterns == 0 and self.type is None):
            raise ValueError(
                f"Got match={self.match!r} and regex={self.regex!r}, but expected one of the two, "
                "or a type."
            )
        for name in PATTERNS:
            pattern = getattr(self, name)
            if pattern is not None and (not isinstance(pattern, str) or not pattern):
                raise ValueError(f"Got {name}={pattern!r}, but expected a pattern for names.")
        try:
            re.compile(self._expression)
        except re.error as error:
            raise ValueError(
                f"Got regex={self.regex!r}, but expected a regular expression: {error}."
            ) from error
        _check_keys(self.settings, SETTINGS, "settings")
        checked = asdict(replace(TensorSettings(), **self.settings))
        object.__setattr__(self, "settings", {name: checked[name] for name in self.settings})

    @property
    def _expression(self) -> str:
        if self.match is not None:
            return translate(self.match)
        return "(?s:.*)" if self.regex is None else self.regex

    def fits(self, name: str, types: Collection[str] = ()) -> bool:
        """Whether it is for the tensor of this name, in a module whose classes are ``types``."""
        if self.type is not None and self.type not in types:
            return False
        return re.fullmatch(self._expression, name) is not None

    def to_dict(self) -> dict[str, Any]:
        """Pattern and settings side by side, as ``Spec.from_dict`` takes them."""
        return {**self._patterns(), **self.settings}

    def _patterns(self) -> dict[str, str]:
        given = {name: getattr(self, name) for name in PATTERNS}
        return {name: pattern for name, pattern in given.items() if pattern is not None}

    def __str__(self) -> str:
        """Name the patterns, for messages."""
        return " and ".join(f"{name} {pattern!r}" for name, pattern in self._patterns().items())


@dataclass(frozen=True)
class Spec:
    r"""How each tensor of a model is to be compressed.

    Attributes
    ----------
    defaults : TensorSettings
        Settings of all tensors.
    rules : tuple of Rule
        What is different for some of them. Of several rules that set the same for a tensor, the
        last one wins.

    Examples
    --------
    >>> spec = Spec.from_dict(
    ...     {
    ...         "defaults": {"block_size": 8},
    ...         "rules": [
    ...             {"match": "*embeddings*", "block_size": 4},
    ...             {"regex": r"pooler\..*", "skip": True},
    ...         ],
    ...     }
    ... )
    >>> spec.settings_for("embeddings.word_embeddings.weight").block_size
    4
    >>> spec.settings_for("pooler.dense.weight").skip
    True
    """

    defaults: TensorSettings = TensorSettings()
    rules: tuple[Rule, ...] = ()

    @classmethod
    def of(cls, given: Spec | TensorSettings | Mapping[str, Any] | None) -> Spec:
        """The spec that is meant: itself, settings for all tensors, a dict, or None for defaults.

        Raises
        ------
        ValueError, TypeError
            If it is something else.
        """
        if given is None:
            return cls()
        if isinstance(given, Spec):
            return given
        if isinstance(given, TensorSettings):
            return cls(given)
        if isinstance(given, Mapping):
            return cls.from_dict(given)
        raise TypeError(
            f"Got a spec of type {type(given).__name__}, but expected a Spec, TensorSettings, a "
            "dict or None."
        )

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Spec:
        """The spec that ``to_dict`` gave, or somebody wrote.

        Parameters
        ----------
        content : mapping
            ``defaults``, a mapping of settings, and ``rules``, a list of mappings, each with
            ``match``, ``regex`` or ``type`` beside the settings. Both may be left out.

        Raises
        ------
        ValueError
            If a key, type or value is none that is accepted; the message says where.
        """
        _check_keys(content, ("defaults", "rules"), "a spec")
        defaults = content.get("defaults")
        if defaults is None:  # a key without anything behind it is None in YAML
            defaults = {}
        rules = content.get("rules")
        if rules is None:
            rules = []
        _check_keys(defaults, SETTINGS, "defaults")
        if not isinstance(rules, list | tuple):
            raise ValueError(f"Got rules={rules!r}, but expected a list of mappings.")
        return cls(
            _named("defaults", lambda: TensorSettings(**defaults)),
            tuple(_named(f"rule {i + 1}", lambda r=r: _rule_of(r)) for i, r in enumerate(rules)),
        )

    def to_dict(self) -> dict[str, Any]:
        """All defaults and the rules, in plain types: for JSON, YAML and ``from_dict``."""
        return {"defaults": asdict(self.defaults), "rules": [rule.to_dict() for rule in self.rules]}

    def settings_for(self, name: str, types: Collection[str] = ()) -> TensorSettings:
        """Settings of the tensor of this name, in a module whose classes are ``types``."""
        return replace(self.defaults, **self.changes_for(name, types))

    def changes_for(self, name: str, types: Collection[str] = ()) -> dict[str, Any]:
        """What rules set for a tensor; all else is as in ``defaults``."""
        changes: dict[str, Any] = {}
        for rule in self.rules:
            if rule.fits(name, types):
                changes.update(rule.settings)
        return changes

    def with_defaults(self, **settings: Any) -> Spec:
        """The same with other defaults; rules win over them as before."""
        return replace(self, defaults=replace(self.defaults, **settings))

    def with_rules(self, *rules: Rule) -> Spec:
        """The same with more rules, which win over those that are there."""
        return replace(self, rules=self.rules + rules)

    def only(self, globs: Iterable[str]) -> Spec:
        """The same for tensors that fit one of ``globs``; all others are left as they are."""
        others = "".join(f"(?!{translate(glob)})" for glob in globs)
        return self.with_rules(Rule(regex=f"(?s:{others}.*)", settings={"skip": True}))

    def unused_rules(self, names: Iterable[str | tuple[str, Collection[str]]]) -> tuple[Rule, ...]:
        """Rules that fit none of ``names``: perhaps they were written for another model.

        Names may come with the classes of their modules.
        """
        known = [(name, ()) if isinstance(name, str) else name for name in names]
        return tuple(rule for rule in self.rules if not any(rule.fits(*name) for name in known))


def _rule_of(content: Any) -> Rule:
    _check_keys(content, (*PATTERNS, *SETTINGS), "a rule")
    settings = {name: value for name, value in content.items() if name in SETTINGS}
    return Rule(**{name: content.get(name) for name in PATTERNS}, settings=settings)


def _named(place: str, make: Any) -> Any:
    """What ``make`` returns; its errors say in which place of the spec they are."""
    try:
        return make()
    except ValueError as error:
        raise type(error)(f"In {place}: {error}") from error


def _check_keys(content: Any, known: Collection[str], place: str) -> None:
    """Raise unless it is a mapping with none but known keys; name the one that may be meant."""
    if not isinstance(content, Mapping):
        raise ValueError(
            f"Got {content!r} for {place}, but expected a mapping with keys of {', '.join(known)}."
        )
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ValueError(
                f"Got the key {key!r} in {place}, but expected one of {', '.join(known)}{hint}"
            )
