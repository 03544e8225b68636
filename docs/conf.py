"""How `make docs` builds these pages.  Warnings are errors; pages made from the code are written before the build."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tools.documentation import write_pages  # noqa: E402
from vllm.version import __version__  # noqa: E402

project = "vllm"
release = __version__
extensions = ["myst_parser"]
html_theme = "furo"
html_title = f"vllm {__version__}"
html_show_copyright = False
source_suffix = {".md": "markdown"}
exclude_patterns = ["build"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

write_pages(HERE)
