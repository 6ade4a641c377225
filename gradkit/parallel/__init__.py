"""On which devices everything is, what a compiled step moves between them, and training that seldom moves anything."""

from gradkit.parallel.alternating_tuning_merging import alternating_tuning_merging, task_arithmetic, task_vector
from gradkit.parallel.arrivals import Aggregations, Arrivals, arrival_schedule
from gradkit.parallel.async_coordinate_update import async_coordinate_update, degas
from gradkit.parallel.compressors import Compressor, compressor_of
from gradkit.parallel.contrastive import ring_contrastive_loss, tiled_contrastive_loss
from gradkit.parallel.dadao import Dadao, DadaoState, dadao, poisson_events
from gradkit.parallel.deep_gradient_compression import deep_gradient_compression, dgc_warmup, top_k_compressor
from gradkit.parallel.delayed_dual_averaging import delayed_dual_averaging, optimistic_delayed_dual_averaging
from gradkit.parallel.delayed_nesterov import async_local_sgd, delayed_nesterov, dynamic_local_steps
from gradkit.parallel.demo import (
    dct_top_k,
    demo,
)
from gradkit.parallel.diff2 import Diff2, Diff2State, diff2
from gradkit.parallel.diloco import diloco, outer_nesterov
from gradkit.parallel.dilocox import dilocox, one_step_delay
from gradkit.parallel.dproxsgt import compressed_dproxsgt, dproxsgt
from gradkit.parallel.dynamic_backup_workers import BackupState, BackupWorkers, backup_mean, dynamic_backup_workers
from gradkit.parallel.effective_rank import adaptive_rank, effective_rank
from gradkit.parallel.error_feedback import error_feedback, mean_compressor
from gradkit.parallel.fed_kseed import (
    FedKSeed,
    FedKSeedMessage,
    FedKSeedState,
    fed_kseed,
    seed_probabilities,
)
from gradkit.parallel.fedbuff import fedbuff, flush_buffer, polynomial_staleness, threshold_staleness
from gradkit.parallel.fedfix import arrival_weights, async_fedavg, fedfix
from gradkit.parallel.fedspeed import fedspeed, prox_correction
from gradkit.parallel.gossip import gossip_mix, ring_mixing
from gradkit.parallel.gradient_coding import (
    SequentialCode,
    coded_mean,
    decode_gradients,
    encode_gradients,
    gradient_code,
    m_sgc,
    sr_sgc,
)
from gradkit.parallel.layered import layer_major, layered_gradient_accumulation, modular_stage
from gradkit.parallel.local_sgd import local_sgd, quadratic_weighted_average
from gradkit.parallel.local_updates import local_updates, sync_steps, synchronize
from gradkit.parallel.manual import declare_specs, inside_shard_map
from gradkit.parallel.mesh import batch_sharding, make_mesh, param_shardings
from gradkit.parallel.mt_dao import mt_dao, periodic_sync
from gradkit.parallel.population_based_training import (
    PopulationHistory,
    exploit,
    explore,
    pbt_step,
    population_based_training,
)
from gradkit.parallel.powersgd import low_rank_compressor, powersgd
from gradkit.parallel.quadratic_synchronization import quadratic_synchronization
from gradkit.parallel.quantized_replica_mean import int8_compressor, quantized_replica_mean
from gradkit.parallel.random_k_compressor import random_k_compressor
from gradkit.parallel.replicas import init_replicas, replica_mean, replicate, resize_replicas
from gradkit.parallel.ring import ring_reduce
from gradkit.parallel.savic import savic, scale_by_synced_preconditioner
from gradkit.parallel.shardings import init_sharded, partition_fn, state_shardings
from gradkit.parallel.shared_rmsprop import shared_rmsprop
from gradkit.parallel.shared_seed_exchange import shared_seed_exchange
from gradkit.parallel.shared_seed_spsa import (
    log_byte_decode,
    log_byte_encode,
    shared_seed_gradient,
    shared_seed_spsa,
)
from gradkit.parallel.shuffle_private_mean import shuffle_private_mean
from gradkit.parallel.sigmoid_contrastive import ring_sigmoid_contrastive_loss
from gradkit.parallel.sign_compressor import sign_compressor
from gradkit.parallel.simulate_events import Simulation, simulate_events, start_simulation
from gradkit.parallel.streaming_diloco import fragment_steps, streaming_diloco
from gradkit.parallel.terngrad import ternary_compressor, terngrad
from gradkit.parallel.traffic import Collective, collective_bytes

__all__ = [
    "Aggregations",
    "Arrivals",
    "BackupState",
    "BackupWorkers",
    "Collective",
    "Compressor",
    "Dadao",
    "DadaoState",
    "Diff2",
    "Diff2State",
    "FedKSeed",
    "FedKSeedMessage",
    "FedKSeedState",
    "PopulationHistory",
    "SequentialCode",
    "Simulation",
    "adaptive_rank",
    "alternating_tuning_merging",
    "arrival_schedule",
    "arrival_weights",
    "async_coordinate_update",
    "async_fedavg",
    "async_local_sgd",
    "backup_mean",
    "batch_sharding",
    "coded_mean",
    "collective_bytes",
    "compressed_dproxsgt",
    "compressor_of",
    "dadao",
    "dct_top_k",
    "declare_specs",
    "decode_gradients",
    "deep_gradient_compression",
    "degas",
    "delayed_dual_averaging",
    "delayed_nesterov",
    "demo",
    "dgc_warmup",
    "diff2",
    "diloco",
    "dilocox",
    "dproxsgt",
    "dynamic_backup_workers",
    "dynamic_local_steps",
    "effective_rank",
    "encode_gradients",
    "error_feedback",
    "exploit",
    "explore",
    "fed_kseed",
    "fedbuff",
    "fedfix",
    "fedspeed",
    "flush_buffer",
    "fragment_steps",
    "gossip_mix",
    "gradient_code",
    "init_replicas",
    "init_sharded",
    "inside_shard_map",
    "int8_compressor",
    "layer_major",
    "layered_gradient_accumulation",
    "local_sgd",
    "local_updates",
    "log_byte_decode",
    "log_byte_encode",
    "low_rank_compressor",
    "m_sgc",
    "make_mesh",
    "mean_compressor",
    "modular_stage",
    "mt_dao",
    "one_step_delay",
    "optimistic_delayed_dual_averaging",
    "outer_nesterov",
    "param_shardings",
    "partition_fn",
    "pbt_step",
    "periodic_sync",
    "poisson_events",
    "polynomial_staleness",
    "population_based_training",
    "powersgd",
    "prox_correction",
    "quadratic_synchronization",
    "quadratic_weighted_average",
    "quantized_replica_mean",
    "random_k_compressor",
    "replica_mean",
    "replicate",
    "resize_replicas",
    "ring_contrastive_loss",
    "ring_mixing",
    "ring_reduce",
    "ring_sigmoid_contrastive_loss",
    "savic",
    "scale_by_synced_preconditioner",
    "seed_probabilities",
    "shared_rmsprop",
    "shared_seed_exchange",
    "shared_seed_gradient",
    "shared_seed_spsa",
    "shuffle_private_mean",
    "sign_compressor",
    "simulate_events",
    "sr_sgc",
    "start_simulation",
    "state_shardings",
    "streaming_diloco",
    "sync_steps",
    "synchronize",
    "task_arithmetic",
    "task_vector",
    "ternary_compressor",
    "terngrad",
    "threshold_staleness",
    "tiled_contrastive_loss",
    "top_k_compressor",
]
