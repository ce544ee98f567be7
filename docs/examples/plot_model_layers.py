"""
The layers of a compressed model
================================

``nn.compress_model`` replaces the weights of a model by codes and codebooks, in place. Its report
says what became of each; ``LayerReportDisplay`` draws it.
"""

# %%
# A small transformer, with settings for some of its weights.
import matplotlib.pyplot as plt
import torch

from pgkmeans_sk import nn
from pgkmeans_sk.displays import LayerReportDisplay

torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
model = torch.nn.ModuleDict(
    {
        "words": torch.nn.Embedding(4000, 128),
        "encoder": torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False),
    }
)
spec = {
    "defaults": {"block_size": 4},
    "rules": [{"type": "Embedding", "block_size": 8}, {"match": "*linear*", "n_codes": 64}],
}
report = nn.compress_model(model, spec)
LayerReportDisplay.from_report(report)
plt.show()

# %%
# The same as text. The file that ``nn.save`` writes has as many bytes as the last line says.
print(report)
