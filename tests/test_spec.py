"""Specs: what they accept, which rule wins, what they say about mistakes, and round trips."""

import json
import pickle

import numpy as np
import pytest

from pgkmeans_sk.spec import SETTINGS, Rule, Spec, TensorSettings
from pgkmeans_sk.validation import InvalidParameterError

EXAMPLE = {
    "defaults": {"n_codes": 128, "rotation": "hadamard"},
    "rules": [
        {"match": "encoder.*.weight", "block_size": 4, "n_codes": 16},
        {"match": "*.layer.[01].*", "n_codes": 64, "scale": "row"},
        {"regex": r"encoder\.(pooler|head)\..*", "skip": True},
    ],
}


def test_defaults_are_those_of_weights():
    settings = Spec().settings_for("anything")
    assert settings == TensorSettings()
    assert (settings.block_size, settings.n_codes, settings.codebook) == (8, 256, "shared")
    assert (settings.codebook_dtype, settings.skip) == ("float16", False)


def test_later_rules_win_setting_by_setting():
    spec = Spec.from_dict(EXAMPLE)
    both = spec.settings_for("encoder.layer.1.dense.weight")
    assert (both.block_size, both.n_codes, both.scale, both.rotation) == (4, 64, "row", "hadamard")
    assert spec.settings_for("encoder.layer.2.dense.weight").n_codes == 16
    assert spec.settings_for("encoder.layer.2.dense.bias").n_codes == 128
    assert spec.settings_for("encoder.head.weight").skip
    assert spec.settings_for("encoder.head.weight").block_size == 4


@pytest.mark.parametrize(
    ("rule", "name", "fits"),
    [
        (Rule(match="*.weight"), "a.b.weight", True),
        (Rule(match="*.weight"), "a.b.weights", False),
        (Rule(match="a?c"), "a.c", True),
        (Rule(match="A"), "a", False),
        (Rule(match="[ab].w"), "b.w", True),
        (Rule(match="a.w"), "axw", False),  # a dot is a dot in a glob
        (Rule(regex="a.w"), "axw", True),
        (Rule(regex="a"), "ab", False),  # the whole name
        (Rule(regex="a|ab"), "ab", True),
        (Rule(match="*"), "two\nlines", True),
        (Rule(match="Gewicht-*"), "Gewicht-\N{LATIN SMALL LETTER U WITH DIAERESIS}", True),
    ],
)
def test_patterns(rule, name, fits):
    assert rule.fits(name) == fits


def test_only_and_further_rules():
    spec = Spec.from_dict(EXAMPLE).only(["*.weight", "x*"])
    names = ["encoder.layer.0.weight", "a.bias", "x", "encoder.head.weight", "b\nx"]
    assert [spec.settings_for(name).skip for name in names] == [False, True, False, True, True]
    more = spec.with_rules(Rule(match="x", settings={"skip": True}))
    assert more.settings_for("x").skip
    assert more.with_defaults(n_stages=2).settings_for("other").n_stages == 2
    assert Spec().only([]).settings_for("a").skip is True


def test_unused_rules():
    spec = Spec.from_dict(EXAMPLE)
    assert spec.unused_rules(["encoder.layer.0.weight"]) == (spec.rules[2],)
    assert str(spec.rules[0]) == "match 'encoder.*.weight'"
    assert str(spec.rules[2]) == r"regex 'encoder\\.(pooler|head)\\..*'"


# ---------------------------------------------------------------- round trips


def test_round_trips():
    spec = Spec.from_dict(EXAMPLE)
    content = spec.to_dict()
    assert tuple(content["defaults"]) == SETTINGS
    assert content["rules"] == EXAMPLE["rules"]
    assert Spec.from_dict(content) == spec
    assert Spec.from_dict(json.loads(json.dumps(content))) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_numbers_of_numpy_become_plain_ones():
    settings = TensorSettings(block_size=np.int64(4))
    assert type(settings.block_size) is int
    assert type(Rule(match="*", settings={"n_codes": np.int32(4)}).settings["n_codes"]) is int


def test_what_else_is_a_spec():
    settings = TensorSettings(block_size=4)
    assert Spec.of(None) == Spec()
    assert Spec.of(settings) == Spec(settings)
    assert Spec.of(EXAMPLE) == Spec.from_dict(EXAMPLE)
    assert Spec.of(Spec(settings)) == Spec(settings)
    assert Spec.from_dict({"defaults": None, "rules": None}) == Spec()
    with pytest.raises(TypeError, match="spec of type str, but expected a Spec"):
        Spec.of("spec.yaml")


def test_a_rule_keeps_no_hold_on_the_callers_dict():
    given = {"n_codes": 4}
    rule = Rule(match="*", settings=given)
    given["n_codes"] = 8
    assert rule.settings == {"n_codes": 4}


