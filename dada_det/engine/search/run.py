"""The search as a stage: makes a Runner of a config's plain keys, runs it, and prints a closing line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.schedule import MOST_STAGES
from dada_det.augment.space import AtomSpace, SearchSpace
from dada_det.devices import float32_arithmetic
from dada_det.engine.runtime.checkpoint import forbid_unsafe_loading
from dada_det.engine.runtime.faults import explained
from dada_det.engine.runtime.identity import Identity, demand_own, plain, resume_point
from dada_det.engine.runtime.launch import join_processes, say_machines
from dada_det.engine.runtime.runner import QuietRunner
from dada_det.engine.runtime.visualizer import visualizer
from dada_det.engine.search.curves import NoteCurves, pictures_of
from dada_det.engine.search.handover import TRAININGS, decide
from dada_det.engine.search.leaks import LookForLeaks
from dada_det.engine.search.problems import LOADERS, Problem, search_device
from dada_det.engine.search.searcher import Searcher, WritePolicy, build_searcher
from dada_det.errors import UserError
from dada_det.models.darts import SuperNet
from dada_det.report.search_page import search_page
from dada_det.search.alignment import trainable
from dada_det.search.daas import Daas, daas_settings
from dada_det.search.dada import Dada
from dada_det.search.ddas import Ddas, ddas_settings
from dada_det.search.ranks import world
from dada_det.search.results import POLICY_SIZE
from dada_det.search.settings import dada_settings
from dada_det.search.step import Algorithm
from dada_det.search.training import ADAMW, SGD

POLICY_LR = {"default": 0.02, "paper": 5e-3}  # Adam's, by the search's mode (the paper's Section 4.1)


def run_search(config: Config, resume: bool) -> None:
    """Searches as `config` says, into config.work_dir: the algorithm's files and checkpoints; prints a closing line.

    Keys: method (METHODS; "dada"), kind (LOADERS) and what its loader reads: data (root, val_root, subset, images_per_class,
    groups), image_size, mirror, classifier (name); batch_size, epochs, seed, precision ("bfloat16", on a GPU, or "float32"),
    operations, search (the method's entries), weights_optimizer (type SGD, the default, or AdamW; lr at base_batch_size),
    policy_optimizer (lr None: POLICY_LR), clip_grad, work_dir.

    Raises:
        UserError: the config or the images are wrong, or a fault of the machine (faults.py).
    """
    forbid_unsafe_loading()
    distributed = join_processes()
    say_machines("search", config.work_dir, resume)
    use_modes_rate(config)  # before the identity
    method = config.get("method", "dada")
    if method not in METHODS:
        raise UserError(f"the config's method is {method!r}; choose one of {', '.join(METHODS)}")
    make_algorithm = METHODS[method](config)
    problem = LOADERS[config.kind](config)
    if config.mirror and world()[0] == 0:
        print("search  half of the training images are flipped left to right; --no-mirror leaves them, as digits, text and "
              "signs need", flush=True)
    torch.manual_seed(config.seed)  # every process starts from the same weights
    network = problem.network()
    if isinstance(network, SuperNet) and method != "daas":
        raise UserError(f"the method {method} searches one network, and darts_supernet holds all architectures; give "
                        "another classifier.name, or configs/search_daas_cifar10.py")
    algorithm = make_algorithm(network)
    own = identity(config, problem, algorithm)
    checkpoint = resume_point(config.work_dir, own, "search") if resume else None
    batches = problem.batches(algorithm)
    untried = why_no_trial(config, method, algorithm, problem)
    searcher = build_searcher(config, problem, network, algorithm)
    trainings = None if untried or problem.trainings is None else problem.trainings(searcher.normalise)
    if trainings is not None:
        demand_own(Path(config.work_dir, TRAININGS))
    if world()[0] == 0:
        remove_earlier(Path(config.work_dir), checkpoint is not None, trainings is not None)
    provenance = {**algorithm.provenance, "config": Path(config.filename or "").stem, "seed": config.seed,
                  "data": problem.data_hash, **({"groups": problem.groups} if problem.groups else {})}
    runner = search_runner(config, searcher, batches, own, checkpoint, distributed,
                           WritePolicy(provenance, config.mirror, proposal=trainings is not None))
    with float32_arithmetic():  # not TF32, but where a pass asks for it
        runner.train()
        closing = algorithm.closing(config.work_dir)
        if trainings is not None:
            with explained(runner):
                assert isinstance(algorithm, Dada)
                closing = decide(config, trainings, problem.network, algorithm.distribution.policy(POLICY_SIZE),
                                 algorithm.distribution.space.operations, searcher.low, own, checkpoint is not None,
                                 provenance)
    if trainings is None and world()[0] == 0:
        print(f"search  no trial, as {untried}: nobody has looked whether the policy is better than none")
    if world()[0] == 0:
        search_page(config.work_dir, pictures_of(batches))
        print(f"search  done: {closing}; search.html shows it")


def remove_earlier(work_dir: Path, resumed: bool, has_trial: bool) -> None:
    """Removes the results of an earlier search, which would pass as this one's until it ends; of a resumed search those that
    it does not make now: a trial's if it has none, a policy that no trial has seen if it has one."""
    if not resumed or not has_trial:
        for name in ("verdict.json", "effects.json", "proposal.json"):
            (work_dir / name).unlink(missing_ok=True)
    if not resumed:  # another method's, which this one may not write
        for name in ("search.json", "history.json", "schedule.json", "genotype.json", "search.html"):
            (work_dir / name).unlink(missing_ok=True)
    if not resumed or (has_trial and not (work_dir / "verdict.json").exists()):
        (work_dir / "policy.json").unlink(missing_ok=True)


def search_runner(config: Config, searcher: Searcher, batches: Any, own: Identity, checkpoint: Path | None,
                  distributed: bool, policy_hook: WritePolicy) -> "SearchRunner":
    """The Runner of a search's first part, which goes on from `checkpoint` where there is one.

    Args:
        batches: of problem.batches.
        own: what checkpoints say that they are of.
        distributed: whether this process has joined others.
    """
    wrappers = optimizers(searcher, config)
    return SearchRunner(
        model=searcher, work_dir=config.work_dir, train_dataloader=batches,
        train_cfg={"type": "SearchLoop", "max_epochs": config.epochs},
        optim_wrapper=wrappers,
        param_scheduler={**{name: [] for name in wrappers.keys()},  # noqa: SIM118 (it is no dict)
                         "weights": {"type": "CosineAnnealingLR", "T_max": config.epochs, "by_epoch": True}},
        default_hooks={"logger": None, "sampler_seed": None, "runtime_info": {"type": "LateRuntimeInfo"},
                       "checkpoint": {**(config.get("checkpoint") or {}), "type": "AtomicCheckpoint"}},
        custom_hooks=[{"type": "StopAtNaN"}, policy_hook, {"type": "StampIdentity", "identity": own},
                      {"type": NoteCurves}, {"type": "ProgressLine", "stage": "search"}, {"type": LookForLeaks}],
        launcher="pytorch" if distributed else "none",
        randomness={"seed": config.seed, "deterministic": search_device().type == "cpu"}, log_level="WARNING",
        load_from=str(checkpoint) if checkpoint else None, resume=checkpoint is not None, visualizer=visualizer(config),
        experiment_name="search", cfg=config)


def why_no_trial(config: Config, method: str, algorithm: Algorithm, problem: Problem) -> str | None:
    """Why a search has no trial, as a clause; None if it has one."""
    if not config.get("trial", True):
        return "--no-trial says"
    if not isinstance(algorithm, Dada):
        return f"{method.upper()} does without one"
    if algorithm.settings.mode == "paper":
        return "the paper does without one"
    return None if problem.trainings else f"the kind {config.kind} has none"


class SearchRunner(QuietRunner):
    """A search averages its gradients itself (its step runs several passes), so DDP must not wrap its model."""

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        return model.to(get_device())


def optimizers(searcher: Searcher, config: Config) -> OptimWrapperDict:
    """SGD or AdamW for the network's weights, lr scaled linearly with the batch; an Adam for each name of the algorithm's
    groups."""
    use_modes_rate(config)
    weights = dict(config.weights_optimizer)
    weights["lr"] *= config.batch_size / config.base_batch_size
    kind = torch.optim.AdamW if weights.pop("type", SGD) == ADAMW else torch.optim.SGD
    optimizer = kind(trainable(searcher.network).values(), **weights)
    clip = None if config.clip_grad is None else {"max_norm": config.clip_grad}
    adams = {}
    for name, groups in searcher.algorithm.groups().items():
        options = config[f"{name}_optimizer"]
        for group in groups:
            group.setdefault("lr", options["lr"] * group.pop("lr_mult", 1.0))
        adams[name] = OptimWrapper(torch.optim.Adam(cast(list[dict[str, Any]], groups), **options))
    return OptimWrapperDict(weights=ClippingWrapper(optimizer, clip_grad=clip), **adams)


class ClippingWrapper(OptimWrapper):
    """mmengine's wrapper, which does not log the gradient's norm: to read it would wait for the device at every step."""

    def _clip_grad(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.clip_func(parameters, **self.clip_grad_kwargs)


def use_modes_rate(config: Config) -> None:
    """Sets policy_optimizer.lr where the config leaves it to the mode."""
    if config.policy_optimizer.get("lr") is None:
        config.policy_optimizer.lr = POLICY_LR["paper" if config.search.get("mode") == "paper" else "default"]


def identity(config: Config, problem: Problem, algorithm: Algorithm) -> Identity:
    """What a resumed search must share with the one that wrote the checkpoint."""
    entries = ("batch_size", "epochs", "seed", "precision", "weights_optimizer", "base_batch_size", "clip_grad",
               *(f"{name}_optimizer" for name in algorithm.groups()))
    return plain({**problem.identity, **{name: config[name] for name in entries}, **algorithm.identity,
                  "groups": problem.groups, "data": problem.data_hash[:12]})


def dada(config: Config) -> Callable[[nn.Module], Dada]:
    settings = dada_settings(**config.search)
    if settings.warmup_epochs >= config.epochs:  # a short search spends its last epoch on the policy all the same
        settings = replace(settings, warmup_epochs=config.epochs - 1)
    space = SearchSpace(operations=config.operations, ranges=settings.ranges) if config.get("operations") \
        else SearchSpace(ranges=settings.ranges)
    return lambda network: Dada(space, settings)


def daas(config: Config) -> Callable[[nn.Module], Daas]:
    settings = daas_settings(**config.search)
    if settings.warmup_epochs >= config.epochs:
        settings = replace(settings, warmup_epochs=config.epochs - 1)
    space = SearchSpace(operations=config.operations) if config.get("operations") else SearchSpace()

    def make(network: nn.Module) -> Daas:
        if not isinstance(network, SuperNet):
            raise UserError(f"the method daas searches a supernet, and config.classifier is {config.classifier.name}; give "
                            "classifier.name=darts_supernet")
        return Daas(space, settings, network)

    return make


def ddas(config: Config) -> Callable[[nn.Module], Ddas]:
    settings = ddas_settings(**config.search)
    if config.epochs > MOST_STAGES:
        raise UserError(f"DDAS writes a stage of its schedule an epoch, of which a file has at most {MOST_STAGES}, and "
                        f"--epochs says {config.epochs}; give fewer")
    space = AtomSpace.of_levels(config.get("operations") or OPERATION_NAMES, settings.levels, settings.ranges)
    return lambda network: Ddas(space, settings, config.epochs)


# By the config's `method`: checks the config before any image is read, and gives what makes the algorithm for a network.
METHODS: dict[str, Callable[[Config], Callable[[nn.Module], Algorithm]]] = {"dada": dada, "ddas": ddas, "daas": daas}
