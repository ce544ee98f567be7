"""The site: ``make docs`` builds it into docs/_build/html, without a network."""

import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Before the package is imported: the cache of compiled kernels that the tests use, too.
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".numba_cache"))
# Examples are small: threads that wait for one another would only slow them down.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))

import pgkmeans_sk  # noqa: E402

# ------------------------------------------------------------------ the project

project = "pgkmeans_sk"
author = "The pgkmeans_sk developers"
copyright = author
version = release = pgkmeans_sk.__version__
language = "en"

# ------------------------------------------------------------------ how pages are read

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_templates", "examples"]
templates_path = ["_templates"]
# A link that leads nowhere is an error (-W): those to other projects are not resolved here, since
# that would need their inventories from the network.
nitpicky = True
elsewhere = "sklearn numpy scipy torch transformers pandas matplotlib faiss nanopq dask distributed"
nitpick_ignore_regex = [(r"py:.*", rf"({elsewhere.replace(' ', '|')})\..*")]
myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_heading_anchors = 3
highlight_language = "none"  # of blocks that do not name one: what a terminal shows

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's sections say what there is to say, shapes included
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

# ------------------------------------------------------------------ the gallery

sphinx_gallery_conf = {
    "examples_dirs": ["examples"],
    "gallery_dirs": ["auto_examples"],
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "backreferences_dir": "api/examples",
    "doc_module": ("pgkmeans_sk",),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 10,
    "image_scrapers": ("matplotlib",),
    "plot_gallery": True,
}
# Agg draws files and opens no windows; that it cannot show one is no fault of an example.
warnings.filterwarnings("ignore", message=".*FigureCanvasAgg is non-interactive")

# ------------------------------------------------------------------ how pages look

html_theme = "pydata_sphinx_theme"
html_title = "pgkmeans_sk"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
# Pages that are no part of a section have nothing to list beside them.
html_sidebars = {page: [] for page in ("index", "install", "quickstart", "benchmarks")}


def skip_requests(app, what, name, obj, skip, options):
    """Leave out what scikit-learn writes into every estimator (``set_..._request``)."""
    return True if name.startswith("set_") and name.endswith("_request") else skip


def setup(app):
    app.connect("autodoc-skip-member", skip_requests)
