"""
Training with Quant-Noise
=========================

A network that will be compressed can be trained for it. `Quant-Noise
<https://arxiv.org/abs/2004.07320>`__ replaces a random part of the blocks of weights by code
words in each step of the training, so that the network learns to live with them.
"""

# %%
# A small network for scikit-learn's digits, trained in full precision.
import copy

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pgkmeans_sk import nn

X, y = load_digits(return_X_y=True)
parts = train_test_split(X.astype(np.float32) / 16, y, test_size=0.4, random_state=0)
X_train, X_test, y_train, y_test = map(torch.as_tensor, parts)


def train(model, n_epochs, seed):
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(n_epochs):
        for batch in torch.randperm(len(X_train), generator=generator).split(256):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(X_train[batch]), y_train[batch]).backward()
            optimizer.step()
    return model.eval()


@torch.inference_mode()
def accuracy(model):
    return 100 * (model(X_test).argmax(dim=1) == y_test).double().mean().item()


torch.manual_seed(0)
network = torch.nn.Sequential(
    torch.nn.Linear(64, 96),
    torch.nn.ReLU(),
    torch.nn.Linear(96, 64),
    torch.nn.ReLU(),
    torch.nn.Linear(64, 10),
)
network = train(network, 20, seed=0)
print(f"{accuracy(network):.1f} % in full precision")

# %%
# Ten more epochs without and with noise, and then codes for blocks of 8 weights: nothing is
# trained after that.
spec = {"defaults": {"block_size": 8}}
numbers_of_codes = (8, 16, 32)
figure, ax = plt.subplots(layout="constrained")
for noise, style in ((0.0, "o-"), (0.3, "s--")):
    bits, accuracies = [], []
    for n_codes in numbers_of_codes:
        model = copy.deepcopy(network)
        if noise:
            nn.quant_noise(model, p=noise, kind="pq", n_codes=n_codes, block_size=8, seed=0)
        train(model, 10, seed=1)
        spec["defaults"]["n_codes"] = n_codes
        report = nn.compress_model(model, spec)
        bits.append(report.bits_per_weight)
        accuracies.append(accuracy(model))
    ax.plot(bits, accuracies, style, label=f"noise p = {noise}")
ax.axhline(accuracy(network), color="0.45", linestyle=":", label="full precision")
ax.set_xlabel("bits per weight of the whole file")
ax.set_ylabel("accuracy on held-out digits, %")
ax.set_title("Compressed without training afterwards")
ax.legend(frameon=False)
plt.show()
