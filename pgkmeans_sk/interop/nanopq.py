"""To and from nanopq: the same code words, and the same codes in the same arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from pgkmeans_sk.interop.plain import plain_codebooks, quantizer_of
from pgkmeans_sk.product_quantizer import ProductQuantizer

__all__ = ["from_nanopq", "to_nanopq"]


def to_nanopq(pq: ProductQuantizer) -> Any:
    """The same quantizer in nanopq.

    Parameters
    ----------
    pq : ProductQuantizer
        Fitted; of one stage, without rotation and sizes of rows.

    Returns
    -------
    nanopq.PQ
        Trained; its ``encode`` gives what ``pq.transform`` gives.

    Raises
    ------
    ValueError
        If nanopq cannot have such a quantizer.

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import ProductQuantizer
    >>> from pgkmeans_sk.interop.nanopq import to_nanopq
    >>> X = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    >>> pq = ProductQuantizer(4, 16, random_state=0).fit(X)
    >>> bool((to_nanopq(pq).encode(X) == pq.transform(X)).all())
    True
    """
    import nanopq

    codebooks = plain_codebooks(pq, "nanopq")
    n_blocks, n_codes, block_size = codebooks.shape
    theirs = nanopq.PQ(M=n_blocks, Ks=n_codes, verbose=False)
    theirs.Ds, theirs.codewords = block_size, codebooks
    return theirs


def from_nanopq(theirs: Any) -> ProductQuantizer:
    """The same quantizer here.

    Parameters
    ----------
    theirs : nanopq.PQ
        Trained, with Euclidean distances.

    Returns
    -------
    pq : ProductQuantizer
        Fitted, with a codebook for each block.

    Raises
    ------
    ValueError
        If it is not trained, or made for another metric.

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import ProductQuantizer
    >>> from pgkmeans_sk.interop.nanopq import from_nanopq, to_nanopq
    >>> X = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    >>> pq = ProductQuantizer(4, 16, random_state=0).fit(X)
    >>> again = from_nanopq(to_nanopq(pq))
    >>> bool((again.transform(X) == pq.transform(X)).all())
    True
    """
    if theirs.codewords is None:
        raise ValueError("Got a nanopq.PQ without code words, but expected a trained one.")
    if getattr(theirs, "metric", "l2") != "l2":
        raise ValueError(f"Got a nanopq.PQ with metric={theirs.metric!r}, but expected 'l2'.")
    return quantizer_of(np.asarray(theirs.codewords))
