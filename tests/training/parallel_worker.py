"""One process of trainings that several share, one after another; started by the test with torchrun's variables."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from cygnet.training.config_file import config_from
from cygnet.training.parallel import many_processes
from cygnet.training.start import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    for place, port in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        os.environ["MASTER_PORT"] = port
        config = config_from(json.loads(Path(place).read_text()), Path(place).parent)
        with many_processes(config) as group:
            train(config, group=group, say=lambda text: None)
