"""What a race says when it is over: a table, a picture, and one self-contained page."""

from gradkit.training.report.charts import check_libraries
from gradkit.training.report.curve import save_plot
from gradkit.training.report.files import reserve, write, write_finished
from gradkit.training.report.live import ticker, watcher
from gradkit.training.report.notebook import fragment
from gradkit.training.report.page import page, verdict
from gradkit.training.report.racing import into_folder
from gradkit.training.report.table import plain, show

__all__ = [
    "check_libraries",
    "fragment",
    "into_folder",
    "page",
    "plain",
    "reserve",
    "save_plot",
    "show",
    "ticker",
    "verdict",
    "watcher",
    "write",
    "write_finished",
]
