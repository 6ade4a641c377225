"""Small real problems that ship with the package, problems of one's own (data, network, loss, target; or a folder
of files), and the parameters of real models as trees of shapes."""

from gradkit.workloads.folder import from_folder
from gradkit.workloads.models import model_shapes, models
from gradkit.workloads.problem import problem
from gradkit.workloads.registry import available, load
from gradkit.workloads.workload import Workload

__all__ = ["Workload", "available", "from_folder", "load", "model_shapes", "models", "problem"]