def test_rules_by_type_of_module():
    content = [
        {"type": "Conv2d", "block_size": 9},
        {"type": "Linear", "match": "a.*", "skip": True},
    ]
    spec = Spec.from_dict({"rules": content})
    assert spec.to_dict()["rules"] == content
    assert spec.settings_for("a.weight", ("Special", "Conv2d")).block_size == 9
    assert spec.settings_for("a.weight", ("Linear",)).skip
    assert not spec.settings_for("b.weight", ("Linear",)).skip
    assert spec.settings_for("a.weight") == TensorSettings()
    assert spec.unused_rules(["a.weight"]) == spec.rules
    assert spec.unused_rules([("a.weight", ("Linear",))]) == spec.rules[:1]
    assert list(map(str, spec.rules)) == ["type 'Conv2d'", "match 'a.*' and type 'Linear'"]


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"default": {}}, "Got the key 'default' in a spec, .* did you mean 'defaults'"),
        ({"defaults": {"blocksize": 4}}, "'blocksize' in defaults, .* did you mean 'block_size'"),
        ({"rules": [{"match": "*", "codes": 4}]}, "In rule 1: Got the key 'codes'.*'n_codes'"),
        ({"defaults": {"zzz": 1}}, "Got the key 'zzz' in defaults, but expected one of block_"),
        ({"defaults": {3: 1}}, "Got the key 3 in defaults"),
        ({"defaults": [1]}, r"Got \[1\] for defaults, but expected a mapping"),
        ({"rules": {"match": "*"}}, "Got rules=.*, but expected a list of mappings"),
        ({"rules": ["*"]}, r"In rule 1: Got '\*' for a rule, but expected a mapping"),
        ({"rules": [{"match": "*"}, {"skip": True}]}, "In rule 2: .* expected one of the two"),
        ({"rules": [{"match": "*", "regex": "a"}]}, "expected one of the two"),
        ({"rules": [{"regex": "(a"}]}, r"In rule 1: Got regex='\(a', but expected a regular"),
        ({"rules": [{"match": 3}]}, "Got match=3, but expected a pattern"),
        ({"rules": [{"type": ""}]}, "Got type='', but expected a pattern"),
        ({"defaults": {"importance": "all"}}, "Got importance='all', but expected one of 'block'"),
        ({"defaults": {"feedback": 1}}, "Got feedback=1, but expected true or false"),
        ({"defaults": {"group": ""}}, "Got group='', but expected a name or None"),
        ({"rules": [{"match": ""}]}, "Got match='', but expected a pattern"),
        ({"rules": [{"match": "*", "n_codes": 1}]}, "In rule 1: Got n_codes=1, but expected an"),
        ({"defaults": {"n_codes": 65537}}, "In defaults: Got n_codes=65537, .* at most 65536"),
        ({"defaults": {"n_codes": "256"}}, "Got n_codes='256', but expected an int >= 2"),
        ({"defaults": {"block_size": 0}}, "Got block_size=0, but expected an int >= 1"),
        ({"defaults": {"block_size": True}}, "Got block_size=True, but expected an int"),
        ({"defaults": {"min_size": -1}}, "Got min_size=-1, but expected an int >= 0"),
        ({"defaults": {"codebook": None}}, "Got codebook=None, but expected one of 'per_block'"),
        ({"defaults": {"rotation": "none"}}, "Got rotation='none', but expected one of 'hadamard'"),
        ({"defaults": {"codebook_dtype": "bfloat16"}}, "Got codebook_dtype='bfloat16'"),
        ({"defaults": {"scale": ["row"]}}, r"Got scale=\['row'\]"),
        ({"defaults": {"skip": "no"}}, "Got skip='no', but expected true or false"),
    ],
)
def test_mistakes_are_named(content, message):
    with pytest.raises(ValueError, match=message):
        Spec.from_dict(content)


def test_wrong_parameters_are_of_one_kind():
    with pytest.raises(InvalidParameterError):
        TensorSettings(n_stages=0)


# ---------------------------------------------------------------- YAML

YAML = """
# what to do with a small encoder
defaults:
  block_size: 8
  rotation: null
rules:
  - match: "*embeddings*"   # words get smaller blocks
    block_size: 4
  - regex: 'pooler\\..*'
    skip: yes
"""


@pytest.fixture
def spec_yaml():
    pytest.importorskip("yaml")
    from pgkmeans_sk import spec_yaml

    return spec_yaml


def test_yaml_file(spec_yaml, tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(YAML, "utf-8")
    spec = spec_yaml.read_spec(path)
    assert spec.settings_for("word_embeddings").block_size == 4
    assert spec.settings_for("pooler.weight").skip
    assert spec_yaml.spec_from_yaml(spec_yaml.spec_to_yaml(spec)) == spec


def test_yaml_merge_keys(spec_yaml):
    text = "rules:\n  - &base {match: a, n_codes: 4}\n  - <<: *base\n    match: b\n"
    assert spec_yaml.spec_from_yaml(text).settings_for("b").n_codes == 4


@pytest.mark.parametrize("text", ["", "# nothing\n", "defaults:\nrules:\n"])
def test_empty_yaml_means_defaults(spec_yaml, text):
    assert spec_yaml.spec_from_yaml(text) == Spec()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: [", "not YAML: .* line 1"),
        ("- a\n", r"Got \['a'\] for a spec, but expected a mapping"),
        ("defaults:\n  skip: true\n  skip: false\n", "'skip' is there twice .*line 3"),
        ("defaults: !!python/object:os.system {}\n", "not YAML: could not determine a constructor"),
        ("default: {}\n", "did you mean 'defaults'"),
        ("rules:\n  - match: '*'\n    blocksize: 4\n", "did you mean 'block_size'"),
    ],
)
def test_mistakes_in_yaml_name_the_file(spec_yaml, tmp_path, text, message):
    path = tmp_path / "spec.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=f"(?s)spec.yaml: .*{message}"):
        spec_yaml.read_spec(path)


def test_a_file_that_is_not_text(spec_yaml, tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"spec.yaml: .*decode"):
        spec_yaml.read_spec(path)
    with pytest.raises(OSError, match=r"missing\.yaml"):
        spec_yaml.read_spec(tmp_path / "missing.yaml")
