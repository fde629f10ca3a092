"""Tables, plots and progress bars of plain numbers, and how files are written; nothing here knows about atoms."""

from lamjax.reports.console import bar as bar
from lamjax.reports.console import bars as bars
from lamjax.reports.console import console as console
from lamjax.reports.console import progress as progress
from lamjax.reports.console import table as table
from lamjax.reports.console import warnings_as_text as warnings_as_text
