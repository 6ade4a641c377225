"""Kills a training run at random moments and starts it again, until it ends: are its last parameters the same bits?

    python experiments/kill_and_resume.py --kills=20 --mesh=data=2,fsdp=2 --devices=4

Prints one line per kill and a verdict; its exit status is 1 where a bit differs.
"""

import pathlib
import random
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from gradkit.leaves import names
from gradkit.training import Checkpoints, TrainConfig
from gradkit.training.train import start

FLAGS = flags.FLAGS
flags.DEFINE_integer("kills", 20, "how often the run is killed")
flags.DEFINE_string("workload", "digits_mlp", "the problem")
flags.DEFINE_string("method", "adamw", "the method")
flags.DEFINE_integer("steps", 6000, "steps of the run")
flags.DEFINE_integer("eval_every", 20, "steps between checkpoints")
flags.DEFINE_string("mesh", "data=1", "axes of the mesh")
flags.DEFINE_integer("devices", 1, "virtual devices")
flags.DEFINE_float("longest", 0.5, "seconds after its first new checkpoint within which a run is killed")
flags.DEFINE_integer("seed", 0, "of the moments")


def main(argv: list[str]) -> int:
    """Runs to the end once, and once with kills; compares the two."""
    del argv
    folder = pathlib.Path(tempfile.mkdtemp())
    common = {name: FLAGS[name].value for name in ("workload", "method", "steps", "eval_every")}
    given = [f"--{name}={value}" for name, value in common.items()]
    command = [sys.executable, "-m", "gradkit", "train", *given, f"--mesh={FLAGS.mesh}", f"--devices={FLAGS.devices}"]
    whole, killed = ([*command, f"--checkpoint_dir={folder / name}"] for name in ("whole", "killed"))
    subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)
    draw = random.Random(FLAGS.seed)
    saved = Checkpoints(folder / "killed")
    for i in range(FLAGS.kills):
        before = saved.latest()
        with subprocess.Popen(killed, stdout=subprocess.DEVNULL) as child:
            while saved.latest() == before and child.poll() is None:
                time.sleep(0.01)
            time.sleep(draw.uniform(0.0, FLAGS.longest))
            child.kill()
        latest = saved.latest()
        print(f"kill {i + 1:>2}: last checkpoint {latest}" + (" (the run was over)" if child.returncode == 0 else ""))
    subprocess.run(killed, check=True, stdout=subprocess.DEVNULL)
    states = [start(TrainConfig(**common, checkpoint_dir=str(folder / name))).state for name in ("whole", "killed")]
    differ = []
    for name, x, y in zip(names(states[0]), *map(jax.tree.leaves, states), strict=True):
        x, y = (jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v for v in (x, y))
        if np.asarray(x).tobytes() != np.asarray(y).tobytes():
            differ.append(name)
    print(f"{len(names(states[0]))} leaves; different bits in {', '.join(differ) or 'none'}")
    return int(bool(differ))


if __name__ == "__main__":
    app.run(main)
