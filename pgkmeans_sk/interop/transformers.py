"""Hugging Face transformers: compressed models through save_pretrained and from_pretrained.

Importing this module makes the quantization method "pgkmeans" known to transformers::

    import pgkmeans_sk.interop.transformers  # before from_pretrained

Without it transformers does not know what codes are: it warns, and makes new random weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from pgkmeans_sk.nn import bake, compress_model
from pgkmeans_sk.nn.codebook_weight import GRADIENTS
from pgkmeans_sk.nn.pretrained import (
    WeightsToCome,
    accept_packed_state,
    packed_state,
    stored_patterns,
)
from pgkmeans_sk.nn.state import compressed_state
from pgkmeans_sk.spec import Spec, TensorSettings
from pgkmeans_sk.validation import check_choice

__all__ = ["PGKMeansConfig", "prepare_for_saving"]

METHOD = "pgkmeans"
"""The ``quant_method`` in a model's config.json."""

Model = TypeVar("Model", bound=PreTrainedModel)


class PGKMeansConfig(QuantizationConfigMixin):
    """What a model's config.json says of its compression.

    Codes and their settings are in the model's file. Given to ``from_pretrained`` as
    ``quantization_config``, it says how a model that is not compressed yet is to be compressed.

    Parameters
    ----------
    spec : dict, Spec, TensorSettings, str or None, default=None
        How a plain model is to be compressed, as of ``nn.compress_model``.
    gradient : {"mean", "sum"}, default="mean"
        As of ``nn.compress_model`` and ``nn.load``.
    random_state : int or None, default=0
        As of ``nn.compress_model``.

    Raises
    ------
    ValueError, TypeError
        If a parameter is none that is accepted.

    Examples
    --------
    >>> from pgkmeans_sk.interop.transformers import PGKMeansConfig
    >>> config = PGKMeansConfig({"defaults": {"block_size": 4}})
    >>> config.to_dict()["quant_method"]
    'pgkmeans'
    """

    def __init__(
        self,
        spec: Mapping[str, Any] | Spec | TensorSettings | str | None = None,
        gradient: str = "mean",
        random_state: int | None = 0,
        quant_method: str = METHOD,
    ) -> None:
        check_choice("gradient", gradient, GRADIENTS)
        check_choice("quant_method", quant_method, (METHOD,))
        if spec is not None and not isinstance(spec, str):
            spec = Spec.of(spec).to_dict()
        self.quant_method = quant_method
        self.spec = spec
        self.gradient = gradient
        self.random_state = random_state


class PGKMeansQuantizer(HfQuantizer):
    """Loads and saves codes for transformers; nobody needs to make one."""

    requires_calibration = False

    def __init__(self, quantization_config: PGKMeansConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._weights: WeightsToCome | None = None

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to spread a model over devices."""
        device_map = kwargs.get("device_map")
        if isinstance(device_map, Mapping) and len(set(device_map.values())) > 1:
            raise ValueError(
                f"Got a device_map with {len(set(device_map.values()))} devices, but expected one: "
                "a compressed model is loaded as a whole."
            )

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        if not self.pre_quantized:
            return model
        if not checkpoint_files or len(checkpoint_files) != 1:
            raise ValueError(
                f"Got a compressed model in {len(checkpoint_files or ())} files, but expected one: "
                "save it with a larger max_shard_size."
            )
        prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
        self._weights = WeightsToCome(
            model, checkpoint_files[0], prefix=prefix, gradient=self.quantization_config.gradient
        )
        # Of this model only: arrays of codes are no tensors that nobody expects.
        known = set(model._keys_to_ignore_on_load_unexpected or ())
        model._keys_to_ignore_on_load_unexpected = known | stored_patterns(
            self._weights.stored_names
        )
        return model

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        config = self.quantization_config
        if self._weights is not None:
            self._weights.fill()
            self._weights = None
            del model._keys_to_ignore_on_load_unexpected  # that of the class is there again
        else:
            compress_model(
                model, config.spec, gradient=config.gradient, random_state=config.random_state
            )
        accept_packed_state(model)
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[Any, dict[str, str]]:
        """What ``save_pretrained`` writes: the same file as ``nn.save``, but for one key."""
        return packed_state(model)

    def _dequantize(self, model: PreTrainedModel, dtype: Any = None) -> PreTrainedModel:
        baked = bake(model)
        return baked if dtype is None else baked.to(dtype)

    def is_serializable(self) -> bool:
        """Whether ``save_pretrained`` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the model can be trained: codebooks are parameters."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether it can be trained without adapters."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether ``torch.compile`` works."""
        return True


def prepare_for_saving(model: Model, config: PGKMeansConfig | None = None) -> Model:
    """Let ``save_pretrained`` write a compressed model as codes.

    Needed once for a model that ``nn.compress_model`` or ``nn.load`` made; what ``from_pretrained``
    loaded is prepared already.

    Parameters
    ----------
    model : PreTrainedModel
        A model with compressed weights.
    config : PGKMeansConfig, default=None
        What its config.json is to say.

    Returns
    -------
    model : PreTrainedModel
        The same.

    Raises
    ------
    TypeError
        If it is no model of transformers.
    ValueError
        If none of its weights is compressed.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from pgkmeans_sk import nn
    >>> from pgkmeans_sk.interop.transformers import prepare_for_saving
    >>> config = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=1,
    ...                     num_attention_heads=2, intermediate_size=64)
    >>> model = BertModel(config).eval()
    >>> report = nn.compress_model(model, {"defaults": {"n_codes": 16}})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     prepare_for_saving(model).save_pretrained(folder)
    ...     again = BertModel.from_pretrained(folder)
    >>> tokens = torch.tensor([[1, 2, 3]])
    >>> bool((again(tokens).pooler_output == model(tokens).pooler_output).all())
    True
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"Got a {type(model).__name__}, but expected a PreTrainedModel.")
    if not compressed_state(model):
        raise ValueError(
            f"Got a {type(model).__name__} without compressed weights, but expected some: "
            "nn.compress_model it first."
        )
    config = PGKMeansConfig() if config is None else config
    if getattr(model, "hf_quantizer", None) is None:
        accept_packed_state(model)
    model.hf_quantizer = PGKMeansQuantizer(config, pre_quantized=True)
    model.config.quantization_config = config
    return model


def _register() -> None:
    """Make the method known, once in a process, however often this module is imported."""
    for mapping, register, cls in (
        (AUTO_QUANTIZATION_CONFIG_MAPPING, register_quantization_config, PGKMeansConfig),
        (AUTO_QUANTIZER_MAPPING, register_quantizer, PGKMeansQuantizer),
    ):
        known = mapping.get(METHOD)
        if known is not None and known.__module__ == __name__:
            del mapping[METHOD]  # of this module before it was loaded again
        register(METHOD)(cls)


_register()
