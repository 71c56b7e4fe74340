"""What a request will take, before any of it is done: memory, disk, time, and where weights will be.

What the model is (``subject``) and where it runs (``machine``); what its stages need (``stages``, ``needs``), where
that fits (``decision``, ``nearest``), what it costs (``costs``) and what is not known of that (``assumptions``); and
all of it for one request (``plan``).
"""

from __future__ import annotations

from cygnet.planning.costs import Stage
from cygnet.planning.decision import decide
from cygnet.planning.machine import Machine, calibrate_machine, parse_memory
from cygnet.planning.plan import Plan, after_failure, plan, refuse_what_cannot_fit
from cygnet.planning.subject import Subject, subject_of, subject_of_loaded

__all__ = [
    "Machine",
    "Plan",
    "Stage",
    "Subject",
    "after_failure",
    "calibrate_machine",
    "decide",
    "parse_memory",
    "plan",
    "refuse_what_cannot_fit",
    "subject_of",
    "subject_of_loaded",
]
