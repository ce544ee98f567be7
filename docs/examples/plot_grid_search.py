"""
A pipeline and a grid search
============================

``PGKMeans`` is a transformer, too: distances to its centres are features. How many of them does a
linear classifier want? scikit-learn's own tools find out.
"""

# %%
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from pgkmeans_sk import PGKMeans

X, y = load_digits(return_X_y=True)
pipeline = make_pipeline(PGKMeans(random_state=0), RidgeClassifier())
numbers = [5, 10, 20, 40, 80, 160]
search = GridSearchCV(pipeline, {"pgkmeans__n_clusters": numbers}, cv=4).fit(X, y)
search.best_params_

# %%
scores = search.cv_results_
figure, ax = plt.subplots(layout="constrained")
ax.errorbar(numbers, scores["mean_test_score"], scores["std_test_score"], marker="o", capsize=3)
ax.set_xscale("log")
ax.set_xticks(numbers, map(str, numbers))
ax.minorticks_off()
ax.set_xlabel("clusters")
ax.set_ylabel("accuracy, four-fold")
ax.set_title("Distances to centres as features")
plt.show()
