"""Tables, plots and progress bars of plain numbers; nothing here knows about atoms."""

from lamjax.reports.console import console as console
from lamjax.reports.console import progress as progress
from lamjax.reports.console import table as table
