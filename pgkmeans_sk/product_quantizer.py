"""ProductQuantizer: parameters, validation, fitted attributes; the work is in ``quantization``."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from pgkmeans_sk import validation
from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.packing import code_bits
from pgkmeans_sk.codes.search import METRICS, nearest_rows
from pgkmeans_sk.fitted import unchanged_on_error
from pgkmeans_sk.quantization.encode import Encoder
from pgkmeans_sk.quantization.errors import sq_errors
from pgkmeans_sk.quantization.fit import fit_quantizer
from pgkmeans_sk.quantization.prepared import Prepared
from pgkmeans_sk.quantization.stages import Fitted
from pgkmeans_sk.quantizer_parameters import (
    check_codes,
    check_enough_blocks,
    check_importance,
    check_parameters,
    settings_of,
)


class ProductQuantizer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Compress rows to a few small codes each: product quantization.

    The columns are cut into blocks of ``block_size``, and each block of a row is replaced by the
    number of the nearest of ``n_codes`` code words, found by PG k-means: each of them is in use.
    ``transform`` gives the numbers, ``inverse_transform`` the rows they stand for, ``compress`` a
    record of packed codes and codebooks that can be saved, and ``topk`` searches in codes.

    Parameters
    ----------
    block_size : int, default=8
        Columns of a block. The last block may be narrower; a block wider than the data is narrowed.
        Blocks of 1 are scalar quantization, at its optimum.

    n_codes : int, default=256
        Code words of a codebook, 2 to 65 536; a packed code takes ``ceil(log2(n_codes))`` bits.

    codebook : {"per_block", "shared"}, default="per_block"
        A codebook for each block, as for vectors whose columns mean different things; or one that
        all blocks share, as for the weights of a layer (iPQ). A narrower last block then takes the
        first values of the code words.

    quantizer : estimator or None, default=None
        Who finds code words: any clusterer of scikit-learn's kind with ``cluster_centers_``. Clones
        of it are given ``n_clusters`` and ``random_state``. None: PG k-means from random rows (from
        the partition tree if the table is small), on all cores.

    max_iter : int, default=10
        Most steps of PG k-means for a codebook. They have momentum, so that 10 go further than 25
        plain ones (docs/benchmarks.md); more of them lower the error a little. Not for other
        quantizers.

    rows_per_code : int or None, default=256
        PG k-means looks at so many blocks for each code word, drawn at random, if there are more.
        None: at all of them, which lowers the error a little. Single values (``block_size=1``) are
        all looked at.

    n_stages : int, default=1
        Residual quantization: the codes of each further stage stand for what the stages before have
        left over. Costs as many codes again.

    rotation : {None, "hadamard", "opq"}, default=None
        Rotate rows before they are cut into blocks: by a random Hadamard matrix, which costs a bit
        a column to store and makes blocks alike; or by a learned rotation (optimised product
        quantization), which costs ``n_features**2`` numbers.

    scale : {None, "row", "block"}, default=None
        Divide rows by their size (root of the mean square), which costs one more byte a row; or
        blocks by theirs, which costs a number a block and makes a difference for a shared
        codebook only.

    codebook_dtype : {None, "float16", "float32", "float64"}, default=None
        Of codebooks, scales and rotation as they are stored and used. None: that of the data.

    random_state : int, RandomState instance or None, default=None
        For all random choices.

    Attributes
    ----------
    codebooks_ : ndarray of shape (n_stages, n_codebooks, n_codes, block_size), floating
        Code words; ``n_codebooks`` is the number of blocks, or 1 if they share one. Values behind
        those of a narrower last block are 0.

    n_effective_codes_ : ndarray of shape (n_stages, n_codebooks), int64
        Code words that differ: ``n_codes`` unless there are fewer distinct blocks.

    decoder_ : Decoder
        Codebooks, scales and rotation: all that decoding needs.

    code_bits_ : int
        Bits of a packed code, ``ceil(log2(n_codes))``.

    bits_per_weight_ : float
        Bits of codes for each value of a row. Codebooks, scales of blocks and rotation do not
        grow with the rows, and come on top (``CompressedMatrix.bits_per_weight``).

    n_iter_ : int
        Most steps of k-means for a codebook.

    n_features_in_ : int
        Number of features seen during ``fit``.

    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, if all are strings.

    See Also
    --------
    CompressedMatrix : What ``compress`` returns.

    References
    ----------
    Jégou, Douze and Schmid 2011, "Product quantization for nearest neighbor search"; a codebook for
    all blocks of a weight matrix: Stock et al. 2019, "And the bit goes down", arXiv:1907.05686, and
    Fan et al. 2020, arXiv:2004.07320; rotation="opq": Ge et al. 2013, arXiv:1311.4055; residual
    stages: Chen, Guan and Wang 2010, "Approximate nearest neighbor search by residual vector
    quantization".

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import ProductQuantizer
    >>> X = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    >>> pq = ProductQuantizer(block_size=4, n_codes=32, random_state=0)
    >>> codes = pq.fit_transform(X)
    >>> codes.shape, codes.dtype
    ((1000, 4), dtype('uint8'))
    >>> pq.inverse_transform(codes).shape
    (1000, 16)
    >>> pq.bits_per_weight_
    1.25
    """

    def __init__(
        self,
        block_size: int = 8,
        n_codes: int = 256,
        *,
        codebook: str = "per_block",
        quantizer: Any = None,
        max_iter: int = 10,
        rows_per_code: int | None = 256,
        n_stages: int = 1,
        rotation: str | None = None,
        scale: str | None = None,
        codebook_dtype: str | None = None,
        random_state: Any = None,
    ) -> None:
        self.block_size = block_size
        self.n_codes = n_codes
        self.codebook = codebook
        self.quantizer = quantizer
        self.max_iter = max_iter
        self.rows_per_code = rows_per_code
        self.n_stages = n_stages
        self.rotation = rotation
        self.scale = scale
        self.codebook_dtype = codebook_dtype
        self.random_state = random_state

    # ---------------------------------------------------------------- fitting

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: ArrayLike | None = None,
        importance: ArrayLike | None = None,
    ) -> Self:
        """Find codebooks for the rows of ``X``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, in float16, float32 or float64; other numbers become float64. Never written.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            What the squared error of a row counts; >= 0, not all zero. None means ones.
        importance : array-like of shape (n_features,) or (block_size, block_size), default=None
            What the squared error of each column counts, >= 0, not all zero; costs
            a number a column to store. Or a positive semi-definite metric H for the values of a
            block, whose errors count as ``e @ H @ e``: it is used in ``fit`` and ``transform``
            and costs nothing. Not together with a rotation.

        Returns
        -------
        self : ProductQuantizer
            The fitted quantizer.

        Raises
        ------
        ValueError
            If a parameter, the rows or the weights are not as described. Nothing was changed then.

        Warns
        -----
        ConvergenceWarning
            If blocks have fewer distinct values than ``n_codes``.
        """
        with unchanged_on_error(self):
            check_parameters(self)
            is_half = getattr(X, "dtype", None) == np.float16
            X = validation.check_rows(self, X, reset=True, accept_sparse=False)
            output_dtype = np.dtype(np.float16) if is_half else X.dtype
            weights = validation.check_weights(sample_weight, X)
            settings = settings_of(self, X, output_dtype)
            check_enough_blocks(X, settings)
            if importance is not None:
                importance = check_importance(importance, X.shape[1], settings)
            rng = check_random_state(self.random_state)
            self._remember(fit_quantizer(Prepared(X, weights), importance, settings, rng))
            self._warn_of_copies()
        return self

    @classmethod
    def from_decoder(cls, decoder: Decoder) -> Self:
        """A quantizer that is fitted already: its codes are those of ``decoder``.

        Parameters
        ----------
        decoder : Decoder
            Of another quantizer, of a ``CompressedMatrix``, or made by hand.

        Returns
        -------
        pq : ProductQuantizer
            With the parameters that the decoder shows. Distances are Euclidean: a metric that was
            given for ``importance`` is not part of a decoder.

        Examples
        --------
        >>> import numpy as np
        >>> from pgkmeans_sk import ProductQuantizer
        >>> X = np.random.default_rng(0).normal(size=(500, 8))
        >>> small = ProductQuantizer(4, 16, random_state=0).compress(X)
        >>> pq = ProductQuantizer.from_decoder(small.decoder)
        >>> bool((pq.transform(X) == small.codes()).all())
        True
        """
        rotation = None
        if decoder.rotation is not None:
            rotation = "opq" if decoder.rotation.width == 1 else "hadamard"
        scale = "row" if decoder.row_scales is not None else None
        pq = cls(
            decoder.block_size,
            decoder.n_codes,
            codebook="shared" if decoder.is_shared else "per_block",
            n_stages=decoder.n_stages,
            rotation=rotation,
            scale="block" if decoder.block_scales is not None else scale,
            codebook_dtype=decoder.codebooks.dtype.name,
        )
        pq.n_features_in_ = decoder.n_features
        books = decoder.codebooks.reshape(-1, decoder.n_codes, decoder.block_size)
        n_distinct = [len(np.unique(book, axis=0)) for book in books]
        n_effective = np.reshape(n_distinct, decoder.codebooks.shape[:2])
        pq._remember(Fitted(Encoder(decoder), n_effective))
        return pq

    def _remember(self, fitted: Fitted) -> None:
        """Set the fitted attributes."""
        self._encoder = fitted.encoder
        self.decoder_ = decoder = fitted.encoder.decoder
        self.codebooks_ = decoder.codebooks
        self.n_effective_codes_ = fitted.n_effective_codes
        self.n_iter_ = fitted.n_iter
        self.code_bits_ = code_bits(decoder.n_codes)
        bits = decoder.n_block_codes * self.code_bits_ + 8 * (decoder.row_scales is not None)
        self.bits_per_weight_ = bits / decoder.n_features
        self._n_features_out = decoder.n_columns

    def fit_transform(
        self,
        X: Any,
        y: Any = None,
        sample_weight: ArrayLike | None = None,
        importance: ArrayLike | None = None,
    ) -> NDArray[Any]:
        """Fit and return ``transform(X)``; see ``fit``."""
        fitted = self.fit(X, sample_weight=sample_weight, importance=importance)
        codes: NDArray[Any] = fitted.transform(X)
        return codes

    def _warn_of_copies(self) -> None:
        n_short = int((self.n_effective_codes_ < self.n_codes).sum())
        if n_short:
            warnings.warn(
                f"{n_short} of {self.n_effective_codes_.size} codebooks have fewer than n_codes="
                f"{self.n_codes} distinct code words, one of them {self.n_effective_codes_.min()}: "
                "there are no more distinct blocks. Code words beyond are copies of the first.",
                ConvergenceWarning,
                stacklevel=3,
            )

    # ---------------------------------------------------------------- using the codes

    def transform(self, X: Any) -> NDArray[Any]:
        """Codes of the rows of ``X``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, of any accepted dtype: it need not be that of ``fit``.

        Returns
        -------
        codes : ndarray of shape (n_samples, n_stages * n_blocks), uint8 or uint16
            The code of block j in stage s is in column ``s * n_blocks + j``; of several code words
            at the same distance, it is the lowest number. With ``scale="row"`` one more column, for
            the size of the row.
        """
        check_is_fitted(self)
        X = validation.check_rows(self, X, reset=False, accept_sparse=False)
        return self._encoder.encode(X)

    def inverse_transform(self, codes: Any) -> NDArray[np.floating]:
        """Rows that codes stand for.

        Parameters
        ----------
        codes : array-like of shape (n_samples, n_columns), integers
            As ``transform`` gives them.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features), floating
            In the dtype of the data of ``fit``.

        Raises
        ------
        ValueError
            If a code is not that of a code word.
        """
        check_is_fitted(self)
        return self.decoder_.decode(check_codes(codes, self.decoder_))

    def score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Minus the mean squared error of a value of ``X`` when it is encoded and decoded.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights >= 0, not all zero; None means ones.

        Returns
        -------
        score : float
            At most 0. Importance does not count here.
        """
        check_is_fitted(self)
        X = validation.check_rows(self, X, reset=False, accept_sparse=False)
        weights = validation.check_weights(sample_weight, X)
        errors = sq_errors(self.decoder_, X, self._encoder.encode(X))
        return -float(np.average(errors, weights=weights) / X.shape[1])

    def topk(
        self, queries: Any, codes: Any, k: int = 10, metric: str = "sqeuclidean"
    ) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
        """The ``k`` rows nearest to each query, among rows given by their codes.

        Queries are compared with decoded rows, by look-up tables, without decoding them.

        Parameters
        ----------
        queries : array-like of shape (n_queries, n_features)
            What to search for, as it is: queries are not quantized.
        codes : array-like of shape (n_samples, n_columns), integers
            Codes of the rows to search in.
        k : int, default=10
            How many to find, at most ``n_samples``.
        metric : {"sqeuclidean", "inner_product"}, default="sqeuclidean"
            Least squared distances, or largest inner products.

        Returns
        -------
        values : ndarray of shape (n_queries, k), float32 or float64
            Squared distances, ascending, or inner products, descending.
        rows : ndarray of shape (n_queries, k), int64
            Numbers of the rows; of equal ones the lowest first.

        References
        ----------
        Jégou, Douze and Schmid 2011, section 3.B, asymmetric distances.
        """
        check_is_fitted(self)
        queries = validation.check_rows(self, queries, reset=False, accept_sparse=False)
        codes = check_codes(codes, self.decoder_)
        validation.check_choice("metric", metric, METRICS)
        return nearest_rows(self.decoder_, queries, codes, k, metric)

    def compress(
        self,
        X: Any,
        sample_weight: ArrayLike | None = None,
        importance: ArrayLike | None = None,
    ) -> CompressedMatrix:
        """Fit to ``X``, and return it as packed codes with their codebooks.

        Parameters
        ----------
        X, sample_weight, importance
            As in ``fit``.

        Returns
        -------
        matrix : CompressedMatrix
            Decodes to exactly ``inverse_transform(transform(X))``.

        Examples
        --------
        >>> import numpy as np
        >>> from pgkmeans_sk import ProductQuantizer
        >>> W = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)
        >>> small = ProductQuantizer(8, 16, codebook="shared", random_state=0).compress(W)
        >>> W.nbytes, small.nbytes
        (131072, 2560)
        >>> small.decode(rows=[3, 7]).shape
        (2, 64)
        """
        return self.fit(X, sample_weight=sample_weight, importance=importance).encode(X)

    def encode(self, X: Any) -> CompressedMatrix:
        """Rows as packed codes with the codebooks of the last ``fit``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, not necessarily those of ``fit``.

        Returns
        -------
        matrix : CompressedMatrix
            Decodes to exactly ``inverse_transform(transform(X))``.
        """
        check_is_fitted(self)
        X = validation.check_rows(self, X, reset=False, accept_sparse=False)
        decoder = self.decoder_
        codes = self._encoder.encode(X)
        squares = float(np.einsum("ij,ij->", X, X, dtype=np.float64))
        error = float(sq_errors(decoder, X, codes).sum())
        return CompressedMatrix.from_codes(
            decoder, codes, relative_error=float(np.sqrt(error / squares)) if squares else 0.0
        )

    # ---------------------------------------------------------------- conventions

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn's tools should know."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # codes are integers
        return tags
