"""One way to configure: declared, checked, read from files and documented."""

from lamjax.config.declare import configuration as configuration
from lamjax.config.declare import or_own as or_own
from lamjax.config.files import apply as apply
from lamjax.config.files import differences as differences
from lamjax.config.files import merged as merged
from lamjax.config.files import read as read
from lamjax.config.files import schema as schema
from lamjax.config.files import to_json as to_json
from lamjax.config.files import validate as validate
from lamjax.config.templates import template as template
