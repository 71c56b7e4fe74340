"""One process of a training that several share; started by the test with torchrun's variables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from cygnet.training.config import config_from
from cygnet.training.parallel import many_processes
from cygnet.training.start import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    config = config_from(json.loads(place.read_text()), place.parent)
    with many_processes(config) as group:
        train(config, group=group, say=lambda text: None)
