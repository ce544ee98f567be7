"""Files that are damaged or made up: they load as they were, or one error says what is wrong."""

import tracemalloc
import warnings

import numpy as np
import pytest

from pgkmeans_sk.codes.matrix_kinds import parts_of
from pgkmeans_sk.codes.storage import open_tensors
from tests.golden.make import FOLDER
from tests.mutations import DAMAGE, FORGERY

pytest.importorskip("safetensors")

FILES = sorted(path.name for path in FOLDER.glob("*.safetensors"))
N_FILES = 150
"""Of each kind and original: 19 500 in all."""


def everything(path):
    """All that a file holds, so that two can be compared; None in place of refused files."""
    with open_tensors(path) as file:
        arrays = {}
        for name in file.compressed:
            matrix = file.matrix(name)
            arrays[name] = {
                part: (array.dtype, array.shape, array.tobytes())
                for part, array in parts_of(matrix).items()
            }
            check_decodes(file, name, matrix)
        raw = {name: bytes(file.raw(name)) for name in file.carried}
        return dict(file.compressed), dict(file.carried), dict(file.metadata), arrays, raw


def check_decodes(file, name, matrix):
    """Whatever it decodes to, it can be decoded. Not what would be larger than the file allows."""
    described = file.compressed[name]
    assert matrix.shape == (described.layout.n_rows, described.layout.n_features)
    if matrix.shape[0] * matrix.shape[1] < 100_000:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # values beyond float16 are values of a made-up file
            assert file.array(name).shape == described.shape


def outcome(path, content):
    """What is loaded, or the text of the error."""
    path.write_bytes(content)
    try:
        return everything(path)
    except ValueError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    assert len(message) < 2000
    return message


@pytest.mark.parametrize("kind", [*DAMAGE, *FORGERY], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", FILES)
def test_mutated_files(name, kind, tmp_path):
    rng = np.random.default_rng([FILES.index(name), [*DAMAGE, *FORGERY].index(kind)])
    content = (FOLDER / name).read_bytes()
    path = tmp_path / "some file"
    original = outcome(path, content)
    assert not isinstance(original, str)
    n_refused = 0
    for _ in range(N_FILES):
        found = outcome(path, kind(content, rng))
        if isinstance(found, str):
            n_refused += 1
        elif kind in DAMAGE:
            assert found == original
    assert n_refused > 0


@pytest.mark.parametrize("name", FILES)
def test_memory_is_bounded_by_the_size_of_the_file(name, tmp_path):
    content = (FOLDER / name).read_bytes()
    path = tmp_path / "some file"
    outcome(path, content)  # what is imported and compiled only once
    tracemalloc.start()
    try:
        for kind in (*DAMAGE, *FORGERY):
            rng = np.random.default_rng(FILES.index(name))
            for _ in range(10):
                mutated = kind(content, rng)
                path.write_bytes(mutated)
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                try:
                    with open_tensors(path) as file:
                        for tensor in file.compressed:
                            file.matrix(tensor)
                except ValueError:
                    pass
                peak = tracemalloc.get_traced_memory()[1] - before
                assert peak < 40 * len(mutated) + 50_000
    finally:
        tracemalloc.stop()
