"""
How a fit converges
===================

An ``InertiaMonitor`` keeps the inertia and the time of each iteration, without a word in between;
a ``ConvergenceDisplay`` draws them. Progress bars are scikit-learn's own:
``kmeans.set_callbacks(sklearn.callback.ProgressBar())``.
"""

# %%
# Three starts from random rows. The inertia never rises, whatever the start.
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

from pgkmeans_sk import InertiaMonitor, PGKMeans
from pgkmeans_sk.displays import ConvergenceDisplay

X = load_digits().data
monitor = InertiaMonitor()
kmeans = PGKMeans(64, init="random", n_init=3, random_state=0).set_callbacks(monitor).fit(X)
ConvergenceDisplay.from_monitor(monitor, kmeans)
plt.show()

# %%
# One start, plain and with momentum (``algorithm="auto"``), which gets further in fewer
# iterations.
figure, ax = plt.subplots(layout="constrained")
for algorithm, style in (("lloyd", {"color": "#D55E00", "linestyle": "--"}), ("auto", {})):
    fitted = PGKMeans(64, init="random", n_init=1, algorithm=algorithm, tol=0, random_state=3)
    ConvergenceDisplay.from_estimator(fitted, X, ax=ax, label=algorithm, **style)
ax.legend(title="algorithm", frameon=False)
plt.show()

# %%
# Clusters that begin empty are filled before the first iteration. Here half of the first centres
# are copies.
display = ConvergenceDisplay.from_estimator(PGKMeans(64, init=X[[0] * 32 + list(range(32))]), X)
for repair in display.repairs:
    inertias = f"{repair.inertia_before:.0f} -> {repair.inertia_after:.0f}"
    print(f"{repair.n_empty} empty clusters filled: inertia {inertias}")
plt.show()
