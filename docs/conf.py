"""How Sphinx builds the site: `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
sys.path.insert(0, str(Path(__file__).parents[1]))

project = "gradkit"
author = "the authors of gradkit"
project_copyright = "the authors of gradkit, Apache-2.0"
extensions = ["myst_nb", "sphinx_design", "site_of_gradkit"]
exclude_patterns = ["_ext", "_build"]
myst_enable_extensions = ["colon_fence", "deflist", "attrs_block", "attrs_inline"]
myst_heading_anchors = 3
# Equations are MathML, made by _ext/typeset.py: no page loads a script or a font from elsewhere.
nb_execution_mode = "off"
suppress_warnings = ["mystnb.unknown_mime_type"]
html_theme = "furo"
html_title = "gradkit"
html_static_path = ["_static"]
html_css_files = ["gradkit.css"]
html_js_files = [("gallery.js", {"defer": "defer"})]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_permalinks_icon = "#"
add_module_names = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#2f4fc4", "color-brand-content": "#2f4fc4"},
    "dark_css_variables": {"color-brand-primary": "#9db2ff", "color-brand-content": "#9db2ff"},
}
