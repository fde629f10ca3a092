"""Suspicious entries of data sets: wrong signs and units, copies, outliers, labels of several levels of theory."""

from lamjax.audit.sets import Audit as Audit
from lamjax.audit.sets import Finding as Finding
from lamjax.audit.sets import SetAudit as SetAudit
from lamjax.audit.sets import audit as audit
