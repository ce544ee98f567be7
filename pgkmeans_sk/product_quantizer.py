"""ProductQuantizer: parameters, validation, fitted attributes; the work is in ``quantization``."""

from __future__ import annotations

from typing import Any, Self

from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.fitted import unchanged_on_error
from pgkmeans_sk.quantization.fit import fit_quantizer
from pgkmeans_sk.quantizer_fitted import (
    fitted_of,
    parameters_of,
    remember_codebooks,
    warn_of_copies,
)
from pgkmeans_sk.quantizer_inputs import check_input, codes_of, decoded, searched
from pgkmeans_sk.quantizer_parameters import (
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
        Of codebooks, scales and rotation as they are stored and used. None: that of the data
        (float32 for bfloat16).

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

    Notes
    -----
    Results live where ``X``, codes or queries do: of PyTorch tensors, ``transform``,
    ``inverse_transform`` and ``topk`` return tensors on the same device (docs/tensors.md), of dask
    collections lazy arrays (docs/scaling.md). Fitted attributes are NumPy arrays, whatever ``X``
    was, and a quantizer that was fitted on one kind takes any other.

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
        X : array-like, tensor, RowBlocks or dask collection, (n_samples, n_features)
            Rows, in float16, float32 or float64; other numbers become float64. Never written. Rows
            in blocks, of :class:`RowBlocks` or dask, stay where they are (docs/scaling.md).
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
            rows = check_input(self, X, sample_weight, reset=True)
            settings = settings_of(self, rows.shape[1], rows.output_dtype)
            check_enough_blocks(*rows.shape, settings)
            if importance is not None:
                importance = check_importance(importance, rows.shape[1], settings)
            rng = check_random_state(self.random_state)
            fitted = fit_quantizer(rows.training(settings), importance, settings, rng)
            remember_codebooks(self, fitted)
            warn_of_copies(self, stacklevel=3)
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
        pq = cls(**parameters_of(decoder))
        pq.n_features_in_ = decoder.n_features
        remember_codebooks(pq, fitted_of(decoder))
        return pq

    def fit_transform(
        self,
        X: Any,
        y: Any = None,
        sample_weight: ArrayLike | None = None,
        importance: ArrayLike | None = None,
    ) -> Any:
        """Fit and return ``transform(X)``; see ``fit``."""
        return self.fit(X, sample_weight=sample_weight, importance=importance).transform(X)

    # ---------------------------------------------------------------- using the codes

    def transform(self, X: Any) -> Any:
        """Codes of the rows of ``X``.

        Parameters
        ----------
        X : array-like, tensor, RowBlocks or dask collection, (n_samples, n_features)
            Rows, of any accepted dtype: it need not be that of ``fit``.

        Returns
        -------
        codes : ndarray or tensor of shape (n_samples, n_stages * n_blocks), uint8 or uint16
            Where ``X`` is; for dask collections, a dask array that is computed later. The code of
            block j in stage s is in column ``s * n_blocks + j``; of several code words at the same
            distance, it is the lowest number. With ``scale="row"`` one more column, for the size
            of the row.
        """
        check_is_fitted(self)
        return codes_of(self, X, self._encoder)

    def inverse_transform(self, codes: Any) -> Any:
        """Rows that codes stand for.

        Parameters
        ----------
        codes : array-like, tensor or dask array of shape (n_samples, n_columns), integers
            As ``transform`` gives them.

        Returns
        -------
        X : ndarray or tensor of shape (n_samples, n_features), floating
            Where ``codes`` are, in the dtype of the data of ``fit``; for dask arrays of codes, a
            dask array that is computed later.

        Raises
        ------
        ValueError
            If a code is not that of a code word.
        """
        check_is_fitted(self)
        return decoded(codes, self.decoder_)

    def score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Minus the mean squared error of a value of ``X`` when it is encoded and decoded.

        Parameters
        ----------
        X : array-like, tensor, RowBlocks or dask collection, (n_samples, n_features)
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
        rows = check_input(self, X, sample_weight, reset=False)
        return -rows.mean_sq_error(self._encoder) / rows.shape[1]

    def topk(
        self, queries: Any, codes: Any, k: int = 10, metric: str = "sqeuclidean"
    ) -> tuple[Any, Any]:
        """The ``k`` rows nearest to each query, among rows given by their codes.

        Queries are compared with decoded rows, by look-up tables, without decoding them.

        Parameters
        ----------
        queries : array-like or tensor of shape (n_queries, n_features)
            What to search for, as it is: queries are not quantized.
        codes : array-like or tensor of shape (n_samples, n_columns), integers
            Codes of the rows to search in; the work is done where they are.
        k : int, default=10
            How many to find, at most ``n_samples``.
        metric : {"sqeuclidean", "inner_product"}, default="sqeuclidean"
            Least squared distances, or largest inner products.

        Returns
        -------
        values : ndarray or tensor of shape (n_queries, k), float32 or float64
            Where ``queries`` are: squared distances, ascending, or inner products, descending.
        rows : ndarray or tensor of shape (n_queries, k), int64
            Numbers of the rows; of equal ones the lowest first.

        References
        ----------
        Jégou, Douze and Schmid 2011, section 3.B, asymmetric distances.
        """
        check_is_fitted(self)
        return searched(self, queries, codes, k, metric)

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
        X : array-like, tensor, RowBlocks or dask collection, (n_samples, n_features)
            Rows, not necessarily those of ``fit``.

        Returns
        -------
        matrix : CompressedMatrix
            Decodes to exactly ``inverse_transform(transform(X))``.
        """
        check_is_fitted(self)
        return check_input(self, X, None, reset=False).compressed(self._encoder)

    # ---------------------------------------------------------------- conventions

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn's tools should know."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # codes are integers
        return tags
